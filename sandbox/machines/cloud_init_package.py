"""Debian's cloud-init, unpacked into the project's cache instead of installed.

Installed, it would run at the next boot of the machine that it is installed on
and take that machine for a server that is new. Unpacked, it does what it is
called for and no more.
"""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from images.recipe import cache_folder, host_goarch
from relayctl.prerequisites import cache, commands
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress

_PYTHON = "/usr/bin/python3"
_MODULES = Path("usr/lib/python3/dist-packages")
_COMPILED = _MODULES / "cloudinit/__pycache__"
_DOWNLOAD_TIMEOUT = 300
_UNPACK_TIMEOUT = 60
_MEND = "sudo apt-get update, then run this again; cloud-init is taken from Debian's own package source"
# other packages depend on Debian's Python and its libraries, which are on every Debian that has Python
_PACKAGE = re.compile(r"^(cloud-init\S*|python3-\S+)$", re.MULTILINE)
# what python3 itself is made of: the interpreter that runs cloud-init has it already
_INTERPRETER = re.compile(r"python3-(?:minimal|distutils|lib2to3)(?::any)?")


def package_folder() -> Path:
    """Return the folder that cloud-init and its libraries are unpacked in; fetch them at the first call.

    It is laid out as the root of a file system: ``usr/bin/cloud-init``,
    ``etc/cloud``. Nothing outside the cache changes, and no root is needed.

    Raises ``PrerequisiteError`` where it cannot be had: no ``apt-get``, no
    package source, no Python of the system's own, a full disk.
    """
    if not Path(_PYTHON).exists():
        raise PrerequisiteError(f"there is no {_PYTHON}, which cloud-init runs on", "apt-get install python3")
    # the libraries that are not plain Python fit one release's interpreter only
    path = cache_folder() / "cloud-init" / f"{_release(Path('/etc/os-release').read_text())}-{host_goarch()}"
    progress = Progress(Console(stderr=True, highlight=False, emoji=False))
    return cache.entry(
        path,
        lambda folder: _fill(folder, progress),
        progress,
        whole=lambda folder: (folder / _COMPILED).is_dir(),
    )


def cloud_init_command() -> list[str]:
    """Return the command that is ``cloud-init``, to which its arguments are added.

    It carries its own environment, so ``[*cloud_init_command(), "schema",
    "--config-file", path]`` works as it stands. Raises as ``package_folder``.
    """
    return ["env", f"PYTHONPATH={package_folder() / _MODULES}", _PYTHON, "-m", "cloudinit.cmd.main"]


def _fill(folder: Path, progress: Progress) -> None:
    listing = commands.run(
        [
            "apt-cache",
            "depends",
            "--recurse",
            *(
                f"--no-{kind}"
                for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
            ),
            "cloud-init",
        ],
        title="looking up what cloud-init needs",
        mend=_MEND,
        timeout=_UNPACK_TIMEOUT,
        progress=progress,
    )
    packages = _packages(listing)
    if "cloud-init" not in packages:
        raise PrerequisiteError("Debian's package source is not known here: cloud-init is not in it", _MEND)
    downloads = folder / "downloads"
    downloads.mkdir()
    commands.run(
        # apt gives up its rights for an own user, who cannot write to the cache
        ["apt-get", "download", "-o", "APT::Sandbox::User=root", *packages],
        title="fetching Debian's cloud-init",
        mend=_MEND,
        timeout=_DOWNLOAD_TIMEOUT,
        progress=progress,
        folder=downloads,
        writes_to=folder,
    )
    for package in sorted(downloads.glob("*.deb")):
        commands.run(
            ["dpkg-deb", "--extract", str(package), str(folder)],
            title=f"unpacking {package.name}",
            mend=_MEND,
            timeout=_UNPACK_TIMEOUT,
            progress=progress,
            writes_to=folder,
        )
        package.unlink()
    downloads.rmdir()
    commands.run(
        # Installing a package does this too. It halves the time of each of the four stages of a boot.
        [_PYTHON, "-m", "compileall", "-q", str(folder / _MODULES)],
        title="compiling cloud-init",
        mend=_MEND,
        timeout=_UNPACK_TIMEOUT,
        progress=progress,
        writes_to=folder,
    )


def _packages(listing: str) -> list[str]:
    """Return the packages to unpack from what ``apt-cache depends --recurse`` printed."""
    found = {name for name in _PACKAGE.findall(listing) if not _INTERPRETER.fullmatch(name)}
    return sorted(name for name in found if ":" not in name)


def _release(os_release: str) -> str:
    """Return a name for the system's release, such as ``debian-12``, from ``/etc/os-release``."""
    fields = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    return "-".join(fields[key] for key in ("ID", "VERSION_ID") if fields.get(key)) or "unknown"
