"""What is to be served: the Caddyfile, and the data that it names by digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from delivery.sums import Sums
from render import Places, caddyfile
from settings import PROJECT, Folder, Problem, Settings, SettingsError
from settings.base import PROJECT_FOLDER
from settings.folders import folder_here

# images/deliver/data.go knows them too: it removes there what the Caddyfile does not name.
SITES = "/srv/.sites"
CERTIFICATES = "/etc/caddy/.certificates"
SECRETS = "/etc/caddy/.secrets"

_KEPT_SECONDS = 24 * 3600.0

# Hexadecimal digits: 64 bits tell apart what one stack ever serves.
_DIGITS = 16


@dataclass(frozen=True)
class Tree:
    """A folder of a site: ``path`` in Caddy's container, and what is in it by relative path.

    ``files`` has SHA-256 sums in hexadecimal, ``links`` where links lead;
    ``source`` is the folder on this machine.
    """

    path: str
    source: str
    files: Mapping[str, str]
    links: Mapping[str, str]


@dataclass(frozen=True)
class Content:
    """All that makes up a configuration; each path in ``caddyfile`` tells what is behind it.

    ``trees`` are the sites' folders. ``certificates`` has the file on this
    machine for each path in Caddy's container, ``secrets`` the path for each
    name in ``siteSecrets``. ``sites`` has a digest for each site by its first
    name, for people to see what changes.
    """

    caddyfile: str
    trees: tuple[Tree, ...] = ()
    certificates: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The SHA-256 of the Caddyfile, which names everything else by digests."""
        return digest_of(self.caddyfile.encode())

    def keep(self, stack: str) -> None:
        """Keep it on disk by its digest, for the provider of the resource, which is a process of its own.

        What was kept for configurations of ``stack`` a day ago goes. No secret is in it.
        """
        path = _kept(stack, self.digest)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)
        for other in path.parent.glob("*.json"):
            # Younger ones may be those of an update that is under way.
            with contextlib.suppress(FileNotFoundError):
                if other.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    other.unlink()

    @classmethod
    def kept(cls, stack: str, digest: str) -> Self:
        """Return what was kept under ``digest``. Raises ``FileNotFoundError`` if nothing was."""
        known = json.loads(_kept(stack, digest).read_text())
        return cls(**{**known, "trees": tuple(Tree(**tree) for tree in known["trees"])})


def forget_content(stack: str) -> None:
    """Remove what is kept on this machine of what ``stack`` served, which is down for good."""
    shutil.rmtree(PROJECT_FOLDER / ".relayctl" / "delivery" / stack, ignore_errors=True)
    _sums(stack).unlink(missing_ok=True)


def digest_of(text: bytes) -> str:
    """Return the SHA-256 of ``text`` in hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def _sums(stack: str) -> Path:
    return PROJECT_FOLDER / ".relayctl" / f"sums-{stack}.json"


def _kept(stack: str, digest: str) -> Path:
    return PROJECT_FOLDER / ".relayctl" / "delivery" / stack / f"{digest}.json"


def content_of(settings: Settings, stack: str) -> Content:
    """Read what ``settings`` name on this machine, and render the Caddyfile for it.

    Raises ``SettingsError`` with every folder that cannot be read as it is.
    """
    where = f"stacks/Pulumi.{stack}.yaml"
    problems: list[Problem] = []
    trees: dict[str, Tree] = {}
    with Sums(_sums(stack)) as sums:
        for number, site in enumerate(settings.sites):
            source = site.serves.source if isinstance(site.serves, Folder) else None
            if source is None:
                continue
            try:
                trees[site.names[0]] = _tree(site.names[0], Path(source), sums)
            except _UnfitError as error:
                problems.append(Problem(f"{PROJECT}:sites[{number}].folder", error.what, error.mend))
    if problems:
        raise SettingsError(where, problems)
    folder, certificates = _certificates(settings)
    secrets = {
        name: f"{SECRETS}/{_digest_of_secret(name, value.get_secret_value())}/{name}"
        for name, value in settings.site_secrets.items()
    }
    places = Places({name: tree.path for name, tree in trees.items()}, secrets, folder)
    return Content(
        caddyfile=caddyfile(settings, places),
        trees=tuple(trees.values()),
        certificates=certificates,
        secrets=secrets,
        sites={
            site.names[0]: _short(site.model_dump(mode="json"), places.folders.get(site.names[0]))
            for site in settings.sites
        },
    )


def _short(*told: Any) -> str:
    return digest_of(json.dumps(told, sort_keys=True).encode())[:_DIGITS]


def _certificates(settings: Settings) -> tuple[str | None, dict[str, str]]:
    certificate = settings.certificate
    if certificate.folder is None:
        return None, {}
    folder_of_files = folder_here(certificate.folder)
    paths = {name: folder_of_files / name for name in (certificate.certificate, certificate.key)}
    folder = f"{CERTIFICATES}/{_short({name: digest_of(path.read_bytes()) for name, path in paths.items()})}"
    return folder, {f"{folder}/{name}": str(path) for name, path in paths.items()}


def _digest_of_secret(name: str, value: str) -> str:
    """Return what tells one value of a secret from another, and is no help in guessing it.

    It is in the Caddyfile. The cost is that of https://datatracker.ietf.org/doc/html/rfc7914, section 2:
    50 ms or so for each guess.
    """
    return hashlib.scrypt(value.encode(), salt=name.encode(), n=2**14, r=8, p=1).hex()[:_DIGITS]


class _UnfitError(Exception):
    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


def _tree(name: str, source: Path, sums: Sums) -> Tree:
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    try:
        for path, status in _walk(source):
            relative = path.relative_to(source).as_posix()
            try:
                relative.encode()
            except UnicodeEncodeError:
                raise _UnfitError(f"{relative!r} in it has a name that is not UTF-8", "Rename it.") from None
            if stat.S_ISLNK(status.st_mode):
                links[relative] = _target(path, source)
            elif stat.S_ISREG(status.st_mode):
                files[relative] = sums.of(path, status)
            else:
                raise _UnfitError(f"{path} is neither a file nor a folder", "Take it out of the folder.")
    except OSError as error:
        raise _UnfitError(
            f"{error.filename} cannot be read: {error.strerror}", "See to its permissions."
        ) from None
    return Tree(f"{SITES}/{name}/{_short(files, links)}", str(source), files, links)


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield Path(entry.path), entry.stat(follow_symlinks=False)


def _target(link: Path, source: Path) -> str:
    """Return where ``link`` leads, which has to be within ``source``: nothing else may be published."""
    target = link.readlink()
    reached = Path(os.path.normpath(link.parent / target))
    if (
        target.is_absolute()
        or not reached.is_relative_to(source)
        # unlike Path.resolve, takes links that lead in a circle for what they are: broken
        or not Path(os.path.realpath(link)).is_relative_to(source.resolve())
    ):
        raise _UnfitError(
            f"{link} links to {target}, which is outside of it or absolute",
            "Copy what it leads to into the folder, or link to it by a relative path within.",
        )
    return target.as_posix()
