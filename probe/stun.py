"""STUN as Tailscale's clients speak it: one request, one answer (RFC 5389).

The packets follow tailscale ``net/stun/stun.go``. A relay's STUN server answers
only requests that carry Tailscale's SOFTWARE attribute and a right FINGERPRINT,
so a general STUN client gets no answer from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TRANSACTION_ID_LENGTH = 12  # RFC 5389, section 6
_HEADER = struct.Struct(">HHI12s")  # type, length of what follows, magic cookie, transaction id
_ATTRIBUTE = struct.Struct(">HH")  # type, length without padding
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_MAGIC_COOKIE = 0x2112A442

# Attribute numbers and the software's name: tailscale net/stun/stun.go.
_SOFTWARE = 0x8022
_FINGERPRINT = 0x8028
_MAPPED_ADDRESS = 0x0001
_XOR_MAPPED_ADDRESS = 0x0020
_XOR_MAPPED_ADDRESS_ALTERNATIVE = 0x8020
_TAILSCALE = b"tailnode"

_FINGERPRINT_XOR = 0x5354554E  # RFC 5389, section 15.5
_ADDRESS_LENGTHS = {1: 4, 2: 16}  # RFC 5389, section 15.1: address families and their bytes

ANSWER_WITHIN = 3.0
"""Seconds that a client waits for STUN (tailscale ``net/netcheck/netcheck.go``, ``stunProbeTimeout``)."""

_RESEND_AFTER = 0.5  # RFC 5389, section 7.2.1: the first retransmission's wait
_SO_TIMESTAMPNS = 35  # Linux include/uapi/asm-generic/socket.h; Python has no name for it
_TIMESPEC = struct.Struct("@ll")
_LONGEST_PACKET = 1500
_LONGEST_ANCILLARY = 64
_MOST_BAD_PACKETS = 64  # bounds the work that a flood of wrong packets can make


class StunError(Exception):
    """The answer is not one to our request; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """What the relay's STUN server saw, and from where we asked.

    ``mapped`` is our address as the server saw it, ``local`` as our kernel chose
    it for this route; both with ports. ``latency`` is in seconds.
    """

    mapped: Address
    mapped_port: int
    local: Address
    local_port: int
    latency: float


def binding_request(transaction_id: bytes) -> bytes:
    """Return the 40 bytes of a client's request; ``transaction_id`` is 12 bytes."""
    software = _ATTRIBUTE.pack(_SOFTWARE, len(_TAILSCALE)) + _TAILSCALE
    length = len(software) + _ATTRIBUTE.size + 4
    packet = _HEADER.pack(_BINDING_REQUEST, length, _MAGIC_COOKIE, transaction_id) + software
    fingerprint = zlib.crc32(packet) ^ _FINGERPRINT_XOR
    return packet + _ATTRIBUTE.pack(_FINGERPRINT, 4) + fingerprint.to_bytes(4)


def parse_response(packet: bytes) -> tuple[bytes, Address, int]:
    """Return transaction id, mapped address (an IPv4-mapped one as IPv4) and port.

    Raises ``StunError`` for anything but a well-formed success response.
    """
    if len(packet) < _HEADER.size:
        raise StunError(f"{len(packet)} bytes are too few for a STUN header")
    kind, length, cookie, transaction_id = _HEADER.unpack_from(packet)
    if cookie != _MAGIC_COOKIE:
        raise StunError("no STUN packet: its magic cookie is wrong")
    if kind != _BINDING_SUCCESS:
        raise StunError(f"STUN message of type 0x{kind:04x} instead of a success response")
    body = packet[_HEADER.size :][:length]
    if len(body) < length:
        raise StunError("the STUN packet is cut off")

    mapped = None
    plain = None
    for attribute, value in _attributes(body):
        if attribute in (_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_ALTERNATIVE):
            mapped = _address(value, _MAGIC_COOKIE.to_bytes(4) + transaction_id)
        elif attribute == _MAPPED_ADDRESS:
            plain = _address(value, bytes(16))
    found = mapped or plain
    if found is None:
        raise StunError("the STUN packet names no mapped address")
    return transaction_id, *found


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    while body:
        if len(body) < _ATTRIBUTE.size:
            raise StunError("an attribute of the STUN packet is cut off")
        attribute, length = _ATTRIBUTE.unpack_from(body)
        padded_end = _ATTRIBUTE.size + (length + 3) // 4 * 4
        if padded_end > len(body):
            raise StunError("an attribute of the STUN packet is cut off")
        yield attribute, body[_ATTRIBUTE.size :][:length]
        body = body[padded_end:]


