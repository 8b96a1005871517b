"""Runs of this command line, one a stack, each a process of its own, some at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from relayctl import pulumi_process
from relayctl.prerequisites.errors import disk_full_explained
from settings.base import PROJECT_FOLDER

_POLL_SECONDS = 0.1
# A log without a line for longer than this looks like a program that hangs.
_PLAIN_INTERVAL = 15.0
# Bytes at the end of a log that hold its last line, and its error: a list of bad values is the longest.
_TAIL = 16 * 1024
# What errors that commands end with begin with (relayctl.command).
_ERROR = "error: "
# Width of what is written to a log, for tables.
_COLUMNS = "120"
# A log is no terminal, though colours may be forced for this process: errors are found by their first word.
_A_LOG = {"TTY_COMPATIBLE": "0", "FORCE_COLOR": ""}


@dataclass
class Child:
    """A run of the command line for ``stack``, which writes to ``log`` alone.

    With ``found`` it is told to write there, as JSON, what it found (``--found``).
    """

    stack: str
    arguments: Sequence[str]
    log: Path
    found: Path | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0
    code: int | None = None
    """The exit code, negative for a signal; ``None`` while it runs."""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches it through this process alone.

        It is asked to end when this process is killed. Raises ``DiskFullError``
        if the log cannot be written.
        """
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One that a killed run left may still write to the file of before.
        self.log.unlink(missing_ok=True)
        if self.found is not None:
            self.found.unlink(missing_ok=True)
        told = [] if self.found is None else ["--found", str(self.found)]
        with disk_full_explained(self.log), self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *pulumi_process.ending_with_parent(),
                    *(sys.executable, "-m", "relayctl", *self.arguments, *told),
                ],
                cwd=PROJECT_FOLDER,
                env={"COLUMNS": _COLUMNS, **os.environ, **_A_LOG, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.began = time.monotonic()

    def has_ended(self) -> bool:
        """Tell whether it has ended, and keep how and when it did."""
        assert self._process is not None  # noqa: S101 - it was started
        if self.code is None:
            self.code = self._process.poll()
            self.seconds = time.monotonic() - self.began
        return self.code is not None

    def ask_to_end(self) -> None:
        """Ask it to end in order; the second time it ends at once (`pulumi_process`)."""
        assert self._process is not None  # noqa: S101
        # Before it listens to signals, this ends it without a trace.
        self._process.send_signal(signal.SIGTERM)

    def what_it_found(self) -> Any:
        """Return what it wrote to ``found``; ``None`` if it did not, as for a stack that was never up."""
        try:
            return None if self.found is None else json.loads(self.found.read_text())
        except FileNotFoundError:
            return None

    def last_line(self) -> str:
        """Return what it said last."""
        return next((line.strip() for line in reversed(self._tail().splitlines()) if line.strip()), "")

    def error(self) -> str:
        """Return the error that it ended with, without the word; else its last line that says something."""
        _, found, error = f"\n{self._tail()}".rpartition(f"\n{_ERROR}")
        if found:
            return error.strip()
        lines = [line.strip() for line in self._tail().splitlines() if any(map(str.isalnum, line))]
        return lines[-1] if lines else f"ended with {self.code} without a word"

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def run(  # noqa: PLR0913 - what begins, how many, whether, and who is told
    children: Sequence[Child],
    *,
    parallel: int,
    console: Console,
    may_begin: Callable[[], bool] = lambda: True,
    begun: Callable[[Child], None] = lambda _: None,
    ended: Callable[[Child], None] = lambda _: None,
) -> None:
    """Run ``children`` in their order, ``parallel`` at once, each beginning only if it ``may_begin``.

    ``begun`` and ``ended`` are called as each does. When this process is asked
    to end, no more begin, and those that run are asked to; raises
    ``KeyboardInterrupt`` once they have. If anything else is raised, they are
    asked to end as well, and waited for.
    """
    waiting, running = list(children), list[Child]()
    asked = 0
    with pulumi_process.interrupts_noted() as interrupts, _shown(console) as shown:
        try:
            while running or (waiting and may_begin() and not interrupts):
                while waiting and len(running) < parallel and may_begin() and not interrupts:
                    child = waiting.pop(0)
                    child.start()
                    running.append(child)
                    shown.begin(child)
                    begun(child)
                time.sleep(_POLL_SECONDS)
                if len(interrupts) > asked:
                    asked = len(interrupts)
                    shown.say(f"Interrupted: {_named(running)} to end in order (once more: at once).")
                    for child in running:
                        child.ask_to_end()
                for child in [each for each in running if each.has_ended()]:
                    running.remove(child)
                    shown.end(child)
                    ended(child)
                shown.update(running)
        except BaseException:
            _end(running, ask=not asked)
            for child in running:
                ended(child)
            raise
    if interrupts:
        raise KeyboardInterrupt


def _named(children: Sequence[Child]) -> str:
    return f"waiting for {', '.join(child.stack for child in children)}"


def _end(running: Sequence[Child], *, ask: bool) -> None:
    """Wait for those that run, and ask them to end, unless they were: the second time they end at once."""
    for child in running:
        if ask:
            child.ask_to_end()
    for child in running:
        while not child.has_ended():
            time.sleep(_POLL_SECONDS)


class _Shown:
    """What is under way: a line a child with its last words, on a terminal moving, elsewhere now and then."""

    def __init__(self, console: Console, live: Progress | None) -> None:
        self._console = console
        self._live = live
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def say(self, message: str) -> None:
        self._console.print(escape(message), soft_wrap=True)

    def begin(self, child: Child) -> None:
        if self._live is not None:
            self._tasks[child.stack] = self._live.add_task(escape(child.stack), total=None, said="")
            return
        self._told[child.stack] = child.began
        self.say(f"… {child.stack}: relayctl {' '.join(child.arguments)}")

    def update(self, running: Sequence[Child]) -> None:
        for child in running:
            if self._live is not None:
                self._live.update(self._tasks[child.stack], said=escape(child.last_line()))
            elif time.monotonic() - self._told[child.stack] > _PLAIN_INTERVAL:
                self._told[child.stack] = time.monotonic()
                self.say(f"… {child.stack} ({child.seconds:.0f} s): {child.last_line()}")

    def end(self, child: Child) -> None:
        if self._live is not None:
            self._live.remove_task(self._tasks.pop(child.stack))
        if child.code == 0:
            self._console.print(f"[green]✓[/] {escape(child.stack)} ({child.seconds:.0f} s)", soft_wrap=True)
            return
        why = child.error().partition("\n")[0]
        self._console.print(
            f"[red]✗[/] {escape(child.stack)} ({child.seconds:.0f} s): {escape(why)}", soft_wrap=True
        )


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[_Shown]:
    if not console.is_terminal:
        yield _Shown(console, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield _Shown(console, live)
