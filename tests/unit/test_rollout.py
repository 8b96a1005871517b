"""The order of a rollout, what stops it, and its record; its children are a program of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from relayctl import children, rollout
from relayctl.children import Child
from relayctl.fleet import Member
from relayctl.rollout import Outcome, Part, Record, Rollout
from settings.base import PROJECT_FOLDER

# In place of relayctl: notes its begin and end, waits while a file says so, and ends as another one says.
_PROGRAM = """
import pathlib, signal, sys, time
here, (command, stack, *options) = pathlib.Path.cwd(), sys.argv[1:]
def note(what):
    with (here / "said").open("a") as file:
        file.write(f"{what} {stack}\\n")
def end(number, frame):
    note("asked")
    sys.exit(130)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
note("begin")
print("at work", *options)
while (here / f"wait-{stack}").exists():
    time.sleep(0.01)
note("end")
code = here / f"code-{stack}"
if code.exists():
    print("error: it is", "broken\\n  to mend it: do", sep=" ")
    sys.exit(int(code.read_text()))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that the program is in, and what it says."""
    (tmp_path / "relayctl").mkdir()
    (tmp_path / "relayctl/__main__.py").write_text(_PROGRAM)
    monkeypatch.setattr(children, "PROJECT_FOLDER", tmp_path)
    monkeypatch.setattr(rollout, "PROJECT_FOLDER", tmp_path)
    monkeypatch.setattr(rollout, "run_folder", lambda: tmp_path / ".relayctl")
    return tmp_path


def said(folder: Path) -> list[str]:
    return (folder / "said").read_text().splitlines() if (folder / "said").exists() else []


def record_of(stacks: str, canaries: str = "") -> Record:
    members = [Member(stack) for stack in stacks]
    return rollout.new_record(members, list(canaries), keep_sessions=False)


def rolled(record: Record, codes: Mapping[str, int], folder: Path, *, parallel: int = 1) -> Record:
    for stack, code in codes.items():
        (folder / f"code-{stack}").write_text(str(code))
    inputs = {part.stack: f"inputs of {part.stack}" for part in record.parts}
    rolling = Rollout(record, inputs, parallel=parallel, console=Console(quiet=True))
    rolling.run()
    return rolling.record


def outcomes(record: Record) -> dict[str, Outcome]:
    return {part.stack: part.outcome for part in record.parts}


DONE, WAITING, FAILED, CHECK_FAILED = Outcome.DONE, Outcome.WAITING, Outcome.FAILED, Outcome.CHECK_FAILED


@pytest.mark.parametrize(
    ("canaries", "codes", "expected"),
    [
        ("", {}, [DONE, DONE, DONE]),
        ("", {"a": 1}, [FAILED, DONE, DONE]),
        ("", {"a": 4}, [CHECK_FAILED, WAITING, WAITING]),
        ("", {"b": 4}, [DONE, CHECK_FAILED, WAITING]),
        ("a", {"a": 1}, [FAILED, WAITING, WAITING]),
        ("a", {"a": 130}, [Outcome.INTERRUPTED, WAITING, WAITING]),
        ("a", {"b": 1}, [DONE, FAILED, DONE]),
        ("", {"a": -1}, [FAILED, DONE, DONE]),
    ],
)
def test_what_stops_a_rollout(
    canaries: str, codes: dict[str, int], expected: list[Outcome], folder: Path
) -> None:
    record = rolled(record_of("abc", canaries), codes, folder)
    assert [part.outcome for part in record.parts] == expected
    assert record.is_stopped() == (WAITING in expected)
    assert Record.load() == record
    assert said(folder) == [
        f"{what} {part.stack}"
        for part in record.parts
        if part.outcome is not WAITING
        for what in ("begin", "end")
    ]


def test_canaries_are_first_and_alone_whatever_else_goes_at_once(folder: Path) -> None:
    record = rolled(record_of("abcd", "cb"), {}, folder, parallel=4)
    assert [part.stack for part in record.parts] == ["b", "c", "a", "d"]
    assert said(folder)[:4] == ["begin b", "end b", "begin c", "end c"]


def test_those_that_run_beside_one_whose_check_fails_end_by_themselves(folder: Path) -> None:
    """And no further one begins."""
    (folder / "wait-b").touch()
    (folder / "code-a").write_text("4")
    record = record_of("abc")

    class Watched(Rollout):
        def _ended(self, child: Child) -> None:
            super()._ended(child)
            (folder / "wait-b").unlink(missing_ok=True)

    rolling = Watched(record, dict.fromkeys("abc", ""), parallel=2, console=Console(quiet=True))
    rolling.run()
    assert [part.outcome for part in rolling.record.parts] == [CHECK_FAILED, DONE, WAITING]


def test_not_more_than_the_limit_run_at_once(folder: Path) -> None:
    rolled(record_of("abcde"), {}, folder, parallel=2)
    running = most = 0
    for line in said(folder):
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most <= 2


def test_the_error_and_the_log_are_kept(folder: Path) -> None:
    part = rolled(record_of("a"), {"a": 1}, folder).parts[0]
    assert part.error == "it is broken\n  to mend it: do"
    assert (folder / part.log).read_text().startswith("at work")


def test_a_resumed_rollout_does_what_is_not_done_or_has_other_inputs(folder: Path) -> None:
    record = rolled(record_of("abcd"), {"b": 1}, folder).with_part("d", outcome=Outcome.RUNNING)
    inputs = {stack: f"inputs of {stack}" for stack in "abd"} | {"c": "edited"}
    resumed = record.resumed(inputs)
    assert [part.stack for part in resumed.left()] == ["b", "c", "d"]
    assert resumed.part("b") == Part("b")
    assert resumed.part("a").outcome is DONE
    (folder / "said").unlink()
    (folder / "code-b").unlink()
    assert rolled(resumed, {}, folder).left() == []
    assert [line for line in said(folder) if line.startswith("begin")] == ["begin b", "begin c", "begin d"]


def test_keep_sessions_is_for_each_region(folder: Path) -> None:
    record = rollout.new_record([Member("a")], [], keep_sessions=True)
    part = rolled(record, {}, folder).parts[0]
    assert (folder / part.log).read_text() == "at work --keep-sessions\n"
    loaded = Record.load()
    assert loaded is not None
    assert loaded.keep_sessions


@pytest.mark.parametrize("text", ["", "{", "{}", '{"format": 0}', '{"format": 1, "parts": [{"stack": "a"}]}'])
def test_a_record_that_cannot_be_read_is_none(text: str, folder: Path) -> None:
    del folder
    rollout.record_file().parent.mkdir(parents=True)
    rollout.record_file().write_text(text)
    assert Record.load() is None


def test_interrupted_it_waits_for_those_that_run_and_begins_no_other(folder: Path) -> None:
    for stack in "ab":
        (folder / f"wait-{stack}").touch()

    class Interrupted(Rollout):
        def _begun(self, child: Child) -> None:
            super()._begun(child)
            if child.stack == "b":
                wait_for_lines(folder, "begin a", "begin b")
                os.kill(os.getpid(), signal.SIGINT)

    rolling = Interrupted(record_of("abc"), dict.fromkeys("abc", ""), parallel=2, console=Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        rolling.run()
    assert outcomes(rolling.record) == {"a": Outcome.INTERRUPTED, "b": Outcome.INTERRUPTED, "c": WAITING}
    assert sorted(said(folder)) == ["asked a", "asked b", "begin a", "begin b"]


def test_one_that_cannot_say_what_it_does_any_more_keeps_what_became_of_those_that_run(folder: Path) -> None:
    """Its terminal is gone, or what read its output."""
    (folder / "wait-a").touch()

    class Broken(Rollout):
        def _begun(self, child: Child) -> None:
            super()._begun(child)
            wait_for_lines(folder, "begin a")
            raise BrokenPipeError

    rolling = Broken(record_of("ab"), dict.fromkeys("ab", ""), parallel=1, console=Console(quiet=True))
    with pytest.raises(BrokenPipeError):
        rolling.run()
    assert outcomes(rolling.record) == {"a": Outcome.INTERRUPTED, "b": WAITING}
    assert said(folder) == ["begin a", "asked a"]


def test_the_error_is_found_where_colours_are_forced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    program = "from rich.console import Console\nConsole().print('[bold red]error:[/] it broke')\nexit(1)\n"
    (folder / "relayctl/__main__.py").write_text(program)
    child = Child("a", ["up", "a"], folder / "log")
    children.run([child], parallel=1, console=Console(quiet=True))
    assert (child.code, child.error()) == (1, "it broke")


def test_children_of_a_killed_run_are_asked_to_end(folder: Path) -> None:
    (folder / "wait-a").touch()
    script = f"""
        from pathlib import Path
        from rich.console import Console
        from relayctl import children
        children.PROJECT_FOLDER = Path({str(folder)!r})
        child = children.Child("a", ["up", "a"], Path({str(folder / "log")!r}))
        children.run([child], parallel=1, console=Console())
    """
    command: Sequence[str] = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=PROJECT_FOLDER, stdout=subprocess.DEVNULL) as process:
        wait_for_lines(folder, "begin a")
        process.kill()
    wait_for_lines(folder, "begin a", "asked a")


def wait_for_lines(folder: Path, *lines: str) -> None:
    deadline = time.monotonic() + 30
    while not set(lines) <= set(said(folder)):
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.01)
