"""Whole checks of relays that are good, or broken in one way."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import probe.check
import probe.debug_pages
import probe.network
import probe.stun
from probe import (
    Check,
    Finding,
    Relay,
    Status,
    check_relay,
    check_relay_async,
    https,
    is_up,
    port80,
    wait_until_up,
)
from probe.__main__ import main
from probe.fetch import Client
from tests.unit.loopback_relay import (
    AUTHORITY,
    DOMAIN,
    SERVER_KEY,
    Answer,
    Authority,
    Behaviour,
    Derper,
    Endless,
    Silence,
    frame,
    https_answers,
    response,
    running,
    stun_response,
)

OTHER_AUTHORITY = Authority("Another Authority")
BEHIND_UPGRADE = {Check.RELAY, Check.SERVER_KEY}
BEHIND_TLS = {Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE, Check.DEBUG_HTTPS, *BEHIND_UPGRADE}


@pytest.fixture(autouse=True)
def less_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the STUN requests of a series faster than the real second: this relay is near.

    Of the doors to debug pages only the plain ones are tried here.
    """
    monkeypatch.setattr(probe.network, "_INTERVAL", 0.002)
    monkeypatch.setattr(probe.network, "_LAST_ANSWER_AT_LEAST", 0.2)
    for rare in ("_OTHER_FORMS", "_KEYS"):
        monkeypatch.setattr(probe.debug_pages, rare, ())


def check(behaviour: Behaviour, timeout: float = 10.0) -> dict[Check, Finding]:
    with running(behaviour) as relay:
        return {finding.check: finding for finding in check_relay(relay, timeout=timeout)}


def at(path: str, answer: Answer) -> Behaviour:
    """Return a relay that answers one path of its HTTPS side otherwise."""
    return Behaviour(https=lambda asked, headers: answer if asked == path else https_answers(asked, headers))


OneCheck = Callable[[Relay, Client], Coroutine[Any, Any, Finding]]


def alone(behaviour: Behaviour, one: OneCheck, limit: float = 10.0) -> Finding:
    """Run one check only."""

    async def run(relay: Relay) -> Finding:
        deadline = asyncio.get_running_loop().time() + limit
        async with Client(relay.tls_context(), deadline) as http:
            return await one(relay, http)

    with running(behaviour) as relay:
        return asyncio.run(run(relay))


def with_status(findings: dict[Check, Finding], status: Status) -> set[Check]:
    """Return the checks that ended so; DNS is left out, which has no name of this relay's domain."""
    return {found.check for found in findings.values() if found.status is status} - {Check.DNS}


def test_a_good_relay() -> None:
    behaviour = Behaviour()
    with running(behaviour) as relay:
        findings = check_relay(relay)
    assert is_up(findings), findings
    assert [f.check for f in findings] == [c for c in Check if c is not Check.ROUTE]
    assert {f.check for f in findings if f.status is not Status.OK} == {Check.DNS}
    facts = {name: value for f in findings for name, value in f.facts.items()}
    assert facts["certificate_days_left"] == pytest.approx(5, abs=0.1)
    assert facts["certificate_not_after"] == pytest.approx(time.time() + 5 * 86400, abs=3600)
    assert facts["server_key"] == SERVER_KEY.hex()
    assert facts["can_port80"] is True
    assert facts["packet_loss_ratio"] == 0
    assert facts["mapped_address"] == "127.0.0.1"
    json.dumps([f.as_dict() for f in findings])

    hosts = {(scheme, path.split("?")[0], headers["host"]) for scheme, path, headers in behaviour.requests}
    by_name = f"{DOMAIN}:{relay.https_port}"
    assert ("https", "/", by_name) in hosts
    assert ("https", "/debug/varz", by_name) in hosts
    assert ("http", "/generate_204", "127.0.0.1") in hosts
    assert ("http", "/debug/varz", "127.0.0.1") in hosts
    assert ("http", "/debug/varz", f"{DOMAIN}:{relay.http_port}") in hosts


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (lambda: AUTHORITY.server_context(from_day=-5, to_day=-2), "expired 2.0 days ago"),
        (lambda: AUTHORITY.server_context(from_day=2), "valid only from"),
        (lambda: AUTHORITY.server_context("other.example.org"), "for other.example.org, not for relay"),
        (OTHER_AUTHORITY.server_context, "from Another Authority, which is not among the roots"),
        (lambda: None, "wrong version number"),
    ],
    ids=["expired", "not yet valid", "wrong name", "unknown CA", "no TLS"],
)
def test_bad_certificates(certificate: Callable[[], object], words: str) -> None:
    findings = check(Behaviour(certificate=certificate()))  # type: ignore[arg-type]
    assert with_status(findings, Status.FAILED) == {Check.TLS}
    assert with_status(findings, Status.SKIPPED) == BEHIND_TLS
    assert {findings[c].mend for c in BEHIND_TLS - BEHIND_UPGRADE} == {"Mend tls first."}
    assert words in findings[Check.TLS].seen
    assert findings[Check.TLS].mend


