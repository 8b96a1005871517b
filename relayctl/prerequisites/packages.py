"""Installs packages of Debian's and Ubuntu's own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import CommandFailedError, PrerequisiteError
from relayctl.prerequisites.progress import Progress

_UPDATE_TIMEOUT = 300.0
_INSTALL_TIMEOUT = 1800.0
# how long apt-get itself waits for another package manager, in seconds
_LOCK_SECONDS = 120


def is_debian() -> bool:
    """Tell whether this system is Debian, Ubuntu or one that is like them, with apt-get."""
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return False
    like = re.search(r"^ID(_LIKE)?=.*\b(debian|ubuntu)\b", release, re.MULTILINE) is not None
    return like and shutil.which("apt-get") is not None


def install(names: Sequence[str], progress: Progress) -> None:
    """Install packages as root; finish an interrupted installation first.

    Raises ``PrerequisiteError`` for others than root, with the command for root;
    ``CommandFailedError`` if apt-get fails.
    """
    by_hand = f"sudo apt-get update && sudo apt-get install -y {shlex.join(names)}"
    if not is_debian():
        raise PrerequisiteError(
            f"{', '.join(names)}: not installed, and this is neither Debian nor Ubuntu",
            "install them with this system's package manager, then run this again",
        )
    if os.geteuid() != 0:
        raise PrerequisiteError(f"{', '.join(names)}: not installed, and only root may", by_hand)
    if _unfinished():
        _run(
            ["dpkg", "--configure", "-a"], "finishing an interrupted installation", _INSTALL_TIMEOUT, progress
        )
    _run(
        ["apt-get", "-q", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "update"],
        "renewing the package lists",
        _UPDATE_TIMEOUT,
        progress,
    )
    options = ["-q", "-y", "-o", f"DPkg::Lock::Timeout={_LOCK_SECONDS}", "--no-install-recommends"]
    _run(
        ["apt-get", *options, "install", *names],
        f"installing {', '.join(names)}",
        _INSTALL_TIMEOUT,
        progress,
    )


def _unfinished() -> bool:
    audit = subprocess.run(["dpkg", "--audit"], capture_output=True, text=True, check=False, timeout=60)
    return bool(audit.stdout.strip())


def _run(command: Sequence[str], title: str, timeout: float, progress: Progress) -> None:
    try:
        run(
            command,
            title=title,
            mend=f"see its message above; by hand it is: {shlex.join(command)}",
            timeout=timeout,
            progress=progress,
            environment={
                **os.environ,
                "DEBIAN_FRONTEND": "noninteractive",
                # its messages are searched for reasons
                "LC_ALL": "C.UTF-8",
                "NEEDRESTART_SUSPEND": "1",
            },
            writes_to=Path("/var"),
            must_finish=True,
        )
    except CommandFailedError as error:
        if re.search(
            r"could not get lock|unable to (lock|acquire)|is another process using it",
            error.output,
            re.IGNORECASE,
        ):
            raise CommandFailedError(
                f"{title}: another package manager is at work",
                "wait until it has ended, then run this again",
                error.output,
            ) from error
        raise
