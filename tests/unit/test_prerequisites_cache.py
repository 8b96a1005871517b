"""What is in the cache is whole, whoever was killed or came at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from relayctl.prerequisites import cache
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = Progress(Console(quiet=True))

# fills an entry slowly and counts how often that is done
FILLER = """
import sys, time, pathlib
from relayctl.prerequisites import cache
from relayctl.prerequisites.progress import Progress
entry, log, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
def fill(folder):
    with log.open("a") as file:
        file.write("filled\\n")
    (folder / "half").write_text("x")
    time.sleep(seconds)
    (folder / "other half").write_text("x")
cache.entry(entry, fill, Progress(), whole=lambda folder: (folder / "other half").exists())
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DERP_RELAYS_CACHE", str(tmp_path / "cache"))


def start(entry: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", FILLER, str(entry), str(log), str(seconds)], stdout=subprocess.DEVNULL
    )


def has(name: str) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).exists()


def test_entry_is_filled_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "program").write_text("x")

    for _ in range(2):
        path = cache.entry(tmp_path / "a" / "entry", fill, QUIET, whole=has("program"))
        assert (path / "program").read_text() == "x"
    assert len(calls) == 1
    assert path.stat().st_mode & 0o777 == 0o755


def test_fill_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry(tmp_path / "entry", fill, QUIET, whole=has("program"))
    assert [path.name for path in tmp_path.iterdir()] == [".entry.lock"]


def test_entry_that_lost_a_file_is_filled_anew(tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "stray").write_text("x")
    cache.entry(tmp_path / "entry", lambda folder: (folder / "program").touch(), QUIET, whole=has("program"))
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["program"]


def test_two_at_once_fill_it_once(tmp_path: Path) -> None:
    both = [start(tmp_path / "entry", tmp_path / "log", 0.5) for _ in range(2)]
    assert [process.wait(10) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "filled\n"
    assert (tmp_path / "entry" / "other half").exists()


def test_killed_while_filling_then_run_again(tmp_path: Path) -> None:
    first = start(tmp_path / "entry", tmp_path / "log", 60)
    until = time.monotonic() + 5
    while not list(tmp_path.glob(".unfinished-*/half")):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "entry").exists()
    assert start(tmp_path / "entry", tmp_path / "log", 0).wait(10) == 0
    assert (tmp_path / "entry" / "other half").exists()
    assert not list(tmp_path.glob(".unfinished-*"))


def test_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PrerequisiteError, match=r"cannot be made: Not a directory") as caught:
        cache.entry(tmp_path / "file" / "below" / "entry", lambda _: None, QUIET, whole=has("x"))
    assert "DERP_RELAYS_CACHE" in caught.value.mend


def test_failure_is_remembered_for_a_while() -> None:
    failure = cache.RememberedFailure("plugin-docker-1", seconds=3600)
    assert failure.reason() is None
    failure.remember("no such host")
    assert failure.reason() == "no such host"
    assert cache.RememberedFailure("plugin-docker-1", seconds=0).reason() is None
    failure.forget()
    assert failure.reason() is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"time": "soon", "reason": "x"}', json.dumps({"time": 9e12, "reason": "x"})],
)
def test_record_that_makes_no_sense_is_no_failure(text: str) -> None:
    failure = cache.RememberedFailure("x")
    failure.remember("y")
    failure.path.write_text(text)
    assert failure.reason() is None
