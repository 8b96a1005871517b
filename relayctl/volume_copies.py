"""Copies of a server's volumes on this machine, for the time that the server is made anew."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from relayctl.prerequisites.errors import PrerequisiteError, disk_full_explained, last_lines
from relayctl.prerequisites.progress import Progress
from relayctl.stack import state_copy
from settings.base import PROJECT_FOLDER
from ssh.connection import Connection

# Seconds for one volume. Certificates and keys are small; what was put into /srv may not be.
_TIMEOUT = 3600.0

_MEND = (
    "see to that, then run it again; what was copied is kept. A server that cannot be reached any more is"
    " made anew with empty volumes by ARGS=--without-volumes"
)
# The volume's name is $1. A volume that is there already is used as it is.
_SAVE = 'cd "$(docker volume inspect --format "{{.Mountpoint}}" "$1")" && tar --create --numeric-owner .'
_RESTORE = (
    'docker volume create "$1" >/dev/null'
    ' && cd "$(docker volume inspect --format "{{.Mountpoint}}" "$1")" && tar --extract --numeric-owner'
)


def folder(stack: str) -> Path:
    """Return where the copies of the volumes of ``stack`` are, while there are any."""
    return state_copy(stack).with_suffix(".volumes")


def save(connection: Connection, names: Iterable[str], progress: Progress) -> None:
    """Copy the volumes ``names`` from the server, all or none; keys are among them, so for this user alone.

    Raises ``PrerequisiteError`` if one cannot be read: nothing was changed then.
    """
    to = folder(connection.stack)
    unfinished = to.with_suffix(".unfinished-volumes")
    shutil.rmtree(unfinished, ignore_errors=True)
    with progress.step("Copying the volumes from the server"), disk_full_explained(unfinished):
        unfinished.mkdir(mode=0o700)
        for name in names:
            with (unfinished / f"{name}.tar").open("wb") as file:
                done = subprocess.run(
                    connection.command("sh", "-c", _SAVE, "sh", name),
                    cwd=PROJECT_FOLDER,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.PIPE,
                    timeout=_TIMEOUT,
                    check=False,
                )
            _expect_success(done, f"the volume {name} cannot be copied from the server")
        shutil.rmtree(to, ignore_errors=True)
        unfinished.replace(to)


def restore(connection: Connection, progress: Progress) -> None:
    """Fill the volumes of a server that was just made from the copies, and remove these.

    Raises ``PrerequisiteError`` if one cannot be written; the copies are then kept.
    """
    saved = folder(connection.stack)
    with progress.step("Copying the volumes to the new server"):
        for path in sorted(saved.glob("*.tar")):
            with path.open("rb") as file:
                done = subprocess.run(
                    connection.command("sh", "-c", _RESTORE, "sh", path.stem),
                    cwd=PROJECT_FOLDER,
                    stdin=file,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=_TIMEOUT,
                    check=False,
                )
            _expect_success(done, f"the volume {path.stem} cannot be copied to the server")
    shutil.rmtree(saved)


def _expect_success(done: subprocess.CompletedProcess[bytes], what: str) -> None:
    if done.returncode:
        said = last_lines(done.stderr.decode(errors="replace"))
        raise PrerequisiteError(f"{what}: {said}", _MEND)