@pytest.mark.parametrize(
    ("from_day", "to_day", "status"),
    [
        (-79, 21, Status.OK),
        (-81, 19, Status.WARNING),
        (-0.39, 0.11, Status.OK),  # Caddy's own authority: 12 hours, of which 2.4 are a fifth
        (-0.41, 0.09, Status.WARNING),
    ],
)
def test_a_certificate_that_should_have_been_renewed(from_day: float, to_day: float, status: Status) -> None:
    findings = check(Behaviour(certificate=AUTHORITY.server_context(from_day=from_day, to_day=to_day)))
    tls = findings[Check.TLS]
    assert tls.status is status, tls
    assert is_up(findings.values())
    assert findings[Check.RELAY].status is Status.OK
    assert ("renewed by now" in tls.meaning) is (status is Status.WARNING)
    assert bool(tls.mend) is (status is Status.WARNING)


def test_a_relay_whose_certificate_clients_do_not_verify() -> None:
    with running(Behaviour(certificate=OTHER_AUTHORITY.server_context("other.example.org"))) as relay:
        findings = {f.check: f for f in check_relay(dataclasses.replace(relay, verified=False))}
    assert findings[Check.TLS].status is Status.OK
    assert "not verified, as clients are told" in findings[Check.TLS].seen
    assert not with_status(findings, Status.FAILED)


def test_stun_alone_and_relaying_alone() -> None:
    with running(Behaviour()) as relay:
        no_relaying = {
            f.check: f for f in check_relay(dataclasses.replace(relay, https_port=None, http_port=None))
        }
        no_stun = {f.check: f for f in check_relay(dataclasses.replace(relay, stun_port=None))}
    at_stun = {Check.STUN, Check.STUN_ADDRESS, Check.NETWORK}
    assert with_status(no_relaying, Status.OK) == {*at_stun, Check.PORTS}
    assert not with_status(no_relaying, Status.FAILED)
    assert with_status(no_stun, Status.SKIPPED) == at_stun
    assert not with_status(no_stun, Status.FAILED)


def test_port_80_that_is_not_for_clients_is_looked_at_for_debug_pages_alone() -> None:
    with running(Behaviour()) as relay:
        findings = {f.check: f for f in check_relay(dataclasses.replace(relay, can_port_80=False))}
    assert with_status(findings, Status.SKIPPED) >= {Check.CAPTIVE_PORTAL, Check.REDIRECT}
    assert findings[Check.DEBUG_HTTP].status is Status.OK
    assert not with_status(findings, Status.FAILED)


def test_another_server_key_than_the_known_one() -> None:
    with running(Behaviour()) as relay:
        known = check_relay(dataclasses.replace(relay, server_key=SERVER_KEY.hex().upper()))
        other = check_relay(dataclasses.replace(relay, server_key="ab" * 32))
    assert is_up(known)
    (bad,) = (finding for finding in other if finding.status is Status.FAILED)
    assert (bad.check, bad.address) == (Check.SERVER_KEY, "")
    assert f"known is {'ab' * 32}" in bad.seen
    assert "volume" in bad.mend


def test_a_relay_that_lets_no_strangers_in() -> None:
    derper = Derper(admits=lambda _: False)
    findings = check(at("/derp", derper))
    assert is_up(findings.values())
    assert with_status(findings, Status.SKIPPED) == {Check.RELAY}
    assert "only lets in clients of its tailnet" in findings[Check.RELAY].seen


