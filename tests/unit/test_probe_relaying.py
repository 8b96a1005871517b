"""Clients that log in and pass packets, with every way a relay may fail them, and the keys that it shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from nacl.public import PrivateKey

import probe.relaying
from probe import Finding, Relay, Status, server_key
from probe.finding import Check
from probe.relaying import ROUNDS, Relaying
from tests.unit.loopback_relay import (
    SERVER_KEY,
    Answer,
    Behaviour,
    Derper,
    Frames,
    Silence,
    frame,
    https_answers,
    passed_on,
    response,
    running,
    server_key_frame,
    upgraded,
)

OTHER = PrivateKey(bytes(range(1, 33)))


def findings_of(
    derp: Callable[[int], Answer], *, addresses: tuple[str, ...] = ("127.0.0.1",), limit: float = 10.0
) -> tuple[dict[str, Finding], dict[str, list[str]]]:
    """Return the findings by address and the keys; ``derp`` answers the connection of each number from 1."""
    count = 0

    def answers(path: str, headers: dict[str, str]) -> Answer:
        nonlocal count
        if path != "/derp":
            return https_answers(path, headers)
        count += 1
        return derp(count)

    async def run(relay: Relay) -> tuple[dict[str, Finding], dict[str, list[str]]]:
        deadline = asyncio.get_running_loop().time() + limit
        relaying = Relaying(relay, relay.tls_context(), deadline)
        findings = await relaying.check(list(addresses))
        assert {finding.check for finding in findings} == {Check.RELAY}
        return {finding.address: finding for finding in findings}, relaying.keys

    with running(Behaviour(https=answers, addresses=addresses)) as relay:
        return asyncio.run(run(relay))


def relay_finding(derper: Answer, limit: float = 10.0) -> Finding:
    findings, _ = findings_of(lambda _: derper, limit=limit)
    return findings["127.0.0.1"]


def test_packets_pass_both_ways() -> None:
    derper = Derper()
    finding = relay_finding(derper)
    assert finding.status is Status.OK, finding
    assert finding.latency is not None
    assert finding.facts == {"packets": 2 * ROUNDS, "verifies_clients": False}
    infos = [json.loads(info) for info in derper.infos]
    assert infos == [{"version": 2, "CanAckPings": True, "IsProber": True}] * 2
    assert not derper.clients


def test_pings_are_answered_and_frames_of_the_future_passed_over() -> None:
    def passes(source: bytes, destination: bytes, content: bytes) -> Frames:
        before = frame(0x12, b"12345678 and more") + frame(6) + frame(0x77, b"?") + frame(0x14)
        return [(destination, before), *passed_on(source, destination, content)]

    derper = Derper(passes=passes)
    finding = relay_finding(derper)
    assert finding.status is Status.OK, finding
    assert set(derper.pongs) == {b"12345678"}


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        (lambda a, b, c: [(b, frame(5, a + c[::-1]))], "came out with other content"),
        (lambda a, b, c: [(b, frame(5, a + c[:-1]))], "1312 bytes came out with 1311 bytes"),
        (lambda _a, b, c: [(b, frame(5, b + c))], "from a client that did not send it"),
        (lambda a, _b, c: [(a, frame(5, a + c))], "at the client that had sent it"),
        (lambda a, b, _c: [(a, frame(8, b + b"\x01"))], "the other client is not here, although"),
        (lambda a, b, _c: [(a, frame(8, b))], "the other client has left, although"),
        (lambda a, b, _c: [(b, frame(8, a + b"\x00"))], "gone that nobody asked for"),
        (lambda _a, b, _c: [(b, frame(0x14, b"duplicate\nclient"))], "unhealthy: duplicate client"),
        (lambda _a, b, _c: [(b, frame(0x15, bytes(8)))], "restarts right now"),
        (lambda _a, b, _c: [(b, frame(5, bytes(31)))], "31 bytes, too few for a key"),
        (lambda _a, b, _c: [(b, frame(6) * 5000)], "none with a packet"),
        (lambda _a, b, _c: [(b, b"\x05\x7f\xff\xff\xff")], "announces 2147483647 bytes"),
        (lambda _a, _b, _c: [(bytes(32), b"")], "ended after 0 of 5"),
    ],
)
def test_packets_that_do_not_come_out_as_they_went_in(
    passes: Callable[[bytes, bytes, bytes], Frames], words: str
) -> None:
    finding = relay_finding(Derper(passes=passes))
    assert finding.status is Status.FAILED
    assert words in finding.seen
    assert finding.meaning
    assert finding.mend


def test_a_packet_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.relaying, "_ANSWER_WITHIN", 0.2)
    finding = relay_finding(Derper(passes=lambda *_: []))
    assert finding.status is Status.FAILED
    assert "did not come out within" in finding.seen


@pytest.mark.parametrize(
    ("derper", "words"),
    [
        (Derper(introduction=b'{"version":1}'), "version 1 of DERP"),
        (Derper(introduction=b"{}"), "version None of DERP"),
        (Derper(introduction=b"[2]"), "version None of DERP"),
        (Derper(introduction=b"version 2"), "not JSON"),
        (Derper(introduction=b"[" * 100_000), "not JSON"),
        (Derper(seals_with=OTHER), "not sealed with the key"),
        (Derper(first=frame(6)), "type 0x06 instead of 0x03"),
        (Derper(first=frame(3, b"short")), "not sealed with the key"),
        (Derper(first=b"\x03\x00\x20\x00\x00"), "announces 2097152 bytes"),
        (upgraded(server_key_frame(bytes(32)), key="00" * 32), "nothing can be sealed"),
        (Derper(admits=lambda number: number % 2 == 0), "of two clients one was let in"),
        (upgraded(), "closed right after the upgrade, whether the client logs in or not"),
        (response("502 Bad Gateway"), "4 of 4 connections failed: HTTP 502"),
    ],
)
def test_logins_that_fail(derper: Answer, words: str) -> None:
    finding = relay_finding(derper)
    assert finding.status is Status.FAILED, finding
    assert words in finding.seen


@pytest.mark.parametrize("answer", [Silence(), Derper(introduction=None)])
def test_silence_ends_in_time(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = relay_finding(answer, limit=0.5)
    assert finding.status is Status.SKIPPED, "it is not the relay's fault that no time was left"
    monkeypatch.setattr(probe.relaying, "_ANSWER_WITHIN", 0.1)
    finding = relay_finding(answer, limit=0.5)
    assert finding.status is Status.FAILED
    assert "no complete answer" in finding.seen


def test_one_bad_connection_of_several_shows() -> None:
    findings, _ = findings_of(lambda number: response("502 Bad Gateway") if number == 2 else Derper())
    assert findings["127.0.0.1"].status is Status.FAILED
    assert "1 of 4 connections failed" in findings["127.0.0.1"].seen


def test_a_relay_that_lets_no_strangers_in_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.relaying, "_SILENT_AT_LEAST", 0.2)
    findings, keys = findings_of(lambda _: Derper(admits=lambda _: False))
    finding = findings["127.0.0.1"]
    assert finding.status is Status.SKIPPED, finding
    assert "only lets in clients of its tailnet" in finding.seen
    assert "-verify-clients" in finding.mend
    assert finding.facts == {"verifies_clients": True}
    assert set(keys["127.0.0.1"]) == {SERVER_KEY.hex()}


def test_two_derpers_behind_one_name() -> None:
    one, other = Derper(), Derper(key=OTHER)
    findings, keys = findings_of(lambda number: one if number % 2 else other)
    finding = findings["127.0.0.1"]
    assert finding.status is Status.SKIPPED
    assert finding.mend == "Mend server-key first."
    judged = server_key.judge(keys, None)
    assert judged.status is Status.FAILED
    assert "2 different keys" in judged.seen
    assert "behind one name" in judged.meaning


def test_between_two_addresses() -> None:
    addresses = ("127.0.0.1", "127.0.0.2")
    derper = Derper()
    findings, _ = findings_of(lambda _: derper, addresses=addresses)
    assert set(findings) == {*addresses, ""}
    assert {finding.status for finding in findings.values()} == {Status.OK}

    apart = Derper(apart=True)
    findings, _ = findings_of(lambda _: apart, addresses=addresses)
    assert [findings[address].status for address in addresses] == [Status.OK] * 2
    assert findings[""].status is Status.FAILED
    assert "from a client at 127.0.0.1 to one at 127.0.0.2" in findings[""].seen
    assert "one and the same derper" in findings[""].mend


def test_between_addresses_of_which_one_is_bad() -> None:
    findings, _ = findings_of(
        lambda number: Derper() if number <= 4 else response("502 Bad Gateway"),
        addresses=("127.0.0.1", "127.0.0.2"),
    )
    assert findings[""].status is Status.SKIPPED
    bad = [address for address, finding in findings.items() if finding.status is Status.FAILED]
    assert f"none pass at {', '.join(bad)} alone" in findings[""].seen


@pytest.mark.parametrize(
    ("keys", "known", "status", "words"),
    [
        ({"192.0.2.1": ["aa", "aa"]}, None, Status.OK, "none was known"),
        ({"192.0.2.1": ["aa"], "2001:db8::1": ["aa"]}, "aa", Status.OK, "the known one"),
        ({"192.0.2.1": ["aa"], "2001:db8::1": ["bb"]}, "aa", Status.FAILED, "bb at 2001:db8::1"),
        ({"192.0.2.1": ["aa"]}, "bb", Status.FAILED, "the key is aa, known is bb"),
        ({}, "aa", Status.SKIPPED, "no connection was upgraded"),
    ],
)
def test_server_keys(keys: dict[str, list[str]], known: str | None, status: Status, words: str) -> None:
    finding = server_key.judge(keys, known)
    assert (finding.status, finding.address) == (status, "")
    assert words in finding.seen
    assert finding.facts.get("server_key") == ("aa" if status is Status.OK or known == "bb" else None)
