"""SHA-256 sums of files, remembered for files that have not changed since."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Seconds. A file that was changed right before it was summed could change again within the same tick of
# its file system's clock, and so unseen (https://git-scm.com/docs/racy-git).
_SETTLED = 2.0


class Sums:
    """The sums that ``path`` remembers, by file; a context manager that writes them back at its end.

    A file counts as unchanged if its size, times and inode are. Damage to
    ``path`` costs time alone.
    """

    def __init__(self, path: Path) -> None:
        """Read what ``path`` remembers, if it is there."""
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._used: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
            if isinstance(known, dict):
                self._known = known

    def of(self, path: Path, status: os.stat_result) -> str:
        """Return the sum of the file ``path``, whose status was just asked for. Raises ``OSError``."""
        seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(str(path))
        if isinstance(known, list) and known[:-1] == seen:
            sum_ = str(known[-1])
        else:
            with path.open("rb") as file:
                sum_ = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
            self._used[str(path)] = [*seen, sum_]
        return sum_

    def __enter__(self) -> Self:
        """Return the sums themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remember what was asked for; what could not be written down is found out again."""
        if self._used == self._known:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            unfinished = self._path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(self._used))
            unfinished.replace(self._path)
