"""What changes of sites and images cost: ``make bench-changes``, as root.

A relay is brought up on a host of its own (a network namespace with a Docker
Engine), and asked for from outside of it. Printed are sizes, and times as
ratios to an update that changes nothing, since machines are shared and noisy;
the seconds beside them are this run's alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from delivery import content_of, deliver
from images import built_image
from images.recipe import host_goarch
from settings import settings_from
from tests.checkout import STACK
from tests.docker_host import docker_host
from tests.relay.running_relay import CADDY, DERPER, RunningRelay, running_relay
from tests.relay.sessions import Report

COUNTS = (1, 100, 1000)
# configurations that sessions hold at once
HELD = 10
PAIRS = 25
_MEBIBYTE = 2**20


def main() -> None:
    """Measure and print everything; ten minutes or so."""
    console = Console(width=150, emoji=False)
    with (
        docker_host() as host,
        tempfile.TemporaryDirectory() as folder,
        running_relay(host, Path(folder), network={"name": "bench"}, volumes={"prefix": "b_"}) as relay,
    ):
        console.print(_sites(relay))
        console.print(_upgrades(relay))


def _redirects(count: int, mark: str = "") -> list[dict[str, Any]]:
    return [
        {"names": [f"s{n}.localhost"], "redirect": f"https://s{n}{mark}.example.com"} for n in range(count)
    ]


def _sites(relay: RunningRelay) -> Table:
    table = Table("sites", title="Sites: sizes, and times as multiples of an update that changes nothing")
    for heading in (
        "resources",
        "state",
        "Caddyfile",
        "nothing changes",
        "one site more",
        "it answers",
        "delivery alone",
        "Caddy's heap",
        "held by a session",
    ):
        table.add_column(heading, justify="right")
    relay.up()
    base = _seconds(relay.up)
    for count in COUNTS:
        relay.up(sites=_redirects(count))
        nothing = _seconds(lambda count=count: relay.up(sites=_redirects(count)))
        with _answering(relay, f"s{count}.localhost") as answered:
            added = _seconds(lambda count=count: relay.up(sites=_redirects(count + 1)))
        with relay.checkout.pulumi() as pulumi:
            state = pulumi("stack", "export", "--stack", STACK).stdout
        heap, each, alone = _held(relay, count)
        table.add_row(
            str(count),
            str(len(json.loads(state)["deployment"]["resources"])),
            f"{len(state) / 1000:.0f} kB",
            f"{len(_content(relay, _redirects(count)).caddyfile) / 1000:.1f} kB",
            f"{nothing / base:.2f}  ({nothing:.1f} s)",
            f"{added / base:.2f}  ({added:.1f} s)",
            f"{answered[0] / base:.2f}  ({answered[0]:.1f} s)",
            f"{alone / base:.2f}  ({alone:.1f} s)",
            f"{heap / _MEBIBYTE:.1f} MiB",
            f"{each / _MEBIBYTE:.2f} MiB",
        )
    relay.up()
    return table


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _content(relay: RunningRelay, sites: list[dict[str, Any]]) -> Any:
    return content_of(settings_from({**relay.settings, "sites": sites}, "bench"), STACK)


@contextlib.contextmanager
def _answering(relay: RunningRelay, name: str) -> Iterator[list[float]]:
    """Yield a list that has, after the block, the seconds until the site answered from outside."""
    found: list[float] = []
    started = time.perf_counter()

    def ask() -> None:
        while not found:
            with contextlib.suppress(AssertionError):
                relay.get(name)
                found.append(time.perf_counter() - started)
            time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    yield found
    thread.join()


def _held(relay: RunningRelay, count: int) -> tuple[int, float, float]:
    """Return Caddy's heap, what one more configuration in use adds, in bytes, and seconds for a delivery."""
    client = relay.host.client()
    caddy = str(client.containers.get(CADDY).id)
    program = str(client.images.get(built_image("deliver", host_goarch()).name).id)

    def change(number: int) -> int:
        content = _content(relay, _redirects(count, f"-{number}"))
        return deliver(client, content, {}, caddy=caddy, program=program, stack=STACK).heap

    before = change(0)
    alone = statistics.median(_seconds(lambda n=n: change(n)) for n in range(1, 6))
    with contextlib.ExitStack() as opened:
        for number in range(HELD):
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            opened.enter_context(relay.sessions(folder, pairs=1, interval="500ms"))
            after = change(100 + number)
    return before, (after - before) / HELD, alone


def _upgrades(relay: RunningRelay) -> Table:
    table = Table("change", title=f"What {2 * PAIRS} clients in sessions see")
    for heading in (
        "sessions ended",
        "packets lost without an end",
        "away, median",
        "away, longest",
        "pause, longest",
    ):
        table.add_column(heading, justify="right")
    client = relay.host.client()
    with tempfile.TemporaryDirectory() as folder:
        with relay.sessions(Path(folder), pairs=PAIRS, interval="50ms") as running:
            for number in range(1, 6):
                relay.up(sites=_redirects(number))
            _row(table, "five updates of sites", running.end())
        for name, group in ((DERPER, "derper"), (CADDY, "caddy")):
            current = client.containers.get(name).image.id
            tag = f"bench/{name}:new"
            client.images.build(
                fileobj=io.BytesIO(f"FROM {current}\nLABEL new=1\n".encode()), tag=tag, rm=True
            )
            changed = {**relay.settings[group], "image": tag, "allowUnpinned": True, "healthcheck": []}
            with relay.sessions(Path(folder), pairs=PAIRS, interval="50ms") as running:
                relay.up(**{group: changed})
                _row(table, f"another image of {group}", running.end())
            relay.up()
    return table


def _row(table: Table, what: str, report: Report) -> None:
    away = [outage.seconds for outage in report.outages]
    table.add_row(
        what,
        str(len({drop.client for drop in report.session_drops})),
        str(report.lost),
        f"{statistics.median(away):.2f} s" if away else "",
        f"{max(away):.2f} s" if away else "",
        "" if away else f"{report.longest_pause:.2f} s",
    )


if __name__ == "__main__":
    main()
