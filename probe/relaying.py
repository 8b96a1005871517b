"""Sends packets from one client through the relay to another and back, which is what a relay is for."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import statistics
import time
from collections.abc import Awaitable, Mapping

from probe import derp
from probe.derp_client import (
    PEER_NOT_HERE,
    DerpClient,
    Health,
    LoginRefusedError,
    Message,
    Packet,
    PeerGone,
    first_message,
    log_in,
)
from probe.fetch import explain
from probe.finding import Check, Finding, Status, failed, ok, skipped
from probe.relay import Relay

CONNECTIONS = 4
"""Connections to each address: two clients, and two that only see the server's key and stay silent.

With that of the upgrade's check they are the five by which `tailscale debug derp`
finds several derpers behind one name (tailscale ``ipn/localapi/debugderp.go``).
"""

ROUNDS = 7  # odd, so that the median is one that was measured
_NO_MORE_ROUNDS_AFTER = 2.0  # seconds
_MOST_OTHER_MESSAGES = 8  # bounds what a relay may say besides the packet that is waited for

# Seconds; as long as Tailscale's own prober waits for a packet (tailscale cmd/derpprobe, -qd-packet-timeout).
_ANSWER_WITHIN = 5.0

# Bytes: a tailnet's longest packet, 1280, with WireGuard's header and tag (tailscale net/tstun/mtu.go).
_PACKET_LENGTH = 1312

# Seconds for which a silent connection must stay open where one that logs in is closed at once. A derper
# waits ten for a silent client, five at most for its admission controller (derp/derpserver/derpserver.go).
_SILENT_AT_LEAST, _SILENT_AT_MOST = 1.0, 6.0

_STRANGERS = (
    "That is how a relay with -verify-clients or -verify-client-url should be. Only a client of the tailnet"
    " can see whether packets pass: `tailscale ping PEER` says 'via DERP' where they go by way of it."
)
_SEVERAL = "several derpers answer, and clients of one do not find those of another"


class RelayingError(Exception):
    """A packet did not come out of the relay as it went in; the message says how."""


class _NotJudgedError(Exception):
    """Packets were not sent, for a reason that is no fault of its own."""

    def __init__(self, seen: str, mend: str, facts: Mapping[str, bool] | None = None) -> None:
        self.mend = mend
        self.facts = facts
        super().__init__(seen)


class Relaying:
    """One check of all addresses of a relay.

    ``keys`` are the server keys that were seen by address, each as 64 hexadecimal
    digits. ``deadline`` is in the event loop's time.
    """

    def __init__(self, relay: Relay, context: ssl.SSLContext, deadline: float) -> None:
        """Open nothing yet."""
        self.relay = relay
        self.context = context
        self.deadline = deadline
        self.keys: dict[str, list[str]] = {}
        self._opened: list[derp.DerpConnection] = []
        self._clients: list[DerpClient] = []
        self._at: dict[str, tuple[DerpClient, DerpClient]] = {}

    async def check(self, addresses: list[str]) -> list[Finding]:
        """Pass packets between two clients at each address, then between clients at different ones.

        Raises nothing that a relay does.
        """
        try:
            # All log in before the first packet goes, so that its time is the relay's and not that of TLS.
            logins = await asyncio.gather(*(self._finding(at, self._two_clients(at)) for at in addresses))
            findings = [finding for finding in logins if finding is not None]
            passed = await asyncio.gather(
                *(self._finding(at, _passes(at, *clients)) for at, clients in self._at.items())
            )
            findings += [finding for finding in passed if finding is not None]
            if len(addresses) > 1:
                findings.append(await self._between(addresses, findings))
            return findings
        finally:
            await asyncio.gather(*(client.close() for client in self._clients))
            await asyncio.gather(*(connection.close() for connection in self._opened))

    async def _finding(self, address: str, work: Awaitable[Finding | None]) -> Finding | None:
        """Await a part of the check until the deadline; what keeps it from its end is a finding."""
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(self.deadline):
                return await work
        except _NotJudgedError as error:
            return skipped(Check.RELAY, address, str(error), mend=error.mend, facts=error.facts)
        except TimeoutError:
            seen = f"no complete answer within {left:.1f} s, which were left for it"
            # On a slow or lossy way the time goes in what comes before: the relay is not to blame for that.
            if left < _ANSWER_WITHIN:
                return skipped(Check.RELAY, address, f"not judged: {seen}", mend="Give more time.")
            return failed(Check.RELAY, address, seen)
        except (derp.DerpError, RelayingError) as error:
            return failed(Check.RELAY, address, str(error))
        except Exception as error:  # noqa: BLE001 -- no answer, however odd, may hide what the other checks found
            return failed(Check.RELAY, address, explain(error))

    async def _two_clients(self, address: str) -> None:
        """Log two clients in at an address."""
        keys = self.keys.setdefault(address, [])

        async def connected() -> derp.DerpConnection:
            connection = await derp.connect(self.relay, address, self.context)
            self._opened.append(connection)
            keys.extend((connection.server_key.hex(), connection.header_key.hex()))
            return connection

        results = await asyncio.gather(*(connected() for _ in range(CONNECTIONS)), return_exceptions=True)
        connections = [result for result in results if isinstance(result, derp.DerpConnection)]
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise RelayingError(f"{len(errors)} of {CONNECTIONS} connections failed: {_said(errors[0])}")
        if len(set(keys)) > 1:
            raise _NotJudgedError(f"not judged: {_SEVERAL}", "Mend server-key first.")

        one, other, silent, _ = connections
        logins = await asyncio.gather(log_in(one), log_in(other), return_exceptions=True)
        clients = [login for login in logins if isinstance(login, DerpClient)]
        self._clients += clients
        refusals = [login for login in logins if isinstance(login, LoginRefusedError)]
        for login in logins:
            if isinstance(login, BaseException) and not isinstance(login, LoginRefusedError):
                raise login
        if len(refusals) == len(logins):
            await _refused(silent, max(refusal.took for refusal in refusals))
        if refusals:
            raise RelayingError(f"of two clients one was let in, and the other not: {refusals[0]}")
        self._at[address] = clients[0], clients[1]

    async def _between(self, addresses: list[str], findings: list[Finding]) -> Finding:
        """Pass packets between a client at the first address and one at each other address."""
        if len({key for keys in self.keys.values() for key in keys}) > 1:
            return skipped(Check.RELAY, "", f"not judged: {_SEVERAL}", mend="Mend server-key first.")
        bad = [f.address for f in findings if f.status is not Status.OK]
        if bad:
            return skipped(
                Check.RELAY,
                "",
                f"not sent from one address to another: none pass at {', '.join(bad)} alone",
                mend="Mend what is told of that address first.",
            )
        first, *rest = addresses
        latencies = []
        for address in rest:
            found = await self._finding("", _passes("", self._at[first][0], self._at[address][1]))
            if found is not None and found.status is Status.SKIPPED:
                return found
            if found is None or found.status is not Status.OK or found.latency is None:
                assert found is not None  # noqa: S101 -- passing packets always ends in a finding
                return failed(
                    Check.RELAY,
                    "",
                    f"from a client at {first} to one at {address}: {found.seen}",
                    mend=_MEND_SPLIT,
                )
            latencies.append(found.latency)
        latency = max(latencies)
        return ok(
            Check.RELAY,
            "",
            f"packets pass between clients at {' and '.join(addresses)}",
            latency=latency,
        )


_MEND_SPLIT = (
    "Let both addresses lead to one and the same derper: clients of one family must reach those of the other."
)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, derp.DerpError) else explain(error)


async def _refused(silent: derp.DerpConnection, took: float) -> None:
    """Raise what it means that no client was let in, by what becomes of a connection that says nothing."""
    hold = min(max(_SILENT_AT_LEAST, 1.5 * took), _SILENT_AT_MOST)
    try:
        async with asyncio.timeout(hold):
            await silent.stream.read_exactly(1)
    except TimeoutError:
        raise _NotJudgedError(
            "only lets in clients of its tailnet: it closes the connection of a client that it does not know",
            _STRANGERS,
            {"verifies_clients": True},
        ) from None
    except (derp.DerpError, OSError) as error:
        raise RelayingError(
            "the connection is closed right after the upgrade, whether the client logs in or not"
        ) from error
    raise RelayingError("the relay goes on talking to a client that has not logged in")


async def _passes(address: str, one: DerpClient, other: DerpClient) -> Finding:
    """Pass packets from one client to the other and back; the latency is the median of both ways together."""
    started = time.perf_counter()
    latencies: list[float] = []
    while len(latencies) < ROUNDS:
        sent = time.perf_counter()
        if latencies and sent - started > _NO_MORE_ROUNDS_AFTER:
            break
        await _pass_on(one, other)
        await _pass_on(other, one)
        latencies.append(time.perf_counter() - sent)
    return ok(
        Check.RELAY,
        address,
        f"{2 * len(latencies)} packets passed between two clients unchanged",
        latency=statistics.median(latencies),
        facts={"packets": 2 * len(latencies), "verifies_clients": False},
    )


async def _pass_on(sender: DerpClient, receiver: DerpClient) -> None:
    packet = Packet(sender.public_key, secrets.token_bytes(_PACKET_LENGTH))
    await sender.send(receiver.public_key, packet.content)
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            for _ in range(_MOST_OTHER_MESSAGES):
                client, message = await first_message(sender, receiver)
                if message == packet and client is receiver:
                    return
                if message != Health(""):
                    raise RelayingError(_instead(message, packet, receiver, at_sender=client is sender))
    except TimeoutError:
        raise RelayingError(
            f"a packet from one client to another did not come out within {_ANSWER_WITHIN:.0f} s, although"
            " both are logged in"
        ) from None
    raise RelayingError("the relay says much, but passes no packet on")


def _instead(message: Message, packet: Packet, receiver: DerpClient, *, at_sender: bool) -> str:
    """Say what a message means that came where a packet should have come."""
    match message:
        case Packet() if at_sender:
            told = "a packet came out at the client that had sent it"
        case Packet(source, content) if source == packet.source:
            changed = "other content" if len(content) == len(packet.content) else f"{len(content)} bytes"
            told = f"a packet of {len(packet.content)} bytes came out with {changed}"
        case Packet():
            told = "a packet came out as one from a client that did not send it"
        case PeerGone(peer, reason) if peer == receiver.public_key:
            why = "is not here" if reason == PEER_NOT_HERE else "has left"
            told = (
                f"the relay says that the other client {why}, although it is logged in: two derpers with one"
                " key answer, or the relay cut it off"
            )
        case PeerGone():
            told = "the relay says that a client is gone that nobody asked for"
        case Health(problem):
            told = f"the relay calls the connection unhealthy: {problem}"
        case _:
            told = "the relay says that it restarts right now; ask again in a minute"
    return told
