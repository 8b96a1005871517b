"""STUN packets, byte for byte as tailscale's net/stun package makes them."""

from __future__ import annotations

import asyncio
import random
import socket
from ipaddress import ip_address

import pytest

from probe.stun import StunError, ask, binding_request, parse_response

TRANSACTION_ID = bytes(range(1, 13))

# Printed by stun.Request and stun.Response of tailscale.com v1.102.5, net/stun.
REQUEST = bytes.fromhex("000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f")
REQUEST_OF_FF = bytes.fromhex(
    "000100142112a442ffffffffffffffffffffffff802200087461696c6e6f64658028000495d0a215"
)
RESPONSE_IPV4 = bytes.fromhex("0101000c2112a4420102030405060708090a0b0c00200008000183bbea12d545")
RESPONSE_IPV6 = bytes.fromhex(
    "010100182112a4420102030405060708090a0b0c00200014000283bb0113a9fa0102030405060708090a0b1b"
)
RESPONSE_MAPPED = bytes.fromhex(
    "010100182112a4420102030405060708090a0b0c00200014000283bb2112a442010203040506f8f7c20a7a0b"
)


def attribute(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2) + len(value).to_bytes(2) + value + bytes(-len(value) % 4)


def success(*attributes: bytes) -> bytes:
    body = b"".join(attributes)
    return bytes.fromhex("0101") + len(body).to_bytes(2) + bytes.fromhex("2112a442") + TRANSACTION_ID + body


XOR_MAPPED = RESPONSE_IPV4[20:]
MAPPED = attribute(0x0001, bytes.fromhex("0001" + "a2a9" + "c6336407"))


def test_request_is_tailscales() -> None:
    assert binding_request(TRANSACTION_ID) == REQUEST
    assert binding_request(b"\xff" * 12) == REQUEST_OF_FF


@pytest.mark.parametrize(
    ("packet", "address"),
    [
        (RESPONSE_IPV4, "203.0.113.7"),
        (RESPONSE_IPV6, "2001:db8::17"),
        (RESPONSE_MAPPED, "203.0.113.7"),
        (RESPONSE_IPV4 + b"trailing", "203.0.113.7"),
        (success(attribute(0x8022, b"abc"), XOR_MAPPED), "203.0.113.7"),
        (success(b"\x80" + XOR_MAPPED[1:]), "203.0.113.7"),
        (success(MAPPED, XOR_MAPPED), "203.0.113.7"),
        (success(XOR_MAPPED, MAPPED), "203.0.113.7"),
    ],
    ids=["ipv4", "ipv6", "ipv4-mapped", "trailing", "padded", "alternative", "plain-first", "plain-last"],
)
def test_responses(packet: bytes, address: str) -> None:
    assert parse_response(packet) == (TRANSACTION_ID, ip_address(address), 41641)


def test_plain_mapped_address_is_taken_where_there_is_no_other() -> None:
    assert parse_response(success(MAPPED)) == (TRANSACTION_ID, ip_address("198.51.100.7"), 0xA2A9)


@pytest.mark.parametrize(
    ("packet", "problem"),
    [
        (b"", "too few"),
        (RESPONSE_IPV4[:19], "too few"),
        (RESPONSE_IPV4[:4] + b"\x00" + RESPONSE_IPV4[5:], "magic cookie"),
        (REQUEST, "type 0x0001"),
        (b"\x01\x11" + RESPONSE_IPV4[2:], "type 0x0111"),
        (RESPONSE_IPV4[:-1], "cut off"),
        (success(XOR_MAPPED[:2]), "cut off"),
        (success(XOR_MAPPED[:8]), "cut off"),
        (success(attribute(0x0020, b"\x00\x01\x00")), "cut off"),
        (success(attribute(0x0020, XOR_MAPPED[4:11])), "cut off"),
        (success(attribute(0x0020, b"\x00\x02" + XOR_MAPPED[6:])), "cut off"),
        (success(attribute(0x0020, b"\x00\x03" + XOR_MAPPED[6:])), "unknown family 3"),
        (success(), "no mapped address"),
        (success(attribute(0x8022, b"derper")), "no mapped address"),
    ],
)
def test_bad_responses(packet: bytes, problem: str) -> None:
    with pytest.raises(StunError, match=problem):
        parse_response(packet)


def test_no_garbage_raises_anything_else() -> None:
    chance = random.Random(5389)  # noqa: S311
    good = (RESPONSE_IPV4, RESPONSE_IPV6, RESPONSE_MAPPED, success(MAPPED, XOR_MAPPED))
    parsed = 0
    for _ in range(20_000):
        packet = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 5)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        try:
            parse_response(bytes(packet[: chance.randrange(len(packet) + 1)]))
        except StunError:
            continue
        parsed += 1
    assert parsed > 0


def test_wrong_answers_are_told_from_silence() -> None:
    async def against(answer: bytes, count: int, within: float) -> None:
        loop = asyncio.get_running_loop()
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        server.settimeout(0)

        def receive() -> None:
            _, sender = server.recvfrom(100)
            for _ in range(count):
                server.sendto(answer, sender)

        loop.add_reader(server, receive)
        try:
            await ask("127.0.0.1", server.getsockname()[1], within=within)
        finally:
            loop.remove_reader(server)
            server.close()

    with pytest.raises(StunError, match="transaction id is not ours"):
        asyncio.run(against(RESPONSE_IPV4, 1, 0.1))
    with pytest.raises(StunError, match="64 packets came"):
        asyncio.run(against(b"noise", 100, 2))
    with pytest.raises(TimeoutError):
        asyncio.run(against(b"", 0, 0.1))
