"""What our probe finds of faults that are made for real, and that it finds none where there is none.

`make bench-faults` prints beside it what Tailscale's own tools say of the same faults.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from tests.docker_host import DockerHost
from tests.relay.faults import FAULTS, Fault, WatchedRelay, watched_relay


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRelay]:
    folder = tmp_path_factory.mktemp("relay")
    with watched_relay(host, folder, network={"name": "faults"}, volumes={"prefix": "f_"}) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_named_and_nothing_else_is(relay: WatchedRelay, fault: Fault) -> None:
    relay.wait_until_well()
    with fault.made(relay):
        assert fault.missed(relay.findings()) == []


def test_no_well_relay_is_called_broken_in_a_hundred_runs(
    relay: WatchedRelay, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.wait_until_well()
    runs = relay.probe(80, at_once=2)
    with busy():
        runs += relay.probe(20, at_once=2)
    wrong = [
        (finding["check"], finding["address"], finding["status"], finding["seen"])
        for _, findings in runs
        for finding in findings
        if finding["status"] in {"failed", "warning"}
    ]
    with capsys.disabled():
        slowest = max(seconds for seconds, _ in runs)
        click.echo(
            f"{len(runs)} runs, of which {len(wrong)} findings are wrong; the slowest took {slowest:.1f} s"
        )
    assert len(runs) == 100
    assert wrong == []


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep every processor of the machine at work."""
    work = [
        subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for process in work:
            process.kill()
            process.wait()
