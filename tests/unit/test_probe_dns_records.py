"""DNS compared with a relay's addresses, as a server on loopback tells it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

import probe.dns_records
from probe import Check, Finding, Relay, Status, check_relay, is_up
from probe.dns_records import check_dns, nameservers
from tests.unit.loopback_relay import Authority, Behaviour, running

NAME = "derp.example.net"
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"
Zone = Mapping[tuple[str, str], list[str]]
RIGHT: Zone = {(NAME, "A"): [IPV4], (NAME, "AAAA"): [IPV6], (".", "NS"): ["a.root-servers.net."]}


@contextlib.contextmanager
def serving(zone: Zone, *, rcode: str = "NXDOMAIN", silent: bool = False) -> Iterator[str]:
    """Answer from a zone with nothing followed; names that are not in it get ``rcode``."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    packet, sender = server.recvfrom(4096)
                except TimeoutError:
                    continue
                if not silent:
                    server.sendto(answer(zone, packet, rcode), sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def answer(zone: Zone, packet: bytes, rcode: str) -> bytes:
    query = dns.message.from_wire(packet)
    made = dns.message.make_response(query)
    made.flags |= dns.flags.RA
    question = query.question[0]
    name, kind = str(question.name), question.rdtype.name
    known = name.rstrip(".") or "."
    for record in (kind, "CNAME"):
        if (known, record) in zone:
            made.answer.append(dns.rrset.from_text(name, 60, "IN", record, *zone[known, record]))
            break
    else:
        if known not in {each for each, _ in zone}:
            made.set_rcode(dns.rcode.from_text(rcode))
    return made.to_wire()


def finding_of(
    zone: Zone,
    *,
    relay: Relay | None = None,
    rcode: str = "NXDOMAIN",
    silent: bool = False,
    within: float = 5.0,
) -> Finding:
    with serving(zone, rcode=rcode, silent=silent) as server:
        asked = relay or Relay(NAME, [IPV4, IPV6])
        finding = asyncio.run(check_dns(asked, nameservers([server]), within=within))
    assert (finding.check, finding.address) == (Check.DNS, "")
    if finding.status in (Status.FAILED, Status.WARNING):
        assert finding.meaning
        assert finding.mend
    return finding


def zone(ipv4: list[str], ipv6: list[str]) -> Zone:
    given = {(NAME, "A"): ipv4, (NAME, "AAAA"): ipv6, (NAME, "TXT"): ['"here"']}
    return {**{key: value for key, value in given.items() if value}, (".", "NS"): RIGHT[".", "NS"]}


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        (zone([IPV4], [IPV6]), Status.OK, "as it should"),
        (zone(["192.0.2.2"], [IPV6]), Status.FAILED, "192.0.2.2 is not the relay's"),
        (zone([IPV4, "192.0.2.2"], [IPV6]), Status.FAILED, "192.0.2.2 is not the relay's"),
        (zone([IPV4], ["2001:db8::2"]), Status.FAILED, "2001:db8::2 is not the relay's"),
        (zone(["192.0.2.2"], []), Status.FAILED, "192.0.2.2 is not the relay's"),
        (zone([IPV4], []), Status.WARNING, f"but not to {IPV6}"),
        (zone([], [IPV6]), Status.WARNING, f"but not to {IPV4}"),
        (zone([], []), Status.FAILED, "neither A nor AAAA"),
        ({(".", "NS"): RIGHT[".", "NS"]}, Status.FAILED, "does not exist in DNS"),
    ],
)
def test_records(told: Zone, status: Status, words: str) -> None:
    finding = finding_of(told)
    assert finding.status is status, finding
    assert words in finding.seen


def test_a_relay_with_an_authority_of_its_own_can_do_without_records() -> None:
    relay = Relay(NAME, [IPV4, IPV6], ca_roots=Authority().pem)
    finding = finding_of({(".", "NS"): RIGHT[".", "NS"]}, relay=relay)
    assert finding.status is Status.WARNING
    assert "does not exist in DNS" in finding.seen
    assert finding_of(zone(["192.0.2.2"], []), relay=relay).status is Status.FAILED


def test_an_address_of_a_family_that_the_relay_is_not_said_to_have() -> None:
    finding = finding_of(RIGHT, relay=Relay(NAME, [IPV4]))
    assert finding.status is Status.WARNING
    assert IPV6 in finding.seen
    assert finding.facts["dns_addresses"] == f"{IPV4}, {IPV6}"


