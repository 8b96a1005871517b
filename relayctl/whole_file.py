"""Writes files that others read at any time: all of it, or what was there before."""

from __future__ import annotations

import os
from pathlib import Path

from relayctl.prerequisites.errors import PrerequisiteError, disk_full_explained


def write_whole(path: Path, text: str) -> None:
    """Put a file with ``text`` in place of ``path`` at once, with the rights that the umask leaves.

    What is no file, such as a pipe or /dev/null, and what a link leads to, is written into as it is.
    Raises ``PrerequisiteError`` if it cannot be written, such as for a folder that is not there.
    """
    # Not by the suffix of what it becomes: node_exporter reads every file that ends in .prom.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_full_explained(path):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                path.write_text(text)
                return
            unfinished.write_text(text)
            unfinished.replace(path)
    except OSError as error:
        raise PrerequisiteError(
            f"{path} cannot be written: {error.strerror}", "name a file in a folder that you may write to"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
