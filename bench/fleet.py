"""What fleets of regions cost: ``make bench-fleet``, as root.

Each size has a sandbox's cloud of its own: a Hetzner Cloud API whose servers are
network namespaces of this machine, each with a Docker Engine. Printed are the
seconds of each command for all regions, those of processors, and the most memory
that it and all that it started had at once. Memory is the proportional set size
(proc_pid_smaps_rollup(5)), in which a page that several processes share counts once.
The servers' own is apart: in truth it is not on this machine.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from tests.interruptions import started
from tests.regions.cloud import Cloud
from tests.regions.region import Region, cloud_with_zone

SIZES = (1, 5, 20)
# The first id of a region: tailcfg/derpmap.go leaves 900 to 999 to users.
_FIRST = 901
_MEBIBYTE = 2**20
_SAMPLE_SECONDS = 0.5
# An hour: more than a size takes on two cores.
_LIMIT = 3600.0


@dataclass(frozen=True)
class Cost:
    """Seconds, those of processors, the most bytes that the processes had at once, and how many these were.

    Seconds of processors are of all processes that have ended; other work on the machine changes them little.
    """

    seconds: float
    processor: float
    memory: int
    processes: int


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.IntRange(1, 99), help="How many regions.")
@click.option("--parallel", type=click.IntRange(1), default=2, show_default=True, help="Regions at once.")
def main(sizes: tuple[int, ...], parallel: int) -> None:
    """Measure fleets of each size and print what they cost; half an hour on two cores."""
    console = Console(width=150, emoji=False)
    table = Table(
        "regions",
        title=f"Fleets, {parallel} regions at once on {psutil.cpu_count()} cores",
        title_justify="left",
    )
    for heading in (*_COMMANDS, "servers and sandbox"):
        table.add_column(heading, justify="right")
    for size in sizes or SIZES:
        costs, servers = _measured(size, parallel)
        cells = [_told(cost, size) for cost in costs]
        table.add_row(
            str(size), *cells, f"{servers / _MEBIBYTE:.0f} MiB\n{servers / size / _MEBIBYTE:.0f} each"
        )
        console.print(table)


_COMMANDS = {
    "up, all is made": ("up", "--all"),
    "up, nothing changes": ("up", "--all"),
    "preview": ("preview",),
    "status --drift": ("status", "--drift"),
}


def _told(cost: Cost, size: int) -> str:
    return (
        f"{cost.seconds:.0f} s, {cost.seconds / size:.1f} a region\n"
        f"{cost.processor:.0f} s of processors\n"
        f"{cost.memory / _MEBIBYTE:.0f} MiB, {cost.processes} processes"
    )


def _measured(size: int, parallel: int) -> tuple[list[Cost], int]:
    """Return what each command costs for ``size`` regions, and the bytes of their servers and the sandbox."""
    with tempfile.TemporaryDirectory() as folder, cloud_with_zone(Path(folder)) as cloud:
        for path in (cloud.checkout.folder / "stacks").glob("Pulumi.*.yaml"):
            path.unlink()
        for number in range(size):
            Region(cloud, f"r{number:02}").write_settings(_FIRST + number, "nbg1")
        costs = []
        for name, arguments in _COMMANDS.items():
            cost = _cost(cloud, ["fleet", *arguments, "--parallel", str(parallel)])
            costs.append(cost)
            print(f"{size} regions, {name}: {_told(cost, size)}", file=sys.stderr, flush=True)  # noqa: T201
        return costs, _memory(_tree(psutil.Process()))


def _cost(cloud: Cloud, arguments: list[str]) -> Cost:
    """Run relayctl, which must end well, and return what it cost."""
    begun, used = time.perf_counter(), _processor_seconds()
    with started(cloud.checkout, *arguments) as (process, log), _sampled(process) as samples:
        code = process.wait(_LIMIT)
        seconds, processor = time.perf_counter() - begun, _processor_seconds() - used
    if code:
        raise SystemExit(f"relayctl {' '.join(arguments)} ended with {code}:\n{log.read_text()}")
    return Cost(seconds, processor, max(memory for memory, _ in samples), max(count for _, count in samples))


def _processor_seconds() -> float:
    """Return what processes that this one waited for have used, and those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _sampled(process: subprocess.Popen[bytes]) -> Iterator[list[tuple[int, int]]]:
    """Yield a list that is filled with the bytes and the number of the processes that ``process`` started."""
    samples: list[tuple[int, int]] = [(0, 0)]
    ended = threading.Event()

    def sample() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            while not ended.wait(_SAMPLE_SECONDS):
                tree = _tree(top)
                samples.append((_memory(tree), len(tree)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _tree(top: psutil.Process) -> list[psutil.Process]:
    return [top, *top.children(recursive=True)]


def _memory(processes: Iterable[psutil.Process]) -> int:
    """Return the bytes of ``processes``; those that have ended meanwhile have none."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            total += process.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
