"""A stand-in for a provider plugin, started as a launcher would, and a Pulumi project for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.recipe import ROOT


@dataclass
class Project(ABC):
    """A Pulumi project of the test's own with the stack ``test``; its program declares what a file says."""

    folder: Path
    environment: Mapping[str, str]
    cli: Path

    @abstractmethod
    def write(self, resources: Mapping[str, Any]) -> None:
        """Have the program declare ``resources``, arguments by name."""

    def run(self, *arguments: str, fails: bool = False, json_only: bool = False) -> str:
        done = subprocess.run(
            [str(self.cli), *arguments, "--stack", "test", "--non-interactive", "--color=never"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout if json_only else done.stdout + done.stderr

    def up(self, resources: Mapping[str, Any], *arguments: str, fails: bool = False) -> str:
        self.write(resources)
        return self.run("up", "--yes", "--skip-preview", *arguments, fails=fails)

    def cancelled_once(self, begun: Callable[[], object]) -> None:
        """Run an update, and interrupt it once ``begun`` is true or 30 seconds are over; it must fail."""
        process = subprocess.Popen(
            [str(self.cli), "up", "--yes", "--skip-preview", "--stack", "test", "--non-interactive"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not begun() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode != 0, said

    def refresh(self) -> str:
        return self.run("refresh", "--yes", "--skip-preview")

    def preview(self, resources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the steps that an update would take, but for those that change nothing, by resource."""
        self.write(resources)
        steps = json.loads(self.run("preview", "--json", json_only=True))["steps"]
        return {step["urn"].rsplit("::", 1)[-1]: step for step in steps if step["op"] != "same"}

    def unchanged(self) -> None:
        self.run("preview", "--expect-no-changes")


@contextlib.contextmanager
def stand_in(name: str, log: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the stand-in for the plugin ``name`` as a launcher would, yield it and its port."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", f"sandbox.{name}_provider"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
