"""A port is free or its holder is named, asked of real sockets."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from relayctl.prerequisites.ports import Holder, Protocol, first_free, holder, holders

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def bound(protocol: Protocol, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        taken = socket.socket(family, KINDS[protocol])
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with contextlib.suppress(OSError):
            # Outside of those that connections of other programs are given.
            taken.bind((address, random.randrange(15000, 30000)))  # noqa: S311 - no secret
            if protocol == "tcp":
                taken.listen()
            return taken
        taken.close()


@pytest.fixture(params=[(p, a) for p in KINDS for a in ("127.0.0.1", "0.0.0.0", "::1", "::")], ids=str)
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[int, Protocol]]:
    protocol, address = request.param
    with bound(protocol, address) as listener:
        yield listener.getsockname()[1], protocol


def test_holder_is_named_on_any_address(taken: tuple[int, Protocol]) -> None:
    found = holder(*taken)
    assert found == Holder(*taken, process=psutil.Process().name(), pid=os.getpid())
    assert str(found) == f"port {taken[0]}/{taken[1]} is taken by {found.process} (pid {os.getpid()})"


def test_port_of_the_other_protocol_is_free(taken: tuple[int, Protocol]) -> None:
    assert holder(taken[0], "udp" if taken[1] == "tcp" else "tcp") is None


def test_port_is_free_once_it_is_closed() -> None:
    for protocol in ("tcp", "udp"):
        with bound(protocol, "127.0.0.1") as listener:
            port = listener.getsockname()[1]
        assert holder(port, protocol) is None


def test_lingering_connections_do_not_hold_a_port() -> None:
    # what every server sets that expects to be started again
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = listener.accept()
        # the side that closes first lingers in TIME_WAIT
        served.close()
        client.close()
    assert holder(port, "tcp") is None


def test_port_bound_without_a_listener_is_taken_all_the_same() -> None:
    with socket.socket() as quiet:
        quiet.bind(("127.0.0.1", 0))
        port = quiet.getsockname()[1]
        assert holder(port, "tcp") == Holder(port, "tcp")


def test_holders_and_first_free_go_by_all_protocols() -> None:
    with bound("tcp", "127.0.0.1") as tcp, bound("udp", "127.0.0.1") as udp:
        tcp_port, udp_port = tcp.getsockname()[1], udp.getsockname()[1]
        with bound("tcp", "127.0.0.1") as other:
            free = other.getsockname()[1]
        found = holders([(tcp_port, "tcp"), (free, "tcp"), (udp_port, "udp")])
        assert [one.port for one in found] == [tcp_port, udp_port]
        assert first_free([tcp_port, udp_port, free], ["tcp", "udp"]) == free
        assert first_free([tcp_port], ["tcp"]) is None


def test_holder_is_told_as_a_sentence() -> None:
    assert str(Holder(443, "tcp", container="web")) == "port 443/tcp is taken by the container web"
    assert str(Holder(443, "udp")).startswith("port 443/udp is taken by another process")
