"""Looks for TCP ports that are open at a relay's address and should not be."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping

from probe.finding import CONSEQUENCES, Check, Finding, failed, ok, skipped, warning
from probe.relay import Relay

NEVER_OPEN: Mapping[int, str] = {
    2019: "Caddy's admin API",  # caddyserver.com/docs/api
    2375: "Docker's API without TLS",  # docs.docker.com/reference/cli/dockerd
    2376: "Docker's API with TLS",
    2377: "Docker's swarm management",
    2379: "etcd",
    2380: "etcd",
    3340: "derper -dev",  # tailscale cmd/derper/derper.go
    4243: "Docker's API, its port of old",
    9180: "Caddy's metrics",
    9323: "Docker's metrics",  # docs.docker.com/engine/daemon/prometheus
    10250: "Kubernetes' kubelet",
    10255: "Kubernetes' kubelet",
}
"""What gives the host or its internals to everybody who can connect, and what it is."""

# Those of them that as a rule want a client's certificate: swarms and clusters cannot do without.
_LOCKED_AS_A_RULE = {2376, 2377, 2379, 2380, 10250}

# nmap's hundred most often open ports (`nmap -F`, nmap-services), ...
_MOST_OFTEN_OPEN = (
    *(7, 9, 13, 21, 22, 23, 25, 26, 37, 53, 79, 80, 81, 88, 106, 110, 111, 113, 119, 135, 139, 143, 144, 179),
    *(
        199,
        389,
        427,
        443,
        444,
        445,
        465,
        513,
        514,
        515,
        543,
        544,
        548,
        554,
        587,
        631,
        646,
        873,
        990,
        993,
        995,
    ),
    *(1025, 1026, 1027, 1028, 1029, 1110, 1433, 1720, 1723, 1755, 1900, 2000, 2001, 2049, 2121, 2717, 3000),
    *(3128, 3306, 3389, 3986, 4899, 5000, 5009, 5051, 5060, 5101, 5190, 5357, 5432, 5631, 5666, 5800, 5900),
    *(6000, 6001, 6646, 7070, 8000, 8008, 8009, 8080, 8081, 8443, 8888, 9100, 9999, 10000, 32768),
    *(49152, 49153, 49154, 49155, 49156, 49157),
)
# ... and what containers publish: databases, queues, dashboards and metrics.
_OFTEN_PUBLISHED = (
    *(1883, 3001, 3100, 3478, 5001, 5672, 6379, 6443, 8086, 8090, 8123, 8200, 8500, 9000, 9001, 9090, 9091),
    *(9092, 9093, 9200, 9300, 9443, 11211, 15672, 27017),
)
_ALL = range(1, 1 << 16)

_AT_ONCE = 64
_AT_ONCE_FOR_ALL = 256  # a process may open 1024 files, unless it is told otherwise (getrlimit(2))

# Seconds. A lost SYN is sent again after one (RFC 6298, section 2), so that one may get lost.
_ANSWER_WITHIN = 1.5

# Ports at which nobody listens: some of those that are given out for connections (RFC 6335, section 6). More
# than one, since each might be taken by chance.
_DYNAMIC = range(49160, 1 << 16)
_CONTROLS = 3


async def check_ports(
    relay: Relay, address: str, *, within: float, all_ports: bool = False, same_machine: bool = False
) -> Finding:
    """Connect to ports that should be closed; one that answers is a failure.

    Those that must never be open are asked in any case; with ``other_ports`` known
    usual ones as well, or with ``all_ports`` every one. A port without answer is
    taken for closed. ``within`` is the limit for all together, in seconds. Where the
    host has other uses, what as a rule lets nobody in without a certificate is a
    warning.
    """
    own = {port for port in (relay.https_port, relay.http_port) if port is not None}
    allowed = own | set(relay.other_ports or ())
    # What must never be open is a failure even where it is named, but not where it is the relay's own.
    never = [port for port in NEVER_OPEN if port not in own]
    usual: Iterable[int] = ()
    if all_ports:
        usual = _ALL
    elif relay.other_ports is not None:
        usual = (*_MOST_OFTEN_OPEN, *_OFTEN_PUBLISHED)
    asked = [*never, *(port for port in usual if port not in allowed and port not in NEVER_OPEN)]
    controls = secrets.SystemRandom().sample([port for port in _DYNAMIC if port not in allowed], _CONTROLS)
    scan = _Scan(address, within, _AT_ONCE_FOR_ALL if all_ports else _AT_ONCE)
    await scan.run([*controls, *asked])

    if scan.open.issuperset(controls):
        return skipped(
            Check.PORTS,
            address,
            "not judged: something on the way answers for every port",
            mend="Ask from a network without a proxy or a firewall that does.",
        )
    judged_all = all_ports and relay.other_ports is None
    bad = sorted(port for port in scan.open if port in never or (port in asked and not judged_all))
    others = sorted(port for port in scan.open if port in asked and port not in bad)
    facts = {"open_ports": ", ".join(map(str, sorted(scan.open.intersection(asked))))}
    if bad and same_machine:
        return skipped(
            Check.PORTS,
            address,
            f"open here: {_told(bad)}; not judged: asked from the same machine, which sees more than others",
            mend="Ask again from another machine.",
            facts=facts,
        )
    if bad and relay.other_ports is None and _LOCKED_AS_A_RULE.issuperset(bad):
        return warning(
            Check.PORTS,
            address,
            f"open: {_told(bad)}; whether it asks for a certificate was not seen",
            meaning=CONSEQUENCES[Check.PORTS][0],
            mend="Let in by the firewall only who has to use it.",
            facts=facts,
        )
    if bad:
        return failed(Check.PORTS, address, f"open: {_told(bad)}", facts=facts)
    if scan.left:
        return skipped(
            Check.PORTS,
            address,
            f"none is open of those asked, but for {scan.left} of {len(asked)} there was no time"
            f"{f' ({scan.problem})' if scan.problem else ''}",
            mend="Give more time, or ask fewer relays at once.",
            facts=facts,
        )
    seen = f"none of {len(asked)} ports is open" if not others else f"open, and not judged: {_told(others)}"
    return ok(Check.PORTS, address, seen, facts=facts)


def _told(ports: Collection[int], most: int = 20) -> str:
    told = [f"{port} ({NEVER_OPEN[port]})" if port in NEVER_OPEN else str(port) for port in ports]
    more = len(told) - most
    return ", ".join(told[:most]) + (f" and {more} more" if more > 0 else "")


class _NoSocketError(Exception):
    """A port could not be asked; the message says why."""


class _Scan:
    """Connects to many ports of one address, some at once."""

    def __init__(self, address: str, within: float, at_once: int) -> None:
        self.address = address
        self.deadline = asyncio.get_running_loop().time() + within
        self.at_once = at_once
        self.open: set[int] = set()
        self.left = 0
        self.problem = ""

    async def run(self, ports: Collection[int]) -> None:
        waiting = iter(ports)
        self.left = len(ports)

        async def some() -> None:
            for port in waiting:
                if asyncio.get_running_loop().time() >= self.deadline:
                    return
                try:
                    if await self._answers(port):
                        self.open.add(port)
                except _NoSocketError as error:
                    self.problem = str(error)
                    return
                self.left -= 1

        await asyncio.gather(*(some() for _ in range(min(self.at_once, len(ports)))))

    async def _answers(self, port: int) -> bool:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        try:
            trial = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            # This process may open no more files: nothing is said of the relay by that.
            raise _NoSocketError(error.strerror) from error
        with trial:
            trial.settimeout(0)
            try:
                async with asyncio.timeout_at(min(loop.time() + _ANSWER_WITHIN, self.deadline)):
                    await loop.sock_connect(trial, (self.address, port))
                # On the same machine a connection to a free port can meet itself (RFC 9293, section 3.5).
                return bool(trial.getsockname() != trial.getpeername())
            except OSError:
                return False