def test_a_relay_that_lets_clients_in_and_passes_nothing() -> None:
    derper = Derper(passes=lambda a, b, _: [(a, frame(8, b + b"\x01"))])
    findings = check(at("/derp", derper))
    assert with_status(findings, Status.FAILED) == {Check.RELAY}
    assert findings[Check.UPGRADE].status is Status.OK


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response("200 OK"), "empty page, as Caddy gives"),
        (response("200 OK", b"<h1>It works!</h1>"), "not derper's"),
        (response("404 Not Found", b"gone"), "HTTP 404"),
        (response("502 Bad Gateway"), "HTTP 502"),
        (response("302 Found", location="https://example.org/"), "HTTP 302"),
        (Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4096), "not derper's"),
    ],
)
def test_bad_pages(answer: Answer, words: str) -> None:
    finding = alone(at("/", answer), lambda relay, http: https.check_page(relay, "127.0.0.1", http))
    assert finding.status is Status.FAILED
    assert words in finding.seen


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"garbage\r\n\r\n", "no proper HTTP response: illegal"),
        (b"", "disconnected"),
        (Endless(b"HTTP/1.1 200 OK\r\n", b"X-More: more\r\n" * 2000), "no proper HTTP response"),
    ],
    ids=["garbage", "nothing", "endless header"],
)
def test_pages_that_are_no_http(answer: Answer, words: str) -> None:
    findings = check(at("/", answer))
    assert with_status(findings, Status.FAILED) == {Check.PAGE}
    assert words in findings[Check.PAGE].seen


def by_derper(status: str, **more: str) -> bytes:
    policy = "default-src 'self'; frame-ancestors 'none'"
    return response(status, x_frame_options="DENY", content_security_policy=policy, **more)


@pytest.mark.parametrize(
    "answer",
    [by_derper("200 OK"), by_derper("302 Found", location="https://example.org/")],
    ids=["blank", "elsewhere"],
)
def test_other_home_pages_of_derper(answer: Answer) -> None:
    finding = alone(at("/", answer), lambda relay, http: https.check_page(relay, "127.0.0.1", http))
    assert finding.status is Status.OK


def test_latency_check_refused() -> None:
    findings = check(at("/derp/latency-check", response("404 Not Found")))
    assert with_status(findings, Status.FAILED) == {Check.LATENCY_CHECK}


def test_a_dead_derper_does_not_prove_closed_debug_pages() -> None:
    findings = check(Behaviour(https=lambda *_: response("502 Bad Gateway")))
    assert with_status(findings, Status.FAILED) == {Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE}
    assert with_status(findings, Status.SKIPPED) == {Check.DEBUG_HTTPS, *BEHIND_UPGRADE}


def port_80(generate_204: Answer | None = None, other: Answer | None = None, location: str = "") -> Behaviour:
    """Return a relay whose port 80 answers otherwise; ``location`` may use the fields host, port and path."""

    def answers(path: str, headers: dict[str, str]) -> Answer:
        if path.startswith("/generate_204?"):
            challenge = headers["x-tailscale-challenge"]
            return generate_204 or response("204 No Content", x_tailscale_response=f"response {challenge}")
        if other and not path.startswith("/debug"):
            return other
        where = location.format(host=headers["host"], path=path)
        return response("308 Permanent Redirect", location=where or f"https://{DOMAIN}{path}")

    return Behaviour(http=answers)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response("308 Permanent Redirect", location="https://127.0.0.1/generate_204"), "redirects with 308"),
        (response("200 OK", b"Sign in to the hotel's network"), "answers 200"),
        (response("204 No Content"), "is None instead of 'response ts_"),
        (response("204 No Content", x_tailscale_response="response ts_1.2.3.4"), "ts_1.2.3.4"),
        (response("502 Bad Gateway"), "answers 502"),
    ],
)
def test_captive_portal(answer: Answer, words: str) -> None:
    finding = alone(
        port_80(answer),
        lambda relay, http: port80.check_captive_portal("127.0.0.1", relay.http_port or 0, http),
    )
    assert finding.status is Status.FAILED
    assert words in finding.seen


@pytest.mark.parametrize(
    "location",
    [
        "https://relay.example.org{path}",  # the port is missing
        "https://{host}{path}",  # the port is that of plain HTTP
        "http://relay.example.org:{https_port}{path}",
        "https://other.example.org:{https_port}{path}",
        "https://relay.example.org:{https_port}/",
        "https://relay.example.org:99999{path}",
        "//[",
    ],
)
def test_wrong_redirects(location: str) -> None:
    behaviour = port_80()

    async def redirect(relay: Relay, http: Client) -> Finding:
        behaviour.http = port_80(location=location.replace("{https_port}", str(relay.https_port))).http
        return await port80.check_redirect(relay, "127.0.0.1", relay.http_port or 0, http)

    finding = alone(behaviour, redirect)
    assert finding.status is Status.FAILED
    assert "redirects to" in finding.seen


