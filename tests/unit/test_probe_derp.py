"""The upgrade to DERP and the first frame, with every way a server may get it wrong."""

from __future__ import annotations

import asyncio

import pytest

from probe import Finding, Status, check_relay
from probe.derp import DerpError, Frame, server_key_of
from probe.https import check_upgrade
from probe.relaying import CONNECTIONS
from tests.unit.loopback_relay import (
    SERVER_KEY,
    Answer,
    Behaviour,
    Endless,
    Silence,
    response,
    running,
    server_key_frame,
    upgraded,
)


def upgrade_finding(answer: Answer, limit: float = 10.0) -> Finding:
    """Return what the upgrade's check alone finds."""
    with running(Behaviour(https=lambda *_: answer)) as relay:
        return asyncio.run(asyncio.wait_for(check_upgrade(relay, "127.0.0.1", relay.tls_context()), limit))


@pytest.mark.parametrize(
    "frame",
    [
        server_key_frame(),
        server_key_frame(SERVER_KEY + b"for future use"),
        server_key_frame() + b"\x06\x00\x00\x00\x00",
    ],
    ids=["exact", "longer", "more frames"],
)
def test_good_greetings(frame: bytes) -> None:
    finding = upgrade_finding(upgraded(frame))
    assert finding.status is Status.OK, finding
    assert finding.facts == {"server_key": SERVER_KEY.hex(), "protocol_version": 2}
    assert finding.latency is not None


def test_informational_responses_come_before_the_upgrade() -> None:
    assert upgrade_finding(b"HTTP/1.1 103 Early Hints\r\n\r\n" + upgraded()).status is Status.OK


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response("426 Upgrade Required", b"DERP requires connection upgrade"), "426: DERP requires"),
        (response("404 Not Found", b"derp server disabled"), "404: derp server disabled"),
        (response("502 Bad Gateway"), "HTTP 502"),
        (response("200 OK", b"\x00\x01\x02"), "HTTP 200"),
        (Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 999), "HTTP 200: xxx"),
        (upgraded(key="ff" * 32), "but ffffffff"),
        (upgraded(key="ff" * 31), "31 bytes instead of 32"),
        (upgraded(key="secret"), "malformed"),
        (upgraded(version="two"), "malformed"),
        (upgraded(upgrade="websocket"), "'websocket' instead of 'DERP'"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n" + server_key_frame(), "no header"),
        (upgraded(server_key_frame(kind=6)), "type 0x06"),
        (upgraded(server_key_frame(magic=b"DERPkey!")), "magic"),
        (upgraded(server_key_frame(SERVER_KEY[:31])), "31 bytes of key"),
        (upgraded(server_key_frame()[:20]), "ended after 15 of 40"),
        (upgraded(server_key_frame()[:3]), "ended after 3 of 5"),
        (upgraded(b""), "ended after 0 of 5"),
        (upgraded(b"\x01\x7f\xff\xff\xff" + bytes(100)), "announces 2147483647 bytes"),
        (b"", "without a whole response"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (Endless(b"HTTP/1.1 101 Switching Protocols\r\n", b"X-More: more\r\n" * 200), "not HTTP"),
        (Endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9), "informational"),
        (Endless(b"", b"\xff\x00\xfe" * 1000), "not HTTP"),
    ],
)
def test_bad_servers(answer: Answer, words: str) -> None:
    finding = upgrade_finding(answer)
    assert finding.status is Status.FAILED
    assert words in finding.seen
    assert finding.meaning
    assert finding.mend


@pytest.mark.parametrize(
    ("status", "words"),
    [("426 Upgrade Required", "CDN"), ("502 Bad Gateway", "start derper"), ("404 Not Found", "-derp=false")],
)
def test_the_status_tells_what_to_mend(status: str, words: str) -> None:
    assert words in upgrade_finding(response(status)).mend


@pytest.mark.parametrize("answer", [Silence(), Endless(upgraded(server_key_frame()[:20]), b"")])
def test_silence_is_waited_for_only_as_long_as_allowed(answer: Answer) -> None:
    with pytest.raises(TimeoutError):
        upgrade_finding(answer, limit=0.15)


def test_fast_start_is_not_asked_for() -> None:
    behaviour = Behaviour()
    with running(behaviour) as relay:
        check_relay(relay, timeout=10)
    upgrades = [headers for _, path, headers in behaviour.requests if path == "/derp"]
    assert len(upgrades) == 1 + CONNECTIONS
    for headers in upgrades:
        assert headers["upgrade"] == "DERP"
        assert headers["connection"] == "Upgrade"
        assert headers["host"] == f"{relay.domain}:{relay.https_port}"
        assert "derp-fast-start" not in headers


def test_server_key_of_refuses_other_frames() -> None:
    assert server_key_of(Frame(1, "DERP🔑".encode() + SERVER_KEY)) == SERVER_KEY
    with pytest.raises(DerpError):
        server_key_of(Frame(1, b""))
