"""Tells a person what is being done: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.status import Status

# a log without a line for longer than this looks like a program that hangs
_PLAIN_INTERVAL = 15.0
_TERMINAL_INTERVAL = 0.5
_DETAIL_WIDTH = 60
# in a log, a step that was quicker needs no line for its end
_PLAIN_WORTH_TELLING = 1.0


class Step:
    """One piece of work under way; ``detail`` is the latest line of what it does."""

    def __init__(self, title: str) -> None:
        """Start the clock."""
        self.title = title
        self.detail = ""
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Return how long the step has taken so far."""
        return time.monotonic() - self.started


class Progress:
    """Reports steps and messages to one console.

    On a terminal a step is a line with a spinner, its seconds and its latest
    detail, and leaves one line when it ends. Elsewhere it is a line at its start,
    one every quarter of a minute, and one at its end if it took a second or more.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Report to ``console``, by default standard output."""
        self.console = console or Console(highlight=False, emoji=False)
        self._steps: list[Step] = []

    def say(self, message: str) -> None:
        """Show a message."""
        self.console.print(escape(message), soft_wrap=True, highlight=False)

    def warn(self, message: str) -> None:
        """Show a message that should not be overlooked."""
        self.console.print(f"[bold yellow]! {escape(message)}[/]", soft_wrap=True, highlight=False)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show that ``title`` is under way until the block ends, and how long it took.

        Set ``detail`` of the yielded step to show what it is at. Steps may be
        nested: the inner one is shown while it lasts. A block that raises
        leaves a line that says it failed.
        """
        step = Step(title)
        with self._shown(step):
            try:
                yield step
            except BaseException:
                self.console.print(
                    f"[red]✗[/] {escape(title)} ({step.seconds():.0f} s)", soft_wrap=True, highlight=False
                )
                raise
        if self.console.is_terminal or step.seconds() >= _PLAIN_WORTH_TELLING:
            self.console.print(
                f"[green]✓[/] {escape(title)} ({step.seconds():.0f} s)", soft_wrap=True, highlight=False
            )

    @contextlib.contextmanager
    def _shown(self, step: Step) -> Iterator[None]:
        if self._steps:
            # rich shows one live line at a time, so the outer step's line carries the inner one
            outer = self._steps[-1]
            kept, outer.detail = outer.detail, step.title
            self._steps.append(step)
            try:
                yield
            finally:
                self._steps.pop()
                outer.detail = kept
            return
        self._steps.append(step)
        ended = threading.Event()
        try:
            with contextlib.ExitStack() as stack:
                status: Status | None = None
                if self.console.is_terminal:
                    status = stack.enter_context(self.console.status(escape(step.title)))
                else:
                    self.console.print(f"… {escape(step.title)}", soft_wrap=True, highlight=False)
                heart = threading.Thread(target=self._beat, args=(status, ended), daemon=True)
                heart.start()
                try:
                    yield
                finally:
                    ended.set()
                    heart.join()
        finally:
            self._steps.pop()

    def _beat(self, status: Status | None, ended: threading.Event) -> None:
        interval = _PLAIN_INTERVAL if status is None else _TERMINAL_INTERVAL
        while not ended.wait(interval):
            step = self._steps[-1]
            detail = f": {step.detail[-_DETAIL_WIDTH:]}" if step.detail else ""
            line = f"{escape(step.title)} ({step.seconds():.0f} s){escape(detail)}"
            if status is None:
                self.console.print(f"… still {line}", soft_wrap=True, highlight=False)
            else:
                status.update(line)
