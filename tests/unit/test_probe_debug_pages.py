"""Every door to the debug pages: closed, open in one way, or not to be judged."""

from __future__ import annotations

import asyncio

import pytest

from probe import Finding, Relay, Status
from probe.debug_pages import check_debug_http, check_debug_https
from probe.fetch import Client
from tests.unit.loopback_relay import (
    DOMAIN,
    PAGE,
    Answer,
    Behaviour,
    Silence,
    https_answers,
    response,
    running,
)


def at(path: str, answer: Answer) -> Behaviour:
    """Return a relay that answers one path of its HTTPS side otherwise."""
    return Behaviour(https=lambda asked, headers: answer if asked == path else https_answers(asked, headers))


def finding_of(behaviour: Behaviour, *, over_http: bool = False, limit: float = 30.0) -> Finding:
    """Try all doors of one port."""

    async def run(relay: Relay) -> Finding:
        deadline = asyncio.get_running_loop().time() + limit
        async with Client(relay.tls_context(), deadline) as http:
            if over_http:
                return await check_debug_http(relay, "127.0.0.1", relay.http_port or 0, http)
            return await check_debug_https(relay, "127.0.0.1", http)

    with running(behaviour) as relay:
        return asyncio.run(run(relay))


VARZ = b"# TYPE derp_accepts counter\nderp_accepts 1\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/debug/", b"<html><body><h1>derper debug</h1><ul><li><b>Uptime:</b> 1s</li>"),
        ("/debug/vars", b'{\n"cmdline": ["derper"],\n"memstats": {}}'),
        ("/debug/pprof/", b"<a href='/debug/pprof/heap'>"),
        ("/debug/varz?debugkey=x", VARZ),
        ("//debug/varz", VARZ),
        ("/%64ebug/varz", VARZ),
        ("/derp/../debug/varz", VARZ),
        ("/", PAGE + b"<p>Debug info at <a href='/debug/'>/debug/</a>.</p>"),
    ],
)
def test_debug_pages_open_on_https(path: str, body: bytes) -> None:
    finding = finding_of(at(path, response("200 OK", body)))
    assert finding.status is Status.FAILED
    assert f"{path} (Host {DOMAIN}" in finding.seen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-for", "100.64.0.1"),
        ("x-forwarded-for", ""),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1"),
        ("connection", "X-Forwarded-For"),
        ("x-original-url", "/debug/varz"),
    ],
)
def test_debug_pages_that_a_forged_header_opens(name: str, value: str) -> None:
    def answers(path: str, headers: dict[str, str]) -> Answer:
        if headers.get(name) == value:
            return response("200 OK", VARZ)
        return https_answers(path, headers)

    finding = finding_of(Behaviour(https=answers))
    assert finding.status is Status.FAILED
    assert name in finding.seen.lower()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_debug_pages_open_on_https_under_another_name(host: str) -> None:
    def answers(path: str, headers: dict[str, str]) -> Answer:
        if headers["host"] == host and path == "/debug/varz":
            return response("200 OK", VARZ)
        return https_answers(path, headers)

    finding = finding_of(Behaviour(https=answers))
    assert finding.status is Status.FAILED
    assert f"/debug/varz (Host {host})" in finding.seen


def test_another_page_under_a_debug_path_is_none_of_derpers() -> None:
    def answers(_path: str, headers: dict[str, str]) -> Answer:
        return response("200 OK") if headers["host"] == "127.0.0.1" else response("200 OK", PAGE)

    assert finding_of(Behaviour(https=answers)).status is Status.OK


def test_an_open_debug_page_shows_among_silent_ones() -> None:
    def answers(path: str, headers: dict[str, str]) -> Answer:
        if path == "/debug/vars":
            return response("200 OK", b'"memstats": {}')
        return Silence() if path != "/" else https_answers(path, headers)

    finding = finding_of(Behaviour(https=answers), limit=2.0)
    assert finding.status is Status.FAILED
    assert "/debug/vars" in finding.seen


def test_debug_pages_open_on_http() -> None:
    def answers(path: str, headers: dict[str, str]) -> Answer:
        if path.startswith("/debug/vars") and headers["host"] == "127.0.0.1":
            return response("200 OK", b'"memstats": {}')
        return response("404 Not Found")

    finding = finding_of(Behaviour(http=answers), over_http=True)
    assert finding.status is Status.FAILED
    assert "/debug/vars (Host 127.0.0.1)" in finding.seen


def test_closed_doors_and_what_cannot_be_judged() -> None:
    finding = finding_of(Behaviour())
    assert finding.status is Status.OK
    assert "403" in finding.seen
    finding = finding_of(Behaviour(https=lambda *_: response("502 Bad Gateway")))
    assert finding.status is Status.SKIPPED
    assert "502" in finding.seen
