"""DERP sessions held through a relay by Tailscale's own client, while what is in between changes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from tests.relay.programs import program

# bench/sessions waits a second for packets under way, then writes its report
_END_WITHIN = 30.0


@dataclass(frozen=True)
class Drop:
    """The end of a session: of client number ``client``, which was told to connect to ``connect``.

    ``at`` is in seconds since the sessions were ready, negative before.
    """

    client: int
    connect: str
    at: float
    error: str


@dataclass(frozen=True)
class Outage:
    """The time from the last packet that a client received before a drop to the first one after it.

    ``since`` is in seconds since the sessions were ready. ``drops`` is more than 1
    if the sessions that followed dropped before a packet came. ``ended`` is false
    if none came at all; ``seconds`` then goes to the end.
    """

    client: int
    since: float
    seconds: float
    drops: int
    ended: bool


@dataclass(frozen=True)
class Latency:
    """Seconds from sending a packet to receiving it."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Direction:
    """What one client sent to its partner; clients are told by number."""

    sender: int
    receiver: int
    sent: int
    received: int
    lost: int
    lost_in_outages: int
    duplicated: int
    reordered: int


@dataclass(frozen=True)
class Report:
    """What came of the sessions; ``bench/sessions/report.go`` says what each part is.

    ``lost`` are packets that were sent and never received though neither end's
    session dropped; ``lost_in_outages`` are those whose loss goes with a drop.
    ``unsent`` and ``late`` were not sent: without a session, or since the sender
    was held up. ``seconds`` is from ready to the end, ``longest_pause`` the
    seconds that a client waited at most for a packet. ``latency`` is ``None``
    if no packet was received.
    """

    sessions: int
    started: datetime
    seconds: float
    sent: int
    received: int
    lost: int
    lost_in_outages: int
    unsent: int
    late: int
    duplicated: int
    reordered: int
    session_drops: tuple[Drop, ...]
    reconnects: int
    outages: tuple[Outage, ...]
    longest_pause: float
    latency: Latency | None
    server_keys: tuple[str, ...]
    connect_errors: Mapping[str, int]
    notices: Mapping[str, int]
    directions: tuple[Direction, ...]


class Sessions:
    """Sessions that are ready: every client has received a packet from its partner."""

    def __init__(self, process: subprocess.Popen[str], report: Path, log: Path) -> None:
        self.process = process
        self.report = report
        self.log = log

    def end(self) -> Report:
        """End the sessions, once, and return what came of them.

        Raises ``RuntimeError`` if they ended before in another way.
        """
        # with its standard input it ends
        self.process.communicate(timeout=_END_WITHIN)
        if self.process.returncode:
            raise RuntimeError(f"sessions exited {self.process.returncode}: {self.log.read_text()}")
        return TypeAdapter(Report).validate_json(self.report.read_text())


@contextlib.contextmanager
def sessions(  # noqa: PLR0913 - the program's options
    command_prefix: Sequence[str],
    *,
    ca: Path,
    domain: str,
    connect: Sequence[str],
    pairs: int = 25,
    interval: str = "20ms",
    folder: Path,
) -> Iterator[Sessions]:
    """Hold two sessions a pair through the relay at ``domain``, and end them with the context.

    Partners send each other a packet every ``interval``, a duration as Go writes
    it. ``command_prefix`` runs the program elsewhere, such as with ``nsenter`` in
    a namespace. ``ca`` is a PEM file with the only roots that are trusted.
    ``connect`` are addresses with ports, such as ``[2001:db8::1]:443``, which the
    clients take in turn. Report and messages go to ``folder``.

    Raises ``RuntimeError`` with the reason if they are not ready within a minute.
    """
    report, log = folder / "sessions.json", folder / "sessions.log"
    options = {
        "url": f"https://{domain}/derp",
        "connect": ",".join(connect),
        "ca": str(ca),
        "pairs": str(pairs),
        "interval": interval,
        "report": str(report),
    }
    command = [program("sessions"), *(f"-{name}={value}" for name, value in options.items())]
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*command_prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            # it gives up by itself
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the sessions did not get ready: {log.read_text()}")
            yield Sessions(process, report, log)
        finally:
            if process.poll() is None:
                process.kill()