def _address(value: bytes, mask: bytes) -> tuple[Address, int]:
    if len(value) < 4:  # noqa: PLR2004 -- reserved byte, family, port: RFC 5389, section 15.1
        raise StunError("the mapped address is cut off")
    length = _ADDRESS_LENGTHS.get(value[1])
    if length is None:
        raise StunError(f"the mapped address is of the unknown family {value[1]}")
    octets = value[4 : 4 + length]
    if len(octets) < length:
        raise StunError("the mapped address is cut off")
    port = int.from_bytes(value[2:4]) ^ int.from_bytes(mask[:2])
    address = ipaddress.ip_address(bytes(a ^ b for a, b in zip(octets, mask, strict=False)))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped, port
    return address, port


class _Exchange(asyncio.DatagramProtocol):
    """Collects the first answer to any of the requests sent; remembers what else came."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[Address, int, float]] = asyncio.get_running_loop().create_future()
        self.sent: dict[bytes, float] = {}
        self.bad_packets = 0
        self.last_problem = ""

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 -- the base class's names
        arrived = time.perf_counter()
        if self.answer.done():
            return
        try:
            transaction_id, address, port = parse_response(data)
            if transaction_id not in self.sent:
                raise StunError("the answer's transaction id is not ours")  # noqa: TRY301
        except StunError as error:
            self.bad_packets += 1
            self.last_problem = str(error)
            if self.bad_packets >= _MOST_BAD_PACKETS:
                self.answer.set_exception(
                    StunError(f"{self.bad_packets} packets came, none is an answer; the last: {error}")
                )
            return
        self.answer.set_result((address, port, arrived - self.sent[transaction_id]))

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def ask(address: str, port: int, *, within: float = ANSWER_WITHIN) -> StunAnswer:
    """Ask the STUN server at a literal address, sending again while no answer comes.

    ``within`` is in seconds. Raises ``StunError`` if only wrong answers came,
    ``TimeoutError`` if none came, ``OSError`` if the network refuses.
    """
    loop = asyncio.get_running_loop()
    transport, exchange = await loop.create_datagram_endpoint(_Exchange, remote_addr=(address, port))
    try:
        local, local_port = transport.get_extra_info("sockname")[:2]
        mapped, mapped_port, latency = await _first_answer(transport, exchange, within)
    finally:
        transport.abort()
    return StunAnswer(mapped, mapped_port, ipaddress.ip_address(local), local_port, latency)


async def _first_answer(
    transport: asyncio.DatagramTransport, exchange: _Exchange, within: float
) -> tuple[Address, int, float]:
    try:
        async with asyncio.timeout(within):
            while True:
                transaction_id = secrets.token_bytes(TRANSACTION_ID_LENGTH)
                exchange.sent[transaction_id] = time.perf_counter()
                transport.sendto(binding_request(transaction_id))
                await asyncio.wait([exchange.answer], timeout=_RESEND_AFTER)
                if exchange.answer.done():
                    return exchange.answer.result()
    except TimeoutError:
        if exchange.last_problem:
            raise StunError(
                f"{exchange.bad_packets} packet(s) came, none is an answer; the last: {exchange.last_problem}"
            ) from None
        raise


async def ask_often(
    address: str, port: int, *, requests: int, interval: float, last_within: float
) -> list[float]:
    """Send a number of requests, one each ``interval``, and return the latencies of those answered.

    The last request has ``last_within`` for its answer, those before it have more;
    all in seconds. Less time passes where all are answered. Raises ``OSError`` if
    the network refuses.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.connect((address, port))
        series = _Series(sock, requests)
        loop.add_reader(sock, series.receive)
        try:
            started = loop.time()
            for number in range(requests):
                await asyncio.sleep(started + number * interval - loop.time())
                series.send()
            await asyncio.wait([series.all_answered], timeout=last_within)
        finally:
            loop.remove_reader(sock)
    return series.latencies


class _Series:
    """Sends a number of requests and collects their answers; anything else is passed over.

    Of answers the kernel says when they came, so that what else this process does
    at the time makes no latency longer.
    """

    def __init__(self, sock: socket.socket, requests: int) -> None:
        self.sock = sock
        self.requests = requests
        self.all_answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent: dict[bytes, float] = {}
        self.latencies: list[float] = []

    def send(self) -> None:
        transaction_id = secrets.token_bytes(TRANSACTION_ID_LENGTH)
        self.sent[transaction_id] = time.time()
        # A refusal that came for an earlier request is told now; the request counts as lost.
        with contextlib.suppress(OSError):
            self.sock.send(binding_request(transaction_id))

    def receive(self) -> None:
        try:
            packet, ancillary, _, _ = self.sock.recvmsg(_LONGEST_PACKET, _LONGEST_ANCILLARY)
        except OSError:
            return
        arrived = time.time()
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                arrived = seconds + nanoseconds / 1e9
        try:
            transaction_id, _, _ = parse_response(packet)
        except StunError:
            return
        # Taken out, so that an answer which comes twice counts once.
        sent = self.sent.pop(transaction_id, None)
        if sent is None:
            return
        self.latencies.append(arrived - sent)
        if len(self.latencies) == self.requests:
            self.all_answered.set_result(None)
