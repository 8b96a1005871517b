"""When an address in a STUN answer is right, wrong, or not to be judged."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from probe import Status
from probe.reflexive_address import judge

OK, FAILED, SKIPPED = Status.OK, Status.FAILED, Status.SKIPPED


@pytest.mark.parametrize(
    ("status", "asked", "local", "mapped", "words"),
    [
        # Nothing on the way.
        (OK, "5.9.1.1", "5.9.8.8", "5.9.8.8", "our own address"),
        (OK, "2a01:4f8::1", "2a02:8109::5", "2a02:8109::5", "our own address"),
        (OK, "10.213.1.1", "10.213.1.2", "10.213.1.2", "our own address"),
        (OK, "127.0.0.1", "127.0.0.1", "127.0.0.1", "our own address"),
        # A NAT on the asker's side.
        (OK, "5.9.1.1", "192.168.1.7", "93.184.215.14", "NAT on our side"),
        (OK, "5.9.1.1", "100.64.3.4", "93.184.215.14", "NAT on our side"),
        (OK, "5.9.1.1", "192.168.1.7", "5.9.1.1", "NAT on our side"),
        (SKIPPED, "10.9.1.1", "172.18.0.2", "10.1.1.5", "NAT between us"),
        (SKIPPED, "192.168.1.9", "192.168.122.7", "192.168.1.5", "NAT between us"),
        (SKIPPED, "fd00:1:2:3::1", "fd00:1:2:4::9", "fd00:1:2:3::7", "NAT between us"),
        # Masked by Docker on the relay's host.
        (FAILED, "5.9.1.1", "93.184.215.14", "172.20.0.1", "gateway of a Docker bridge"),
        (FAILED, "5.9.1.1", "192.168.1.7", "172.17.0.1", "gateway of a Docker bridge"),
        (FAILED, "5.9.1.1", "192.168.1.7", "192.168.16.1", "gateway of a Docker bridge"),
        (FAILED, "5.9.1.1", "192.168.1.7", "10.0.3.9", "not public"),
        (FAILED, "2a01:4f8::1", "2a02:8109::5", "172.20.0.1", "gateway of a Docker bridge"),
        (FAILED, "2a01:4f8::1", "2a02:8109::5", "fd00:dead:beef::1", "gateway of a Docker bridge"),
        (FAILED, "2a01:4f8::1", "2a02:8109::5", "127.0.0.1", "not public"),
        (FAILED, "10.213.1.1", "10.213.1.2", "172.20.0.1", "gateway of a Docker bridge"),
        (FAILED, "10.213.1.1", "10.213.1.2", "10.213.1.1", "not public"),
        (FAILED, "fd00:d213:1::1", "fd00:d213:1::2", "fd00:dead:beef::1", "gateway of a Docker bridge"),
        (FAILED, "10.213.1.1", "10.99.1.2", "172.20.0.1", "gateway of a Docker bridge"),
        # From a public address no NAT is on the way.
        (FAILED, "5.9.1.1", "93.184.215.14", "5.9.1.1", "the relay saw 5.9.1.1"),
        (FAILED, "2a01:4f8::1", "2a02:8109::5", "2a01:4f8::9", "the relay saw 2a01:4f8::9"),
        # From the relay's own machine.
        (SKIPPED, "127.0.0.1", "127.0.0.1", "172.20.0.1", "asked from the same machine"),
        (SKIPPED, "::1", "::1", "172.20.0.1", "asked from the same machine"),
        (SKIPPED, "192.168.1.9", "192.168.1.9", "172.20.0.1", "asked from the same machine"),
        (SKIPPED, "5.9.1.1", "5.9.1.1", "172.20.0.1", "asked from the same machine"),
        # An IPv6 question that reached derper as IPv4 does so for everybody.
        (FAILED, "2a01:4f8::1", "2a01:4f8::1", "172.20.0.1", "gateway of a Docker bridge"),
    ],
)
def test_judgement(status: Status, asked: str, local: str, mapped: str, words: str) -> None:
    judged = judge(ip_address(asked), ip_address(local), ip_address(mapped))
    assert judged.status is status, judged
    assert words in judged.seen
    assert bool(judged.meaning) is (status is FAILED)
    assert bool(judged.mend) is (status is not OK)


def test_masked_ipv6_is_mended_by_an_ipv6_network() -> None:
    judged = judge(ip_address("2a01:4f8::1"), ip_address("2a02:8109::5"), ip_address("172.20.0.1"))
    assert "Docker network IPv6" in judged.mend


@pytest.mark.parametrize(
    ("status", "mapped", "words"),
    [
        (OK, "10.213.1.2", "our own address"),
        (OK, "198.51.100.9", "our own address"),
        (FAILED, "198.51.100.10", "expected 198.51.100.9"),
    ],
)
def test_an_expected_address_decides(status: Status, mapped: str, words: str) -> None:
    judged = judge(
        ip_address("10.9.1.1"), ip_address("10.213.1.2"), ip_address(mapped), [ip_address("198.51.100.9")]
    )
    assert judged.status is status
    assert words in judged.seen


def test_an_expected_address_says_nothing_of_the_other_family() -> None:
    asked, local, mapped = map(ip_address, ("2a01:4f8::1", "fd00:9::2", "2a02:8109::5"))
    assert judge(asked, local, mapped, [ip_address("198.51.100.9")]).status is OK