def test_no_redirect() -> None:
    findings = check(port_80(other=response("200 OK", b"plain")))
    assert with_status(findings, Status.FAILED) == {Check.REDIRECT}
    assert "answers 200 instead of redirecting" in findings[Check.REDIRECT].seen


def test_debug_pages_open_on_http() -> None:
    open_page = response("200 OK", b'"memstats": {}')
    findings = check(Behaviour(http=lambda *_: open_page))
    assert findings[Check.DEBUG_HTTP].status is Status.FAILED
    assert findings[Check.DEBUG_HTTPS].status is Status.OK


def test_masked_stun_address_from_the_same_machine_is_a_note() -> None:
    findings = check(Behaviour(stun=lambda data, _: [stun_response(data[8:20], "172.20.0.1", 4242)]))
    assert not with_status(findings, Status.FAILED)
    assert with_status(findings, Status.SKIPPED) == {Check.STUN_ADDRESS}
    assert "same machine" in findings[Check.STUN_ADDRESS].seen
    assert findings[Check.STUN].facts["mapped_address"] == "172.20.0.1"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(stun=None), "connection refused"),
        (Behaviour(stun=lambda *_: []), "no answer from UDP port"),
        (Behaviour(stun=lambda *_: [b"\x00" * 20]), "magic cookie"),
        (Behaviour(stun=lambda data, _: [stun_response(data[:12], "127.0.0.1", 1)]), "not ours"),
    ],
    ids=["closed", "silent", "garbage", "other transaction"],
)
def test_broken_stun(behaviour: Behaviour, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.stun, "ANSWER_WITHIN", 0.1)
    findings = check(behaviour)
    assert with_status(findings, Status.FAILED) == {Check.STUN}
    assert with_status(findings, Status.SKIPPED) == {Check.STUN_ADDRESS, Check.NETWORK}
    assert words in findings[Check.STUN].seen


def test_a_lost_stun_packet_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.stun, "_RESEND_AFTER", 0.05)
    requests: list[bytes] = []

    def lossy(data: bytes, sender: tuple[str, int]) -> list[bytes]:
        requests.append(data)
        return [stun_response(data[8:20], *sender)] if len(requests) > 1 else []

    findings = check(Behaviour(stun=lossy))
    assert not with_status(findings, Status.FAILED)
    assert findings[Check.NETWORK].facts["packet_loss_ratio"] == 0
    assert len(requests) == 2 + probe.network.REQUESTS
    assert requests[0] != requests[1]


def test_silence_everywhere_ends_in_time() -> None:
    silent = Behaviour(https=lambda *_: Silence(), http=lambda *_: Silence(), stun=lambda *_: [])
    started = time.monotonic()
    findings = check(silent, timeout=2.0)
    assert time.monotonic() - started < 30, "silence lasts a minute"
    failures = {
        Check.PAGE,
        Check.LATENCY_CHECK,
        Check.UPGRADE,
        Check.STUN,
        Check.CAPTIVE_PORTAL,
        Check.REDIRECT,
    }
    assert with_status(findings, Status.FAILED) == failures
    assert with_status(findings, Status.SKIPPED) == {
        Check.STUN_ADDRESS,
        Check.NETWORK,
        Check.DEBUG_HTTPS,
        Check.DEBUG_HTTP,
        *BEHIND_UPGRADE,
    }


def closed_ports() -> tuple[int, int, int]:
    with socket.socket() as one, socket.socket() as two, socket.socket(type=socket.SOCK_DGRAM) as three:
        sockets = (one, two, three)
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    return ports[0], ports[1], ports[2]


def test_nothing_there() -> None:
    https_port, http_port, stun_port = closed_ports()
    relay = Relay(DOMAIN, ["127.0.0.1"], https_port, http_port, stun_port, AUTHORITY.pem)
    findings = {f.check: f for f in check_relay(relay, timeout=10)}
    failures = {Check.TLS, Check.STUN, Check.CAPTIVE_PORTAL, Check.REDIRECT}
    assert with_status(findings, Status.FAILED) == failures
    assert with_status(findings, Status.OK) == {Check.PORTS}
    assert {findings[c].seen for c in failures} == {"connection refused: nothing listens there"}


def test_a_relay_without_plain_http() -> None:
    with running(Behaviour()) as relay:
        without = Relay(DOMAIN, ["127.0.0.1"], relay.https_port, None, relay.stun_port, AUTHORITY.pem)
        findings = {f.check: f for f in check_relay(without, timeout=10)}
    assert is_up(findings.values())
    assert with_status(findings, Status.SKIPPED) == {Check.CAPTIVE_PORTAL, Check.REDIRECT, Check.DEBUG_HTTP}


