"""Runs all checks of a relay at once and within a time limit."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable

import tenacity

from probe import fetch, https, port80, reflexive_address, stun
from probe.finding import Check, Finding, Status, failed, is_up, skipped
from probe.relay import Relay

TIMEOUT = 10.0
"""Seconds that a client has for connecting to a relay (tailscale ``derp/derphttp/derphttp_client.go``)."""

_ORDER = {check: index for index, check in enumerate(Check)}
_BEHIND_TLS = (Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE, Check.DEBUG_HTTPS)
_AT_PORT_80 = (Check.CAPTIVE_PORTAL, Check.REDIRECT, Check.DEBUG_HTTP)

# These hold the limit for each of their requests, so that one without answer hides none that is answered.
_KEEPS_TIME = (Check.DEBUG_HTTPS, Check.DEBUG_HTTP)

# Seconds of a head start for STUN: its latency is to be the network's, not that of our own TLS work.
_STUN_ALONE = 0.25


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
    # Its own context: httpx offers ALPN through the one it is given, which clients of DERP do not.
    async with fetch.Client(relay.tls_context(), run.deadline) as http, asyncio.TaskGroup() as tasks:
        addresses = [address for address in relay.addresses if run.has_route(address)]
        stun_tasks = [tasks.create_task(run.at_stun(address)) for address in addresses]
        if stun_tasks:
            await asyncio.wait(stun_tasks, timeout=min(_STUN_ALONE, timeout))
        for address in addresses:
            run.start(address, http, tasks)
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
        problem = _no_route(address, self.relay.stun_port)
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

    def start(self, address: str, http: fetch.Client, tasks: asyncio.TaskGroup) -> None:
        """Start all checks of one address but STUN."""
        tasks.create_task(self.at_https(address, http, tasks))
        port = self.relay.http_port
        if port is None:
            for check in _AT_PORT_80:
                self.report(skipped(check, address, "the relay is said to serve no plain HTTP"))
            return
        relay = self.relay
        for check, work in (
            (Check.CAPTIVE_PORTAL, port80.check_captive_portal(address, port, http)),
            (Check.REDIRECT, port80.check_redirect(relay, address, port, http)),
            (Check.DEBUG_HTTP, port80.check_debug_http(relay, address, port, http)),
        ):
            tasks.create_task(self.watch(check, address, work))

    async def at_https(self, address: str, http: fetch.Client, tasks: asyncio.TaskGroup) -> None:
        """Check the certificate, and what is behind it only if clients would get that far."""
        relay, context = self.relay, self.context
        tls = await self.watch(Check.TLS, address, https.check_tls(relay, address, context))
        if tls.status not in (Status.OK, Status.WARNING):
            for check in _BEHIND_TLS:
                self.report(
                    skipped(check, address, "not asked: no trusted TLS connection", mend="Mend TLS first.")
                )
            return
        for check, work in (
            (Check.PAGE, https.check_page(relay, address, http)),
            (Check.LATENCY_CHECK, https.check_latency(relay, address, http)),
            (Check.UPGRADE, https.check_upgrade(relay, address, context)),
            (Check.DEBUG_HTTPS, https.check_debug_https(relay, address, http)),
        ):
            tasks.create_task(self.watch(check, address, work))

    async def at_stun(self, address: str) -> None:
        """Ask STUN and judge the address in its answer."""
        left = self.deadline - asyncio.get_running_loop().time()
        within = max(min(stun.ANSWER_WITHIN, left), 0.0)
        port = self.relay.stun_port
        try:
            answer = await stun.ask(address, port, within=within)
        except TimeoutError:
            problem = f"no answer from UDP port {port} within {within:.1f} s"
        except (stun.StunError, OSError) as error:
            problem = fetch.explain(error) if isinstance(error, OSError) else str(error)
        else:
            self.report(_stun_answered(address, answer))
            self.report(_stun_address(address, answer, self.expected))
            return
        self.report(failed(Check.STUN, address, problem))
        self.report(
            skipped(Check.STUN_ADDRESS, address, "not judged: STUN gave no answer", mend="Mend STUN first.")
        )

    async def watch(self, check: Check, address: str, work: Awaitable[Finding]) -> Finding:
        """Await a check until the deadline; whatever it raises is a finding."""
        try:
            async with asyncio.timeout_at(None if check in _KEEPS_TIME else self.deadline):
                finding = await work
        except TimeoutError:
            finding = failed(check, address, f"no complete answer within {self.limit:.1f} s")
        except Exception as error:  # noqa: BLE001 -- no answer, however odd, may hide what the other checks found
            finding = failed(check, address, fetch.explain(error))
        self.report(finding)
        return finding

    def report(self, finding: Finding) -> None:
        self.findings.append(finding)


def _no_route(address: str, port: int) -> str:
    """Return why the kernel knows no way to an address; empty if it does. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as route:
            route.connect((address, port))
    except OSError as error:
        return fetch.explain(error)
    return ""


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
