"""Folders and files, of this machine and in a container."""

from __future__ import annotations

import re
from pathlib import Path

from settings.base import PROJECT_FOLDER
from settings.problems import reject

# It goes into the Caddyfile as it stands: nothing in it ends a token there.
_PATH_IN_CONTAINER = re.compile(r"(/[A-Za-z0-9._-]+)+/?")


def folder_here(folder: str) -> Path:
    """Return a stack file's ``folder`` as an absolute path, from the project's own where it is relative.

    Rejects, for use in a validator, an empty name (which would be the project
    itself) and a user's home that is not known.
    """
    if not folder.strip():
        reject("is empty", "Name a folder, or leave it out.")
    try:
        return (PROJECT_FOLDER / Path(folder).expanduser()).resolve()
    except RuntimeError:
        reject(f"{folder!r} begins with a user who is not known here", "Give the whole path.")


def is_path_in_container(text: str) -> bool:
    """Tell whether ``text`` is an absolute path of letters, digits, '.', '-', '_' and '/', without '..'."""
    return _PATH_IN_CONTAINER.fullmatch(text) is not None and ".." not in text.split("/")
