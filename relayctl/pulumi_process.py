"""Runs the Pulumi command line so that it ends in order, however its user ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO

import psutil
from pulumi import automation
from pulumi.automation.errors import create_command_error

from relayctl.prerequisites.progress import Progress

# In the environment of all that a run starts, so that a later run knows what a killed one left.
MARK = "DERP_RELAYS_RUN"
_RUN = secrets.token_hex(8)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Seconds that Pulumi has to cancel what is under way, and then to end at once, before it is killed.
_CANCEL_SECONDS = 40.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.1
# Seconds for the last lines to be read. What Pulumi started may outlive it, and hold its output open.
_LAST_LINES_SECONDS = 5.0
_ORPHAN_SECONDS = 10.0
# Seconds that the clock may have been set by while a process ran: its start is told by the clock.
_CLOCK_TOLERANCE = 60.0


class PulumiProcess(automation.PulumiCommand):
    """Pulumi's command line, in a session of its own: Ctrl-C is handed on to it alone, and once.

    On a terminal Ctrl-C reaches every process in the foreground at once. The
    program and the plugins would end before Pulumi, which needs them to cancel
    in order; and Pulumi takes a second signal as the wish to end at once
    (https://github.com/pulumi/pulumi/blob/v3.250.0/pkg/backend/cancellation_scope.go).
    """

    def __init__(self, progress: Progress) -> None:
        """Take the ``pulumi`` that PATH leads to."""
        super().__init__(skip_version_check=True)
        self._progress = progress

    def run(  # noqa: PLR0913 - five of them are the SDK's
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: Callable[[str], object] | None = None,
        on_error: Callable[[str], object] | None = None,
        *,
        given: str | None = None,
    ) -> automation.CommandResult:
        """Run ``pulumi ARGS`` without questions, ``given`` as its input, handing each line on.

        Raises the ``CommandError`` that fits if it fails, and
        ``KeyboardInterrupt`` if it was asked to end meanwhile, once it has.
        """
        process = subprocess.Popen(
            [*ending_with_parent(), self.command, "--non-interactive", *args],
            cwd=cwd,
            env={**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"},
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101 - both are pipes
        assert process.stderr is not None  # noqa: S101
        if given is not None:
            assert process.stdin is not None  # noqa: S101
            # one key or so: it fits the pipe, so that nothing has to be read meanwhile
            process.stdin.write(given)
            process.stdin.close()
        output, errors = _Reader(process.stdout, on_output), _Reader(process.stderr, on_error)
        with interrupts_noted() as interrupts:
            self._wait(process, interrupts)
        result = automation.CommandResult(stdout=output.text(), stderr=errors.text(), code=process.returncode)
        if interrupts:
            raise KeyboardInterrupt
        if process.returncode != 0:
            raise create_command_error(result)
        return result

    def _wait(self, process: subprocess.Popen[str], interrupts: list[float]) -> None:
        sent = 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
                return
            if not interrupts:
                continue
            waited = time.monotonic() - interrupts[0]
            if sent == 0:
                self._progress.say("Interrupted: ending in order (once more: ending at once).")
                process.send_signal(signal.SIGINT)
                sent = 1
            elif sent == 1 and (len(interrupts) > 1 or waited > _CANCEL_SECONDS):
                process.send_signal(signal.SIGINT)
                sent = 2
            elif waited > _CANCEL_SECONDS + _END_SECONDS or len(interrupts) > 2:  # noqa: PLR2004
                process.kill()


class _Reader:
    def __init__(self, stream: IO[str], on_line: Callable[[str], object] | None) -> None:
        self._lines: list[str] = []
        self._stream = stream
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.append(line.rstrip())
            if self._on_line is not None:
                self._on_line(line.rstrip())

    def text(self) -> str:
        self._thread.join(_LAST_LINES_SECONDS)
        return "\n".join(self._lines)


def ending_with_parent() -> list[str]:
    """Return what, before a command, has it asked to end when the thread that started it does."""
    # setpriv is of util-linux, which Debian and Ubuntu always have
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--"]


@contextlib.contextmanager
def interrupts_noted() -> Iterator[list[float]]:
    """Yield the times at which this process was asked to end, instead of ending it."""
    asked: list[float] = []

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    kept = {number: signal.signal(number, note) for number in ASKED_TO_END}
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


# Ctrl-C, `kill`, and a terminal that is closed
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def mark(folder: Path, stack: str) -> None:
    """Have all that this process starts from now on be known as of this run for a stack of ``folder``."""
    os.environ[MARK] = f"{_of(folder, stack)}{_RUN}"


def bypass_proxy_on_loopback() -> None:
    """Have all that this process starts reach this machine's own addresses without a proxy.

    Pulumi, its plugins and the program talk over loopback by gRPC, which takes
    ``https_proxy`` for these too unless ``no_proxy`` names them
    (https://github.com/grpc/grpc/blob/master/doc/environment_variables.md).
    """
    for name in ("no_proxy", "NO_PROXY"):
        named = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*named, *_LOOPBACK]))


def end_orphans(folder: Path, stack: str, progress: Progress) -> None:
    """End what runs of ``stack`` that were killed have left running: Pulumi, its language host and plugins.

    They would go on changing what the next run looks at. To be called while no
    other run for the stack can be under way. Pulumi may take a moment to write
    down what it did.
    """
    kept = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    orphans = [
        process
        for process in psutil.process_iter()
        if process.pid not in kept and _is_of_another_run(process, folder, stack)
    ]
    if not orphans:
        return
    with progress.step(f"Ending what an interrupted run of {stack} left running"):
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(orphans, timeout=_ORPHAN_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_ORPHAN_SECONDS)


def _of(folder: Path, stack: str) -> str:
    return f"{folder}:{stack}:"


def _is_of_another_run(process: psutil.Process, folder: Path, stack: str) -> bool:
    try:
        found = process.environ().get(MARK, "")
        ended = process.status() == psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        # another user's, or gone by now
        return False
    prefix = _of(folder, stack)
    return not ended and found.startswith(prefix) and found != f"{prefix}{_RUN}"


def is_running(pid: int, *, since: float) -> bool:
    """Tell whether the Pulumi of number ``pid`` that ran at ``since``, in seconds since 1970, still does.

    Not so if the number is another program's by now, or a younger Pulumi's, or
    of a process that has ended and was not waited for.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or not process.name().startswith("pulumi"):
            return False
        return process.create_time() <= since + _CLOCK_TOLERANCE
    except psutil.NoSuchProcess:
        return False
