"""Runs other programs: with a time limit, with progress, and with their last lines in the error."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from relayctl.prerequisites.errors import CommandFailedError, TimeLimitError, failed, last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relayctl.prerequisites.progress import Progress

# what a program is given to end by itself before it is killed
_GRACE = 5.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")


def run(  # noqa: PLR0913 - each says something of its own
    command: Sequence[str],
    *,
    title: str,
    mend: str,
    timeout: float,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    writes_to: Path | None = None,
    must_finish: bool = False,
) -> str:
    """Run ``command`` and return what it wrote to standard output and error, as one text.

    ``title`` says what it is for and names the step that is shown; ``mend`` says
    what to do where it fails for a reason of its own. ``timeout`` is in seconds,
    ``environment`` replaces this process's, ``folder`` is where it runs and
    ``writes_to`` the folder whose disk it may fill.

    The program and all it starts end with this process: at the time limit, at
    Ctrl-C, and, where ``setpriv`` is there, even if this process is killed.
    With ``must_finish`` Ctrl-C is put off until it has ended, for programs such
    as ``dpkg`` that leave a mess when they are stopped.

    Raises ``CommandFailedError`` or the class of it that fits: ``TimeLimitError``,
    ``DiskFullError``, ``NetworkUnreachableError``.
    """
    # setpriv would be what fails, and say it less clearly
    path = (os.environ if environment is None else environment).get("PATH", os.defpath)
    if shutil.which(command[0], path=path) is None:
        raise CommandFailedError(f"{title}: there is no program {command[0]}", mend)
    lines: deque[str] = deque(maxlen=10_000)
    with progress.step(title) as step:
        try:
            process = subprocess.Popen(
                [*_ending_with_parent(must_finish=must_finish), *command],
                env=None if environment is None else dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailedError(f"{title}: {command[0]} cannot be started: {error}", mend) from error

        def read() -> None:
            for line in process.stdout or ():
                clean = _CONTROL.sub("", line).rstrip()
                if clean:
                    lines.append(clean)
                    step.detail = clean

        # a thread of its own: a program that is silent must not outlive its time limit
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            _wait(process, timeout, must_finish=must_finish)
        except subprocess.TimeoutExpired:
            _end(process)
            reader.join(_GRACE)
            raise TimeLimitError(
                f"{title}: not done after {timeout:.0f} s, so it was ended",
                mend,
                last_lines("\n".join(lines)),
            ) from None
        except BaseException:
            _end(process)
            raise
        reader.join(_GRACE)
        if process.returncode != 0:
            raise failed(
                f"{title}: {Path(command[0]).name} ended with status {process.returncode}",
                mend,
                "\n".join(lines),
                writes_to or folder or Path.cwd(),
            )
    return "\n".join(lines)


def _ending_with_parent(*, must_finish: bool) -> list[str]:
    # setpriv is of util-linux, which Debian and Ubuntu always have
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None or must_finish else [setpriv, "--pdeathsig", "TERM", "--"]


def _wait(process: subprocess.Popen[str], timeout: float, *, must_finish: bool) -> None:
    if not must_finish or threading.current_thread() is not threading.main_thread():
        process.wait(timeout)
        return
    interrupts: list[int] = []
    kept = signal.signal(signal.SIGINT, lambda number, _frame: interrupts.append(number))
    try:
        process.wait(timeout)
    finally:
        signal.signal(signal.SIGINT, kept)
    if interrupts:
        raise KeyboardInterrupt


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
