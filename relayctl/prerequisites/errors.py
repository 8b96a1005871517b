"""What can go wrong while finding or bringing what the relay needs, each with how to mend it."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class PrerequisiteError(Exception):
    """Something the relay needs is not there and could not be brought.

    ``what`` says what is wrong and where, ``mend`` what to do about it; both are
    for a person to read and may have several lines.
    """

    def __init__(self, what: str, mend: str) -> None:
        """Keep both parts; ``str()`` of the error shows them together."""
        super().__init__(what, mend)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        """Return both parts as one message."""
        return f"{self.what}\n  to mend it: {self.mend}"


class CommandFailedError(PrerequisiteError):
    """A program that was started ended badly; ``output`` holds its last lines."""

    def __init__(self, what: str, mend: str, output: str = "") -> None:
        """Keep the last lines apart from the message that shows them."""
        super().__init__(f"{what}\n{indented(output)}" if output else what, mend)
        self.output = output


class TimeLimitError(CommandFailedError):
    """A program was ended because it took longer than it may."""


class NetworkUnreachableError(CommandFailedError):
    """A download failed because the network, or the other side, does not answer."""


class DiskFullError(CommandFailedError):
    """A file system has no room left."""


class VersionNotFoundError(CommandFailedError):
    """The version asked for was never published, or cannot be had from here."""


class DockerEngineError(PrerequisiteError):
    """No Docker engine answers."""


class DockerPermissionError(DockerEngineError):
    """A Docker engine is there, and this user may not speak to it."""


# as Go, pip, apt, tar and dockerd word the errors of the operating system
_DISK_FULL = re.compile(
    r"no space left on device|disk quota exceeded|you don't have enough free space", re.IGNORECASE
)
_NETWORK = re.compile(
    r"no such host|temporary failure (in name )?resol|could not resolve|name or service not known"
    r"|network is unreachable|no route to host|connection (refused|timed out|reset)|i/o timeout"
    r"|tls handshake timeout|failed to fetch|newconnectionerror|connecttimeouterror|max retries exceeded"
    r"|module lookup disabled|context deadline exceeded",
    re.IGNORECASE,
)


def indented(text: str) -> str:
    """Return ``text`` with each line set in, for lines quoted from another program."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def last_lines(text: str, count: int = 15) -> str:
    """Return the last ``count`` lines of ``text``."""
    return "\n".join(text.splitlines()[-count:])


def says_disk_full(output: str) -> bool:
    """Tell whether a program's ``output`` says that a file system has no room left."""
    return _DISK_FULL.search(output) is not None


def disk_full(folder: Path, output: str = "") -> DiskFullError:
    """Describe the full file system that ``folder`` is on, with its figures."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(there)
    return DiskFullError(
        f"the disk is full: {folder} has {usage.free // 2**20} MiB left of {usage.total // 2**20} MiB",
        "make room (`docker system prune` and `go clean -cache` often give much),"
        " or point DERP_RELAYS_CACHE to a folder on another disk; then run it again",
        output,
    )


def failed(what: str, mend: str, output: str, folder: Path) -> CommandFailedError:
    """Describe a program that failed, by what its whole ``output`` tells of the reason.

    ``folder`` is where it was writing; ``mend`` serves where the output tells
    neither of a full disk nor of the network. The error shows the last lines.
    """
    shown = last_lines(output)
    if says_disk_full(output):
        return disk_full(folder, shown)
    if _NETWORK.search(output):
        return NetworkUnreachableError(
            f"{what}: the network, or the other side, does not answer",
            "check this machine's network, name resolution and proxy settings, then run it again",
            shown,
        )
    return CommandFailedError(what, mend, shown)


@contextlib.contextmanager
def disk_full_explained(folder: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" inside the block into ``DiskFullError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, str(error)) from error
        raise
