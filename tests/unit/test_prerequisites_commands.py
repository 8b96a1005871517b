"""Other programs are run with a time limit, end with us, and fail with a reason."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from relayctl.prerequisites import progress as progress_module
from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import (
    CommandFailedError,
    DiskFullError,
    NetworkUnreachableError,
    TimeLimitError,
    disk_full_explained,
)
from relayctl.prerequisites.progress import Progress


def plain() -> tuple[Progress, io.StringIO]:
    output = io.StringIO()
    return Progress(Console(file=output, force_terminal=False, width=200)), output


def shell(script: str, *, timeout: float = 5, progress: Progress | None = None) -> str:
    return run(
        ["sh", "-c", script],
        title="doing it",
        mend="do it by hand",
        timeout=timeout,
        progress=progress or plain()[0],
    )


def test_output_of_both_streams_is_returned() -> None:
    assert shell("echo one; echo two >&2").splitlines() == ["one", "two"]


def test_failure_shows_the_last_lines_and_the_mend() -> None:
    with pytest.raises(CommandFailedError) as caught:
        shell("for i in $(seq 1 40); do echo line $i; done; exit 3")
    assert "ended with status 3" in caught.value.what
    assert caught.value.output.splitlines() == [f"line {number}" for number in range(26, 41)]
    assert caught.value.mend == "do it by hand"


def test_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailedError, match="there is no program no-such-program"):
        run(["no-such-program"], title="x", mend="y", timeout=1, progress=plain()[0])


def test_time_limit_ends_the_program_and_its_children() -> None:
    started = time.monotonic()
    with pytest.raises(TimeLimitError, match="not done after 0 s") as caught:
        shell("sleep 300 & echo $!; wait", timeout=0.3)
    assert time.monotonic() - started < 3
    with contextlib.suppress(psutil.NoSuchProcess):
        # an orphan that has ended stays listed until somebody collects it
        assert psutil.Process(int(caught.value.output)).status() == psutil.STATUS_ZOMBIE


def test_full_disk_is_told_from_the_programs_own_words() -> None:
    # /dev/full gives the operating system's own error
    with pytest.raises(DiskFullError, match=r"the disk is full: .* MiB left of") as caught:
        shell("LC_ALL=C cat /etc/passwd > /dev/full")
    assert "make room" in caught.value.mend


@pytest.mark.parametrize(
    "said",
    [
        "dial tcp: lookup proxy.example on 192.0.2.1:53: no such host",
        "E: Failed to fetch http://deb.example/x  Temporary failure resolving 'deb.example'",
        "curl: (6) Could not resolve host: get.example",
        "dial tcp 192.0.2.1:443: connect: network is unreachable",
        "NewConnectionError: [Errno 111] Connection refused",
        "net/http: TLS handshake timeout",
    ],
)
def test_broken_network_is_told_from_the_programs_own_words(said: str) -> None:
    with pytest.raises(NetworkUnreachableError, match="does not answer") as caught:
        shell(f'echo "{said}" >&2; exit 1')
    assert "check this machine's network" in caught.value.mend


def test_reason_is_found_above_the_lines_that_are_shown() -> None:
    with pytest.raises(NetworkUnreachableError):
        shell("echo 'lookup x: no such host'; seq 1 100; exit 1")


def test_full_disk_of_our_own_writing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=str(tmp_path)), disk_full_explained(tmp_path):
        Path("/dev/full").write_text("x")


def test_other_errors_of_the_operating_system_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^\[Errno 5\]"), disk_full_explained(tmp_path):
        raise OSError(errno.EIO, "input/output error")


def test_program_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "from relayctl.prerequisites.commands import run\n"
        "from relayctl.prerequisites.progress import Progress\n"
        f"run(['sh', '-c', 'echo $$ > {pid_file}; exec sleep 300'], title='x', mend='y', timeout=300,"
        " progress=Progress())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 5
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.02)
    child = psutil.Process(int(pid_file.read_text()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_plain_progress_shows_that_a_long_step_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_PLAIN_INTERVAL", 0.1)
    monkeypatch.setattr(progress_module, "_PLAIN_WORTH_TELLING", 0.1)
    progress, output = plain()
    shell("echo 'compiling [red]'; sleep 0.25", progress=progress)
    lines = output.getvalue().splitlines()
    assert lines[0] == "… doing it"
    assert "… still doing it (0 s): compiling [red]" in lines
    assert lines[-1] == "✓ doing it (0 s)"


def test_a_step_that_fails_says_so_and_nested_steps_show_the_inner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_PLAIN_INTERVAL", 0.05)
    progress, output = plain()

    def fail() -> None:
        with progress.step("outer"), progress.step("inner"):
            time.sleep(0.12)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "… still inner (0 s)" in output.getvalue()
    assert output.getvalue().splitlines()[-2:] == ["✗ inner (0 s)", "✗ outer (0 s)"]


def test_progress_on_a_terminal_leaves_one_line_a_step() -> None:
    output = io.StringIO()
    progress = Progress(Console(file=output, force_terminal=True, width=80, no_color=True))
    with progress.step("quick"):
        pass
    assert "✓ quick (0 s)" in output.getvalue()
