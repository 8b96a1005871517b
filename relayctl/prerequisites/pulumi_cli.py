"""Finds or brings the Pulumi command line and the language host that runs Python programs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from images.recipe import cache_folder, host_goarch
from relayctl.prerequisites import cache, go_programs
from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import CommandFailedError, PrerequisiteError
from relayctl.prerequisites.registry import site_answers

if TYPE_CHECKING:
    from relayctl.prerequisites.progress import Progress

# the oldest that the project is run with: tools/pulumi/go.mod pins the same one
MINIMUM = (3, 250, 0)

_INSTALLER = "https://get.pulumi.com/install.sh"
_INSTALL_TIMEOUT = 900.0
_LANGUAGE_HOST = "pulumi-language-python"
# What goes with it, beside it or on PATH: what it starts to run a program, and the plugin that runs
# the project's own resource provider (components/caddy_configuration.py).
_WITH_LANGUAGE_HOST = ("pulumi-language-python-exec", "pulumi-resource-pulumi-python")

# as a program of its own, since it offers neither a time limit nor a way to stop it
_INSTALL_SCRIPT = """
import socket, sys
from pulumi.automation import PulumiCommand
from semver import VersionInfo
socket.setdefaulttimeout(30)
PulumiCommand.install(root=sys.argv[1], version=VersionInfo.parse(sys.argv[2]))
"""


@dataclass(frozen=True)
class PulumiCli:
    """The Pulumi command line, ready to run the project's program.

    ``command`` is the path of ``pulumi``; ``version`` its version such as
    ``3.250.0``; ``origin`` says where it is from, for a person. ``environment``
    is what has to be set, on top of this process's environment, to run it:
    ``PATH`` with the virtual environment and the language host first.
    """

    command: Path
    version: str
    language_host: Path
    origin: str
    environment: dict[str, str] = field(repr=False)


def bring(progress: Progress) -> PulumiCli:
    """Return a Pulumi command line with a language host for Python.

    Looked for in this order: on PATH if new enough; in the cache, from an
    earlier run; the official installer's; built from its Go module, which takes
    four minutes on two cores.

    Raises ``PrerequisiteError`` if none of these gives one.
    """
    command, version, origin = _on_path(progress) or _cached() or _installed(progress) or _built(progress)
    host, host_origin = _language_host(command, progress)
    if host_origin:
        origin = f"{origin}; language host {host_origin}"
    folders = [Path(sys.prefix) / "bin", command.parent, host.parent]
    path = os.pathsep.join([*dict.fromkeys(map(str, folders)), os.environ.get("PATH", os.defpath)])
    return PulumiCli(
        command=command,
        version=version,
        language_host=host,
        origin=origin,
        environment={"PATH": path, "PULUMI_SKIP_UPDATE_CHECK": "true"},
    )


def version_of(command: Path) -> str | None:
    """Return the version that ``command`` tells, such as ``3.250.0``, or ``None`` if it does not run."""
    try:
        output = subprocess.run(
            [str(command), "version"],
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
            capture_output=True,
            check=True,
            timeout=60,
            text=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"^v?(\d+\.\d+\.\d+\S*)", output.strip())
    return match.group(1) if match else None


def _on_path(progress: Progress) -> tuple[Path, str, str] | None:
    found = shutil.which("pulumi")
    if found is None:
        return None
    version = version_of(Path(found))
    if version is None:
        progress.warn(f"{found} does not run, so another Pulumi is brought")
        return None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        progress.warn(f"{found} is {version} and {wanted} is needed, so another Pulumi is brought")
        return None
    return Path(found), version, f"found at {found}"


def _official() -> tuple[Path, str]:
    version = importlib.metadata.version("pulumi")
    return cache_folder() / "pulumi" / f"{version}-{host_goarch()}", version


def _official_is_whole(folder: Path) -> bool:
    return os.access(folder / "bin" / "pulumi", os.X_OK)


def _cached() -> tuple[Path, str, str] | None:
    folder, version = _official()
    if _official_is_whole(folder):
        return folder / "bin" / "pulumi", version, "of the official installer, from the cache"
    built = go_programs.built_path("pulumi")
    if os.access(built, os.X_OK):
        return built, go_programs.version_of("pulumi"), "built from its Go module, from the cache"
    return None


def _installed(progress: Progress) -> tuple[Path, str, str] | None:
    folder, version = _official()
    answer = site_answers(_INSTALLER)
    if not answer:
        progress.say(f"The official Pulumi {version} cannot be downloaded: {answer.host}: {answer.reason}")
        return None
    try:
        cache.entry(
            folder,
            lambda target: _install(target, version, progress),
            progress,
            whole=_official_is_whole,
        )
    except CommandFailedError as error:
        progress.warn(f"The official installer of Pulumi {version} failed.\n{error.what}")
        return None
    return folder / "bin" / "pulumi", version, "brought by the official installer"


def _install(target: Path, version: str, progress: Progress) -> None:
    run(
        [sys.executable, "-c", _INSTALL_SCRIPT, str(target), version],
        title=f"installing Pulumi {version} with its official installer",
        mend="install Pulumi by hand: https://www.pulumi.com/docs/install/",
        timeout=_INSTALL_TIMEOUT,
        progress=progress,
        writes_to=target,
    )
    # the engine looks for it beside `pulumi`, so both move together
    for path in sorted((target / "bin").iterdir()):
        path.chmod(path.stat().st_mode | 0o555)


def _built(progress: Progress) -> tuple[Path, str, str]:
    try:
        path = go_programs.build("pulumi", progress)
    except PrerequisiteError as error:
        raise PrerequisiteError(
            f"there is no Pulumi, and it could be neither downloaded nor built: {error.what}",
            f"install it by hand (https://www.pulumi.com/docs/install/), or: {error.mend}",
        ) from error
    return path, go_programs.version_of("pulumi"), "built from its Go module"


def _language_host(command: Path, progress: Progress) -> tuple[Path, str]:
    # the official CLI has it beside the real file, which a link on PATH may point to
    for folder in dict.fromkeys([command.parent, command.resolve().parent]):
        host = folder / _LANGUAGE_HOST
        if all(os.access(folder / name, os.X_OK) for name in (_LANGUAGE_HOST, *_WITH_LANGUAGE_HOST)):
            return host, ""
    found = shutil.which(_LANGUAGE_HOST)
    if found and all(map(shutil.which, _WITH_LANGUAGE_HOST)):
        return Path(found), f"found at {found}"
    host = go_programs.build("pulumi-language-python", progress)
    return host, f"{go_programs.version_of('pulumi-language-python')} built from its Go module"
