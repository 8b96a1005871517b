"""``apt-get`` where no package mirror is reached: what is asked for is checked and written down.

A server's system is the machine's own, so its programs are there already.
Docker's packages are only had where Docker's source is configured with its
key, as on a server; their installation starts the engine, as theirs does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sandbox.machines.guest.services import log

_INSTALLED = Path("/var/lib/sandbox/packages")
_SOURCES = Path("/etc/apt/sources.list.d")
# deb-version(7) and Debian Policy 5.6.1, with apt's own =VERSION and /RELEASE
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:=[A-Za-z0-9.+:~-]+|/[a-z-]+)?[+-]?")
_DOCKERS_OWN = re.compile(r"docker-(?:ce|buildx|compose)\S*|containerd\.io")
_ENGINES = ("docker-ce", "docker.io")
_DONE_ALREADY = (
    "update",
    "upgrade",
    "dist-upgrade",
    "full-upgrade",
    "clean",
    "autoclean",
    "autoremove",
    "check",
    "remove",
    "purge",
)
_WITH_VALUE = ("-o", "--option", "-t", "--target-release", "-c", "--config-file")
# what apt-get(8) says of its exit code
_FAILED = 100


def main(arguments: Sequence[str]) -> int:
    """Do what ``arguments`` ask for as far as it can be, and return apt-get's exit code."""
    words: list[str] = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = not skip and argument in _WITH_VALUE
            continue
        words.append(argument)
    if words and words[0] in _DONE_ALREADY:
        return _written(
            f"apt-get {' '.join(words)}: not done, a server in the sandbox has what its machine has"
        )
    if not words or words[0] != "install":
        return _failed(f"E: Invalid operation {' '.join(words)}")
    names = []
    for word in words[1:]:
        if not _PACKAGE.fullmatch(word):
            return _failed(f"E: Unable to locate package {word}")
        names.append(re.split(r"[=/]", word)[0])
    docker = sorted(name for name in names if _DOCKERS_OWN.fullmatch(name))
    if docker and (why := source_fault(_source_texts())):
        return _failed(f"E: Unable to locate package {docker[0]}: {why}")
    return _installed(names)


def source_fault(sources: Sequence[str]) -> str | None:
    """Return why Docker's packages cannot be had from these lists of sources, or ``None`` if they can."""
    for text in sources:
        for line in text.splitlines():
            if not line.strip().startswith("deb ") or "download.docker.com" not in line:
                continue
            key = re.search(r"signed-by=([^\]\s]+)", line)
            if key is None:
                return "Docker's source names no key to trust (signed-by)"
            if not Path(key[1]).is_file():
                return f"the key of Docker's source, {key[1]}, is not there"
            return None
    return "no source in /etc/apt/sources.list.d is download.docker.com's"


def _source_texts() -> list[str]:
    return [path.read_text(errors="replace") for path in sorted(_SOURCES.glob("*.list"))]


def _installed(names: Sequence[str]) -> int:
    known = _INSTALLED.read_text().split() if _INSTALLED.exists() else []
    _INSTALLED.parent.mkdir(parents=True, exist_ok=True)
    _INSTALLED.write_text("\n".join([*known, *(name for name in names if name not in known)]) + "\n")
    for name in names:
        _written(f"apt-get install {name}: not done, a server in the sandbox has what its machine has")
    if any(engine in names for engine in _ENGINES):
        return subprocess.run(["/usr/bin/systemctl", "enable", "--now", "docker"], check=False).returncode
    return 0


def _written(what: str) -> int:
    log(what)
    sys.stdout.write(f"{what}\n")
    return 0


def _failed(why: str) -> int:
    log(why)
    sys.stderr.write(f"{why}\n")
    return _FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