def test_an_address_without_a_route_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = probe.check._no_route
    monkeypatch.setattr(
        probe.check,
        "_no_route",
        lambda address: "no route" if ":" in address else routed(address),
    )
    with running(Behaviour()) as relay:
        both = Relay(
            DOMAIN,
            ["2001:db8::1", "127.0.0.1"],
            relay.https_port,
            relay.http_port,
            relay.stun_port,
            AUTHORITY.pem,
        )
        findings = check_relay(both, timeout=10)
        only = Relay(
            DOMAIN, ["2001:db8::1"], relay.https_port, relay.http_port, relay.stun_port, AUTHORITY.pem
        )
        assert not is_up(check_relay(only, timeout=10))
    assert is_up(findings)
    assert (findings[0].check, findings[0].status, findings[0].family) == (
        Check.ROUTE,
        Status.SKIPPED,
        "IPv6",
    )


def test_within_an_event_loop() -> None:
    async def checked(relay: Relay) -> list[Finding]:
        return await check_relay_async(relay, timeout=10)

    with running(Behaviour()) as relay:
        assert is_up(asyncio.run(checked(relay)))


def test_waiting_until_it_is_up() -> None:
    attempts: list[int] = []

    def late(path: str, headers: dict[str, str]) -> Answer:
        return https_answers(path, headers) if attempts else response("502 Bad Gateway")

    with running(Behaviour(https=late)) as relay:
        findings = wait_until_up(
            relay, timeout=5, pause=0.05, on_attempt=lambda number, _: attempts.append(number)
        )
    assert is_up(findings), findings
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) > 1


def test_waiting_in_vain() -> None:
    attempts: list[list[Finding]] = []
    with running(Behaviour(stun=None)) as relay:
        findings = wait_until_up(
            relay, timeout=0.2, pause=0.1, on_attempt=lambda _, found: attempts.append(found)
        )
    assert not is_up(findings)
    assert findings == attempts[-1]
    assert {f.check for f in findings if f.status is Status.FAILED} == {Check.STUN}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"domain": "https://relay.example.org"}, "not a DNS name"),
        ({"domain": ""}, "not a DNS name"),
        ({"addresses": []}, "no address given"),
        ({"addresses": ["relay.example.org"]}, "names are not looked up"),
        ({"addresses": ["fe80::1%eth0"]}, "has a zone"),
        ({"https_port": 0}, "https_port 0 is not a port"),
        ({"stun_port": 65536}, "stun_port 65536 is not a port"),
        ({"other_ports": [22, 0]}, "other_ports 0 is not a port"),
        ({"server_key": "nodekey:ab"}, "give its 64 hexadecimal"),
        ({"ca_roots": "no certificate"}, "no certificate in PEM"),
    ],
)
def test_values_no_relay_can_have(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Relay(**{"domain": DOMAIN, "addresses": ["127.0.0.1"], **values})  # type: ignore[arg-type]


def test_command_line(tmp_path: Path) -> None:
    roots = tmp_path / "root.crt"
    roots.write_text(AUTHORITY.pem)

    def run(*more: str) -> Result:
        return CliRunner().invoke(main, ["--domain", DOMAIN, "--address", "127.0.0.1", *more])

    with running(Behaviour()) as relay:
        ports = [f"--https-port={relay.https_port}", f"--http-port={relay.http_port}"]
        ports.append(f"--stun-port={relay.stun_port}")
        good = run(*ports, f"--ca={roots}", "--json")
        bad = run(*ports)
        other_key = run(*ports, f"--ca={roots}", f"--server-key={'ab' * 32}", "--other-port=22", "--json")
        wrong = run("--address", "relay.example.org")
        no_server = run(*ports, f"--ca={roots}", "--dns-server=resolver")
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["up"] is True
    assert other_key.exit_code == 1, other_key.output
    failures = [f["check"] for f in json.loads(other_key.stdout)["findings"] if f["status"] == "failed"]
    assert failures == ["server-key"]
    assert no_server.exit_code == 2
    assert "is not a literal address" in " ".join(no_server.output.split())
    assert wrong.exit_code == 2
    assert "names are not looked up" in " ".join(wrong.output.split())
    assert bad.exit_code == 1
    assert "not among the roots" in " ".join(bad.stdout.split())
