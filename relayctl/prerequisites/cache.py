"""The folder for brought programs: what is in it is whole, whoever was killed while filling it.

Every entry is filled under another name and renamed when it is done, under a
lock of the operating system that ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from images.recipe import cache_folder
from relayctl.prerequisites.errors import PrerequisiteError, TimeLimitError, disk_full_explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relayctl.prerequisites.progress import Progress

# longer than any build takes: Pulumi's CLI, the longest, takes four minutes on two cores
_LOCK_TIMEOUT = 3600.0
_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made if need be; wait for another run that holds it.

    Raises ``TimeLimitError`` if that takes an hour, ``PrerequisiteError`` if the
    folder cannot be written to.
    """
    _make(path.parent)
    with disk_full_explained(path), path.open("ab") as file:
        if not _try_lock(file.fileno()):
            with progress.step(f"waiting for another run that is bringing {path.stem.lstrip('.')}") as step:
                while not _try_lock(file.fileno()):
                    if step.seconds() > _LOCK_TIMEOUT:
                        raise TimeLimitError(
                            f"another run has held {path} for an hour", "end that run, then run this again"
                        )
                    time.sleep(0.2)
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a run holds the lock of the file ``path`` (`locked`)."""
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno())
    except FileNotFoundError:
        return False


def entry(
    path: Path, fill: Callable[[Path], None], progress: Progress, *, whole: Callable[[Path], bool]
) -> Path:
    """Return the folder ``path``; where it is not ``whole``, have ``fill`` fill an empty one first.

    ``fill`` is called with a folder of another name beside it, which becomes
    ``path`` when it returns. What a killed run left half done is removed.

    Raises ``DiskFullError``, ``PrerequisiteError`` if the cache cannot be
    written to, and whatever ``fill`` raises.
    """
    if whole(path):
        return path
    with locked(path.with_name(f".{path.name}.lock"), progress), disk_full_explained(path):
        if whole(path):
            return path
        for left in path.parent.glob(f"{_UNFINISHED}{path.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{path.name}-", dir=path.parent))
        try:
            unfinished.chmod(0o755)
            fill(unfinished)
            if path.exists():
                shutil.rmtree(path)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return path


class RememberedFailure:
    """Why a download failed lately, so that the next run need not wait for it to fail again."""

    def __init__(self, name: str, seconds: float = 3600) -> None:
        """Remember under ``name`` for ``seconds``."""
        self.path = cache_folder() / "failures" / f"{name}.json"
        self.seconds = seconds

    def reason(self) -> str | None:
        """Return the reason of a failure that is not too old, else ``None``."""
        try:
            record = json.loads(self.path.read_text())
            age = time.time() - float(record["time"])
            # a clock that was set back must not make it last for ever
            return str(record["reason"]) if 0 <= age < self.seconds else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, reason: str) -> None:
        """Write down the reason and the time."""
        _make(self.path.parent)
        with disk_full_explained(self.path):
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps({"time": time.time(), "reason": reason}))
            temporary.replace(self.path)

    def forget(self) -> None:
        """Forget it, so that the next run tries again."""
        self.path.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(folder: Path) -> None:
    try:
        with disk_full_explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrerequisiteError(
            f"the cache folder {folder} cannot be made: {error.strerror}",
            "make it writable for this user, or set DERP_RELAYS_CACHE to a folder that is",
        ) from error
