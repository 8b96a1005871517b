"""Runs all checks of a relay at once and within a time limit."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import tenacity
from dns.nameserver import Nameserver

from probe import (
    debug_pages,
    dns_records,
    fetch,
    https,
    network,
    open_ports,
    port80,
    reflexive_address,
    server_key,
    stun,
)
from probe.finding import Check, Finding, Status, failed, is_up, skipped
from probe.relay import STUN_PORT, Relay
from probe.relaying import Relaying

TIMEOUT = 10.0
"""Seconds that a client has for connecting to a relay (tailscale ``derp/derphttp/derphttp_client.go``)."""

_ORDER = {check: index for index, check in enumerate(Check)}
_BEHIND_TLS = (Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE)
_AT_PORT_80 = (Check.CAPTIVE_PORTAL, Check.REDIRECT)
_NO_TLS = "not asked: no trusted TLS connection"
_NO_PLAIN_HTTP = "the relay is said to serve no plain HTTP"
_STUN_ALONE_IS_SERVED = "it is said to serve STUN alone"
_AT_STUN = (Check.STUN, Check.STUN_ADDRESS, Check.NETWORK)

# These hold the limit for each of their requests, so that one without answer hides none that is answered.
_KEEPS_TIME = (Check.DEBUG_HTTPS, Check.DEBUG_HTTP, Check.PORTS)

# Want of time is no failure of these: what they ask has been seen to answer, or is not the relay.
_NOT_JUDGED_WITHOUT_TIME = (Check.NETWORK, Check.DNS)

# Seconds of a head start for STUN: its latency is to be the network's, not that of our own TLS work.
_STUN_ALONE = 0.25

# The share of the time that is left which the requests whose latency is told have for themselves, and then
# the packets through the relay, before the many requests that only see what is closed.
_SHARE = 0.4


def check_relay(
    relay: Relay,
    *,
    timeout: float = TIMEOUT,
    expected_addresses: Iterable[str] = (),
    dns_servers: Iterable[str] = (),
    all_ports: bool = False,
) -> list[Finding]:
    """Check a relay as a client would and return the findings by address and check.

    ``timeout`` is the limit for all together, in seconds. ``expected_addresses``
    are literal addresses, besides this machine's own, that STUN may rightly
    return, such as that of a NAT before it. ``dns_servers`` are literal addresses
    of DNS servers to ask instead of the system's, with a port where it is not 53
    (``192.0.2.1:5353``, ``[2001:db8::1]:5353``). ``all_ports`` asks every TCP port
    from 1 to 65535 instead of well-known ones.

    Nothing that a relay does raises: what is broken is a finding. Raises
    ``ValueError`` for an expected address or DNS server that is none and
    ``RuntimeError`` where an event loop runs already: await
    ``check_relay_async`` there.
    """
    return asyncio.run(
        check_relay_async(
            relay,
            timeout=timeout,
            expected_addresses=expected_addresses,
            dns_servers=dns_servers,
            all_ports=all_ports,
        )
    )


async def check_relay_async(
    relay: Relay,
    *,
    timeout: float = TIMEOUT,  # noqa: ASYNC109 -- a limit for what is found until then, not a cancellation
    expected_addresses: Iterable[str] = (),
    dns_servers: Iterable[str] = (),
    all_ports: bool = False,
) -> list[Finding]:
    """Do what ``check_relay`` does, within a running event loop."""
    run = _Run(relay, timeout, [ipaddress.ip_address(text) for text in expected_addresses])
    servers = dns_records.nameservers(dns_servers)
    # Its own context: httpx offers ALPN through the one it is given, which clients of DERP do not.
    async with fetch.Client(relay.tls_context(), run.deadline) as http, asyncio.TaskGroup() as tasks:
        addresses = [address for address in relay.addresses if run.has_route(address)]
        stun_tasks = [tasks.create_task(run.at_stun(address, tasks)) for address in addresses]
        if addresses:
            await asyncio.wait(stun_tasks, timeout=min(_STUN_ALONE, timeout))
            tasks.create_task(run.at_dns(servers))
            answers = [
                tasks.create_task(work)
                for address in addresses
                for work in (run.at_https(address, http), run.at_port_80(address, http))
            ]
            await asyncio.wait(answers, timeout=run.left() * _SHARE)
            packets = tasks.create_task(run.relay_packets(addresses))
            await asyncio.wait([packets], timeout=run.left() * _SHARE)
            for address in addresses:
                tasks.create_task(run.at_doors(address, http))
                tasks.create_task(run.at_ports(address, all_ports=all_ports))
    # What is about the whole relay, with no address, comes last.
    position = {address: index for index, address in enumerate((*relay.addresses, ""))}
    return sorted(run.findings, key=lambda finding: (position[finding.address], _ORDER[finding.check]))


def wait_until_up(  # noqa: PLR0913 -- what check_relay takes, and how to wait
    relay: Relay,
    *,
    timeout: float,
    each: float = TIMEOUT,
    pause: float = 1.0,
    expected_addresses: Iterable[str] = (),
    dns_servers: Iterable[str] = (),
    all_ports: bool = False,
    on_attempt: Callable[[int, list[Finding]], None] | None = None,
) -> list[Finding]:
    """Check a relay again and again until it is up; for right after a deployment.

    No attempt begins later than ``timeout`` after the first; one that has begun
    has ``each``, so that the last one does not fail for want of time. ``pause``
    is the time between them, all in seconds. ``on_attempt`` is called with each
    attempt's number, from 1, and its findings.

    Returns the last attempt's findings, whether the relay came up (``is_up``) or
    not. Raises like ``check_relay``.
    """
    expected, servers = tuple(expected_addresses), tuple(dns_servers)
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda findings: not is_up(findings)),
        stop=tenacity.stop_before_delay(timeout),
        wait=tenacity.wait_fixed(pause),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else [],
    )
    number = 0

    def attempt() -> list[Finding]:
        nonlocal number
        number += 1
        findings = check_relay(
            relay, timeout=each, expected_addresses=expected, dns_servers=servers, all_ports=all_ports
        )
        if on_attempt:
            on_attempt(number, findings)
        return findings

    return attempts(attempt)


class _Run:
    """One check of all addresses of a relay."""

    def __init__(
        self,
        relay: Relay,
        limit: float,
        expected: list[reflexive_address.Address],
    ) -> None:
        self.relay = relay
        self.context = relay.tls_context()
        self.limit = limit
        self.deadline = asyncio.get_running_loop().time() + limit
        self.expected = expected
        self.findings: list[Finding] = []

    def has_route(self, address: str) -> bool:
        """Tell whether the kernel knows a way to the address; report if it does not."""
        problem = _no_route(address)
        if problem:
            self.report(
                skipped(
                    Check.ROUTE,
                    address,
                    f"this machine has no way to {address}: {problem}; nothing was checked there",
                    mend="Ask from a machine that has an address and a route of this family.",
                )
            )
        return not problem

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return max(self.deadline - asyncio.get_running_loop().time(), 0.0)

    async def at_https(self, address: str, http: fetch.Client) -> None:
        """Check the certificate, and what is behind it only if clients would get that far."""
        relay, context = self.relay, self.context
        if relay.https_port is None:
            self.skip((Check.TLS, *_BEHIND_TLS), address, _STUN_ALONE_IS_SERVED)
            return
        await self.watch(Check.TLS, address, https.check_tls(relay, address, context))
        if not self.passed(Check.TLS, address):
            self.skip(_BEHIND_TLS, address, _NO_TLS, "Mend tls first.")
            return
        await asyncio.gather(
            self.watch(Check.PAGE, address, https.check_page(relay, address, http)),
            self.watch(Check.LATENCY_CHECK, address, https.check_latency(relay, address, http)),
            self.watch(Check.UPGRADE, address, https.check_upgrade(relay, address, context)),
        )

    async def at_port_80(self, address: str, http: fetch.Client) -> None:
        """Check what answers plain HTTP."""
        relay, port = self.relay, self.relay.http_port
        if port is None:
            self.skip(_AT_PORT_80, address, _NO_PLAIN_HTTP)
            return
        if not relay.can_port_80:
            self.skip(_AT_PORT_80, address, "the relay is said not to answer clients on port 80")
            return
        await asyncio.gather(
            self.watch(Check.CAPTIVE_PORTAL, address, port80.check_captive_portal(address, port, http)),
            self.watch(Check.REDIRECT, address, port80.check_redirect(relay, address, port, http)),
        )

    async def at_doors(self, address: str, http: fetch.Client) -> None:
        """See that the debug pages are closed."""
        relay, port = self.relay, self.relay.http_port
        doors = []
        if self.passed(Check.TLS, address):
            work = debug_pages.check_debug_https(relay, address, http)
            doors.append(self.watch(Check.DEBUG_HTTPS, address, work))
        elif relay.https_port is None:
            self.skip([Check.DEBUG_HTTPS], address, _STUN_ALONE_IS_SERVED)
        else:
            self.skip([Check.DEBUG_HTTPS], address, _NO_TLS, "Mend tls first.")
        if port is None:
            self.skip([Check.DEBUG_HTTP], address, _NO_PLAIN_HTTP)
        else:
            work = debug_pages.check_debug_http(relay, address, port, http)
            doors.append(self.watch(Check.DEBUG_HTTP, address, work))
        await asyncio.gather(*doors)

    def passed(self, check: Check, address: str) -> bool:
        """Tell whether a check has passed at an address."""
        return any(
            finding.status in (Status.OK, Status.WARNING)
            for finding in self.findings
            if (finding.check, finding.address) == (check, address)
        )

    async def at_ports(self, address: str, *, all_ports: bool = False) -> None:
        """See which ports are open."""
        work = open_ports.check_ports(
            self.relay,
            address,
            within=self.left(),
            all_ports=all_ports,
            same_machine=_local_address(address) == address,
        )
        await self.watch(Check.PORTS, address, work)

    async def at_dns(self, servers: Sequence[Nameserver]) -> None:
        """Compare DNS with the relay's addresses."""
        await self.watch(Check.DNS, "", dns_records.check_dns(self.relay, servers, within=self.left()))

    async def relay_packets(self, addresses: Sequence[str]) -> None:
        """Send packets through the relay where it could be upgraded to; compare all keys that it showed."""
        upgrades = {finding.address: finding for finding in self.findings if finding.check is Check.UPGRADE}
        usable = [address for address in addresses if self.passed(Check.UPGRADE, address)]
        for address in addresses:
            upgrade = upgrades.get(address)
            if upgrade is not None and upgrade.status is Status.SKIPPED:
                self.skip([Check.RELAY], address, upgrade.seen, upgrade.mend)
            elif address not in usable:
                self.skip([Check.RELAY], address, "not asked: no upgrade to DERP", "Mend derp-upgrade first.")
        relaying = Relaying(self.relay, self.context, self.deadline)
        self.findings += await relaying.check(usable)
        keys = {
            address: [str(upgrades[address].facts["server_key"]), *relaying.keys[address]]
            for address in usable
        }
        if self.relay.https_port is not None:
            self.report(server_key.judge(keys, self.relay.server_key))

    async def at_stun(self, address: str, tasks: asyncio.TaskGroup) -> None:
        """Ask STUN and judge the address in its answer; measure by it what gets lost."""
        port = self.relay.stun_port
        if port is None:
            self.skip(_AT_STUN, address, "the relay is said to have no STUN")
            return
        within = min(stun.ANSWER_WITHIN, self.left())
        try:
            answer = await stun.ask(address, port, within=within)
        except TimeoutError:
            problem = f"no answer from UDP port {port} within {within:.1f} s"
        except (stun.StunError, OSError) as error:
            problem = fetch.explain(error) if isinstance(error, OSError) else str(error)
        else:
            self.report(_stun_answered(address, answer))
            self.report(_stun_address(address, answer, self.expected))
            series = network.check_network(address, port, within=self.left())
            tasks.create_task(self.watch(Check.NETWORK, address, series))
            return
        self.report(failed(Check.STUN, address, problem))
        self.skip(_AT_STUN[1:], address, "not judged: STUN gave no answer", "Mend stun first.")

    async def watch(self, check: Check, address: str, work: Awaitable[Finding]) -> Finding:
        """Await a check until the deadline; whatever it raises is a finding."""
        try:
            async with asyncio.timeout_at(None if check in _KEEPS_TIME else self.deadline):
                finding = await work
        except TimeoutError:
            seen = f"no complete answer within {self.limit:.1f} s"
            if check in _NOT_JUDGED_WITHOUT_TIME:
                finding = skipped(check, address, f"not judged: {seen}", mend="Give more time.")
            else:
                finding = failed(check, address, seen)
        except Exception as error:  # noqa: BLE001 -- no answer, however odd, may hide what the other checks found
            finding = failed(check, address, fetch.explain(error))
        self.report(finding)
        return finding

    def report(self, finding: Finding) -> None:
        self.findings.append(finding)

    def skip(self, checks: Iterable[Check], address: str, seen: str, mend: str = "") -> None:
        for check in checks:
            self.report(skipped(check, address, seen, mend=mend))


def _no_route(address: str) -> str:
    """Return why the kernel knows no way to an address; empty if it does."""
    try:
        _local_address(address)
    except OSError as error:
        return fetch.explain(error)
    return ""


def _local_address(address: str) -> str:
    """Return the own address that the kernel would ask from; raises ``OSError`` if it knows no way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect((address, STUN_PORT))  # sends nothing
        return str(route.getsockname()[0])


def _stun_answered(address: str, answer: stun.StunAnswer) -> Finding:
    return Finding(
        Check.STUN,
        address,
        Status.OK,
        f"answered {answer.mapped} port {answer.mapped_port}",
        latency=answer.latency,
        facts={"mapped_address": str(answer.mapped), "mapped_port": answer.mapped_port},
    )


def _stun_address(
    address: str, answer: stun.StunAnswer, expected: list[reflexive_address.Address]
) -> Finding:
    judged = reflexive_address.judge(ipaddress.ip_address(address), answer.local, answer.mapped, expected)
    return Finding(
        Check.STUN_ADDRESS,
        address,
        judged.status,
        judged.seen,
        judged.meaning,
        judged.mend,
        facts={"mapped_address": str(answer.mapped), "local_address": str(answer.local)},
    )
