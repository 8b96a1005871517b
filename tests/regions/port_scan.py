"""What of a host answers: TCP and UDP ports, and ping. To be run in the namespace to look from.

``python -m tests.regions.port_scan ADDRESS [LAST_PORT]`` prints it as JSON. Ports are told apart
from those that say nothing: ``open`` ones answer, ``closed`` ones have somebody
say that nobody is there, which a firewall that drops does not let out.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import resource
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from probe.stun import TRANSACTION_ID_LENGTH, binding_request

# Seconds. Linux sends a SYN again after one (RFC 6298, section 2.1): two are lost before a port is missed.
_PATIENCE = 2.5
LAST_PORT = 65535
_OTHER_FILES = 100
# linux/in.h and linux/in6.h; Python's socket module has neither
_RECEIVE_ERRORS = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
# RFC 792 and RFC 4443, section 4: type of the request, type of the reply
_ECHO = {
    socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0),
    socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128, 129),
}
_ICMP_HEADER = struct.Struct("!BBHHH")


@dataclass(frozen=True)
class Ports:
    """Ports that answer, and ports of which is said that they do not; both in order."""

    open: list[int]
    closed: list[int]


@dataclass(frozen=True)
class Found:
    """What a scan found at one address."""

    tcp: Ports
    udp: Ports
    ping: bool


def scan(address: str, last_port: int = LAST_PORT) -> Found:
    """Try a literal address and its ports from 1 on. Needs root, for ping."""
    ports = range(1, last_port + 1)
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    return Found(_tcp(family, address, ports), _udp(family, address, ports), _ping(family, address))


def _tcp(family: socket.AddressFamily, address: str, ports: range) -> Ports:
    """Connect to each port, to as many at once as files may be open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    at_once = min(len(ports), most - _OTHER_FILES)
    found: dict[bool, list[int]] = {True: [], False: []}
    for start in range(0, len(ports), at_once):
        with contextlib.ExitStack() as opened:
            events = opened.enter_context(select.epoll())
            asked: dict[int, tuple[socket.socket, int]] = {}
            for port in ports[start : start + at_once]:
                connection = opened.enter_context(
                    socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                )
                connection.connect_ex((address, port))
                asked[connection.fileno()] = (connection, port)
                events.register(connection, select.EPOLLOUT | select.EPOLLONESHOT)
            for descriptor, _ in _until_patience_ends(events):
                connection, port = asked[descriptor]
                found[connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0].append(port)
    return Ports(sorted(found[True]), sorted(found[False]))


def _udp(family: socket.AddressFamily, address: str, ports: range) -> Ports:
    """Ask every port twice for what the relay's protocols answer."""
    level, option = _RECEIVE_ERRORS[family]
    found: dict[bool, set[int]] = {True: set(), False: set()}
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking, select.epoll() as events:
        asking.setsockopt(level, option, 1)
        events.register(asking, select.EPOLLIN)

        def read() -> None:
            for flags in (0, socket.MSG_ERRQUEUE):
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    while True:
                        sender = asking.recvmsg(2048, 512, flags)[3]
                        found[flags == 0].add(sender[1])

        for _ in range(2):
            for port in ports:
                for packet in (binding_request(secrets.token_bytes(TRANSACTION_ID_LENGTH)), _quic_packet()):
                    try:
                        asking.sendto(packet, (address, port))
                    except OSError:
                        # what is said of an earlier packet is told at the next one
                        read()
                        asking.sendto(packet, (address, port))
            for _ in _until_patience_ends(events):
                read()
    return Ports(sorted(found[True]), sorted(found[False]))


def _quic_packet() -> bytes:
    """Return a first packet of a version that there is not: servers answer with theirs (RFC 9000, 6.1)."""
    ids = b"".join(bytes([8]) + secrets.token_bytes(8) for _ in range(2))
    # a long header with a reserved version (RFC 9000, 15); shorter packets are not answered (14.1)
    return (b"\xc0" + bytes.fromhex("1a2a3a4a") + ids).ljust(1200, b"\0")


def _ping(family: socket.AddressFamily, address: str) -> bool:
    protocol, request, reply = _ECHO[family]
    identifier = secrets.randbelow(1 << 16)
    # The kernel computes the checksum of ICMPv6, not of ICMP: RFC 792 has it over header and data.
    checksum = (request << 8) + identifier + 1
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    with socket.socket(family, socket.SOCK_RAW, protocol) as asking:
        asking.connect((address, 0))
        asking.send(_ICMP_HEADER.pack(request, 0, checksum, identifier, 1))
        deadline = time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            asking.settimeout(left)
            try:
                packet = asking.recv(2048)
            except OSError:
                return False
            # a raw socket of IPv4 gives the packet with its header, whose length is in words of four bytes
            message = packet[(packet[0] & 0x0F) * 4 :] if family == socket.AF_INET else packet
            if message[0] == reply and _ICMP_HEADER.unpack_from(message)[3] == identifier:
                return True
    return False


def _until_patience_ends(events: select.epoll) -> Iterator[tuple[int, int]]:
    deadline = time.monotonic() + _PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        yield from events.poll(left)


def _main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("address")
    arguments.add_argument("last_port", nargs="?", type=int, default=LAST_PORT)
    given = arguments.parse_args()
    print(json.dumps(asdict(scan(given.address, given.last_port))))  # noqa: T201


if __name__ == "__main__":
    _main()
