"""Real programs that the relay tests run as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from relayctl.prerequisites import go_programs
from relayctl.prerequisites.progress import Progress


def program(name: go_programs.Name) -> str:
    """Return the path of a program such as ``derper``, built from its pinned modules unless it is cached."""
    return str(go_programs.build(name, Progress()))


class Process:
    """A running program whose output goes to a file."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.command = command
        self.log = log
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=self.env
            )

    def stop(self) -> None:
        """Stop it: politely, after five seconds by force."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    """Run a program until the context ends; ``env`` is added to this process's."""
    process = Process(command, log, {**os.environ, **(env or {})})
    process.start()
    try:
        yield process
    finally:
        process.stop()