def test_aliases_are_followed() -> None:
    alias = {(NAME, "CNAME"): ["other.example.net."]}
    finding = finding_of({**alias, ("other.example.net", "A"): [IPV4], ("other.example.net", "AAAA"): [IPV6]})
    assert finding.status is Status.OK, finding
    assert "alias of other.example.net" in finding.seen
    assert "does not exist" in finding_of(alias).seen
    loop = {**alias, ("other.example.net", "CNAME"): [f"{NAME}."], (".", "NS"): RIGHT[".", "NS"]}
    finding = finding_of(loop)
    assert finding.status is Status.FAILED
    assert "without end" in finding.seen


@pytest.mark.parametrize(
    ("source", "status"),
    [(zone([IPV4], [IPV6]), Status.WARNING), (zone(["192.0.2.2"], [IPV6]), Status.FAILED)],
)
def test_an_old_answer_is_told_from_a_wrong_record(
    source: Zone, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver_knows = {
        ("example.net", "SOA"): ["ns.example.net. mail.example.net. 1 2 3 4 5"],
        ("example.net", "NS"): ["ns.example.net."],
        ("ns.example.net", "A"): ["127.0.0.1"],
        (NAME, "A"): ["192.0.2.2"],
        (".", "NS"): RIGHT[".", "NS"],
    }
    with serving(source) as own:
        monkeypatch.setattr(probe.dns_records, "_DNS_PORT", int(own.rpartition(":")[2]))
        finding = finding_of(resolver_knows)
    assert finding.status is status, finding
    assert ("own name servers say what is right" in finding.seen) is (status is Status.WARNING)


def test_the_domains_servers_fail() -> None:
    finding = finding_of({(".", "NS"): RIGHT[".", "NS"]}, rcode="SERVFAIL")
    assert finding.status is Status.FAILED
    assert "SERVFAIL" in finding.seen


def test_a_resolver_that_fails_for_everything_is_not_the_relays_fault() -> None:
    finding = finding_of({}, rcode="REFUSED")
    assert finding.status is Status.SKIPPED
    assert "REFUSED" in finding.seen


def test_a_resolver_that_is_silent_is_not_the_relays_fault() -> None:
    finding = finding_of(RIGHT, silent=True, within=0.3)
    assert finding.status is Status.SKIPPED
    assert "no answer within 0.3 s" in finding.seen


@pytest.mark.parametrize(
    ("domain", "address", "words"),
    [
        ("relay.localhost", IPV4, "a name that DNS does not have"),
        ("derp.example.com", IPV4, "a name that DNS does not have"),
        ("relay.test", IPV4, "a name that DNS does not have"),
        ("derp.corp.internal", IPV4, "a name that DNS does not have"),
        ("relay.home.arpa", IPV4, "a name that DNS does not have"),
        ("derp.tailnet.dev", "127.0.0.1", "loopback"),
    ],
)
def test_names_and_addresses_that_nobody_is_asked_about(domain: str, address: str, words: str) -> None:
    finding = asyncio.run(check_dns(Relay(domain, [address]), [], within=5.0))
    assert finding.status is Status.SKIPPED
    assert words in finding.seen


def test_private_addresses_are_compared_only_where_the_servers_are_named() -> None:
    relay = Relay(NAME, ["10.0.0.1"])
    told = probe.dns_records.Told((IPV4,))
    empty = probe.dns_records.Told()
    assert probe.dns_records.judge(relay, told, empty, certain=False).status is Status.SKIPPED
    assert probe.dns_records.judge(relay, told, empty, certain=True).status is Status.FAILED


@pytest.mark.parametrize(
    "text",
    ["dns.example.org", "", "192.0.2.1:", "192.0.2.1:dns", "192.0.2.1:0", "[::1]:65536", "[::1", "1.2.3"],
)
def test_servers_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a literal address"):
        nameservers([text])


def test_servers() -> None:
    servers = nameservers(["192.0.2.1", "2001:db8::1", "192.0.2.1:5353", "[2001:db8::1]:5353"])
    assert [str(server) for server in servers] == [
        "Do53:192.0.2.1@53",
        "Do53:2001:db8::1@53",
        "Do53:192.0.2.1@5353",
        "Do53:2001:db8::1@5353",
    ]


def test_within_a_whole_check() -> None:
    with (
        serving({**RIGHT, ("relay.example.org", "A"): ["127.0.0.1"]}) as server,
        running(Behaviour()) as relay,
    ):
        good = check_relay(relay, dns_servers=[server])
        assert {finding.check: finding.status for finding in good}[Check.DNS] is Status.OK
        with pytest.raises(ValueError, match="is not a literal address"):
            check_relay(relay, dns_servers=["localhost"])
    with serving({**RIGHT, ("relay.example.org", "A"): [IPV4]}) as server, running(Behaviour()) as relay:
        bad = check_relay(relay, dns_servers=[server])
    assert not is_up(bad)
    assert [finding.check for finding in bad if finding.status is Status.FAILED] == [Check.DNS]
