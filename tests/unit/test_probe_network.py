"""Loss and latency, from series of STUN requests that lose some or are late."""

from __future__ import annotations

import asyncio
import socket

import pytest

import probe.network
from probe import Check, Finding, Relay, Status, check_relay
from probe.network import LONGEST_LATENCY, MOST_LOST, REQUESTS, check_network, judge
from probe.stun import ask_often
from tests.unit.loopback_relay import Behaviour, running, stun_answer


def finding_of(behaviour: Behaviour, within: float = 10.0) -> Finding:
    async def run(relay: Relay) -> Finding:
        assert relay.stun_port
        return await check_network("127.0.0.1", relay.stun_port, within=within)

    with running(behaviour) as relay:
        return asyncio.run(run(relay))


@pytest.mark.parametrize(
    ("lost", "latency", "words"),
    [
        (0, 0.001, None),
        (MOST_LOST, 0.001, None),
        (MOST_LOST + 1, 0.001, "sent again"),
        (REQUESTS * 3 // 10, 0.02, "sent again"),
        (0, LONGEST_LATENCY, None),
        (0, LONGEST_LATENCY + 0.01, "calls and shells drag"),
        (0, 0.5, "calls and shells drag"),
        (REQUESTS, 0.001, "sent again"),
    ],
)
def test_bounds(lost: int, latency: float, words: str | None) -> None:
    finding = judge("192.0.2.1", [latency] * (REQUESTS - lost))
    assert finding.check is Check.NETWORK
    assert finding.status is (Status.OK if words is None else Status.WARNING)
    assert (words or "") in finding.meaning
    assert bool(finding.mend) is (words is not None)
    assert finding.facts["packet_loss_ratio"] == lost / REQUESTS
    assert finding.latency == (latency if lost < REQUESTS else None)


def test_one_late_answer_is_not_latency() -> None:
    latencies = [0.001] * (REQUESTS - 5) + [2.0] * 5
    assert judge("192.0.2.1", latencies).status is Status.OK


def test_a_series_over_a_good_way() -> None:
    finding = finding_of(Behaviour())
    assert finding.status is Status.OK, finding
    assert finding.facts == {
        "packet_loss_ratio": 0,
        "stun_requests": REQUESTS,
        "stun_answers": REQUESTS,
    }
    assert finding.latency is not None
    assert 0 <= finding.latency < LONGEST_LATENCY


def test_a_series_over_a_lossy_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.network, "_LAST_ANSWER_WITHIN", 0.2)
    requests: list[bytes] = []

    def lossy(request: bytes, sender: tuple[str, int]) -> list[bytes]:
        requests.append(request)
        return [] if len(requests) % 5 == 0 else stun_answer(request, sender)

    finding = finding_of(Behaviour(stun=lossy))
    assert finding.status is Status.WARNING
    assert finding.facts["packet_loss_ratio"] == 0.2
    assert len(set(requests)) == REQUESTS


def test_only_right_answers_count_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.network, "_LAST_ANSWER_WITHIN", 0.2)
    monkeypatch.setattr(probe.network, "_INTERVAL", 0.002)

    def twice_and_rubbish(request: bytes, sender: tuple[str, int]) -> list[bytes]:
        good = stun_answer(request, sender)
        return [b"rubbish", *good, *good] if request[-1] % 2 else [b"rubbish", b""]

    finding = finding_of(Behaviour(stun=twice_and_rubbish))
    assert finding.status is Status.WARNING
    assert 0 < float(finding.facts["stun_answers"]) < REQUESTS


def test_too_little_time_is_not_taken_for_loss() -> None:
    finding = finding_of(Behaviour(stun=lambda *_: []), within=1.0)
    assert finding.status is Status.SKIPPED
    assert "too few" in finding.seen


def test_a_refusal_is_a_loss() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answered = asyncio.run(ask_often("127.0.0.1", port, requests=3, interval=0.01, last_within=0.05))
    assert answered == []


def test_a_series_that_is_not_done_in_time_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> Finding:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(probe.network, "check_network", never)
    with running(Behaviour()) as relay:
        (finding,) = (f for f in check_relay(relay, timeout=1.0) if f.check is Check.NETWORK)
    assert finding.status is Status.SKIPPED
    assert "within 1.0 s" in finding.seen
