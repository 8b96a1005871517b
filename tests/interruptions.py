"""Runs of the command line that are cut short, in the ways in which that happens to people."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from relayctl import pulumi_process
from tests.checkout import Checkout

Killer = Callable[[subprocess.Popen[bytes]], None]


@contextlib.contextmanager
def started(checkout: Checkout, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yield a run of relayctl in a session of its own, and the file that it writes to."""
    log = checkout.folder / f"run-{arguments[0]}.log"
    command = [sys.executable, "-m", "relayctl", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command if checkout.used_on is None else checkout.used_on.command(command),
            cwd=checkout.folder,
            env={**os.environ, **checkout.environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cut_short(checkout: Checkout, killer: Killer, *arguments: str, at: str = "", after: float = 0) -> str:
    """Start a run, end it ``after`` seconds from when it says ``at``, and return what it said."""
    with started(checkout, *arguments) as (process, log):
        wait_for(lambda: at in log.read_text() or process.poll() is not None, 120)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        if process.poll() is None:
            killer(process)
        process.wait(90)
        return log.read_text()


def processes(checkout: Checkout, stack: str) -> list[str]:
    """Return what runs, of this checkout's runs for ``stack``."""
    mark = f"{checkout.folder}:{stack}:"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = process.environ().get(pulumi_process.MARK, "")
            if told.startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def assert_no_complaint(said: str) -> None:
    """Assert that only the kill ended a run; Pulumi, orphaned, may tell what that made of its calls."""
    assert not [line for line in said.splitlines() if line.startswith(("error", "Traceback"))], said


def kill_it(process: subprocess.Popen[bytes]) -> None:
    """Do as the out-of-memory killer does."""
    process.kill()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Do as a power cut, as far as a test can: all at once, whatever their sessions."""
    top = psutil.Process(process.pid)
    every = [*top.children(recursive=True), top]
    for one in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Do as Ctrl-C on a terminal does, to the whole foreground group."""
    os.killpg(process.pid, signal.SIGINT)


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
