"""`relayctl probe`: which relays it asks, what it reports, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from probe import Check, Finding, Relay, Status
from probe.finding import failed, ok, skipped, warning
from probe.report import Report
from relayctl import relay_check
from relayctl.derp_map_file import nodes_of
from relayctl.probe_command import BROKEN, NOT_JUDGED, WRONG_ASKED, exit_code, probe_command
from relayctl.probing import ask_all, ask_node, ask_port_80
from settings import settings_from
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import DOMAIN, SERVER_KEY, Answers, Behaviour, response, running

GOOD = ok(Check.STUN, "203.0.113.7", "answered")
SOON = warning(Check.TLS, "203.0.113.7", "6 days left", meaning="", mend="")
BAD = failed(Check.UPGRADE, "203.0.113.7", "nothing")
UNKNOWN = skipped(Check.ROUTE, "203.0.113.7", "no route")
V4 = {"IPv4": "127.0.0.2", "IPv6": "none"}


@pytest.fixture
def _signals_kept() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.dict(os.environ, COLUMNS="200"):
        yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("found", "strict", "settings_are_bad", "code"),
    [
        ([[GOOD], [GOOD]], False, False, 0),
        ([[GOOD], [GOOD, SOON]], False, False, 0),
        ([[GOOD], [GOOD, SOON]], True, False, BROKEN),
        ([[GOOD], [GOOD, UNKNOWN]], True, False, 0),
        ([[GOOD], [UNKNOWN]], False, False, NOT_JUDGED),
        ([[BAD], [UNKNOWN]], False, False, BROKEN),
        ([[UNKNOWN], [UNKNOWN]], False, True, WRONG_ASKED),
        ([[BAD], [UNKNOWN]], False, True, BROKEN),
    ],
)
def test_the_exit_code_tells_the_worst(
    found: list[list[Finding]], *, strict: bool, settings_are_bad: bool, code: int
) -> None:
    reports = [Report("", "", "", findings) for findings in found]
    assert exit_code(reports, strict=strict, settings_are_bad=settings_are_bad) == code


def test_what_is_not_done_in_time_is_told_and_the_rest_is_kept() -> None:
    answered: list[int] = []

    async def quick() -> list[Finding]:
        return [GOOD]

    async def endless() -> list[Finding]:
        await asyncio.Event().wait()
        return []

    found = ask_all([quick, endless, endless, quick], parallel=2, time_limit=0.05, on_answer=answered.append)
    assert [[f.status for f in each] for each in found] == [
        [Status.OK],
        [Status.SKIPPED],
        [Status.SKIPPED],
        # both turns were taken by those that never end
        [Status.SKIPPED],
    ]
    assert answered == [0]
    assert found[1][0].seen.startswith("not asked to the end")
    assert found[3][0].seen.startswith("not asked when the time limit of 0.05 s")


def test_not_more_are_asked_at_once_than_may_be() -> None:
    now = 0
    most = 0

    async def ask() -> list[Finding]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return [GOOD]

    assert len(ask_all([ask] * 20, parallel=3, time_limit=10, on_answer=lambda _: None)) == 20
    assert most == 3


@pytest.mark.parametrize(
    ("fields", "addresses", "ports", "verified"),
    [
        ({"IPv4": "127.0.0.2", "IPv6": "::1"}, ("127.0.0.2", "::1"), (443, None, 3478), True),
        ({**V4, "CanPort80": True}, ("127.0.0.2",), (443, 80, 3478), True),
        # the name leads to 127.0.0.1, says the file of hosts
        ({"IPv6": "none"}, ("127.0.0.1",), (443, None, 3478), True),
        ({**V4, "STUNOnly": True}, ("127.0.0.2",), (None, None, 3478), True),
        ({**V4, "STUNPort": -1}, ("127.0.0.2",), (443, None, None), True),
        ({**V4, "InsecureForTests": True}, ("127.0.0.2",), (443, None, 3478), False),
    ],
)
def test_a_node_is_asked_as_the_map_says(
    fields: dict[str, object],
    addresses: tuple[str, ...],
    ports: tuple[int | None, ...],
    *,
    verified: bool,
) -> None:
    node = {"Name": "900a", "RegionID": 900, "HostName": "localhost", **fields}
    text = json.dumps({"Regions": {"900": {"RegionID": 900, "Nodes": [node]}}})
    asked: list[Relay] = []

    async def ask(relay: Relay) -> list[Finding]:
        asked.append(relay)
        return [GOOD]

    (parsed,) = nodes_of(text, "map")
    assert asyncio.run(ask_node(parsed, ask, root=None, key="ab" * 32)) == [GOOD]
    (relay,) = asked
    assert relay.addresses == addresses
    assert (relay.https_port, relay.http_port, relay.stun_port) == ports
    assert relay.verified is verified
    assert relay.server_key == "ab" * 32


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (socket.EAI_NONAME, Status.FAILED),
        # this machine's DNS is what is broken
        (socket.EAI_AGAIN, Status.SKIPPED),
        (socket.EAI_FAIL, Status.SKIPPED),
    ],
)
def test_a_node_that_nobody_finds_is_broken(
    monkeypatch: pytest.MonkeyPatch, code: int, status: Status
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", mock.Mock(side_effect=socket.gaierror(code, "said")))
    node = {"Name": "900a", "RegionID": 900, "HostName": "away.invalid"}
    text = json.dumps({"Regions": {"900": {"RegionID": 900, "Nodes": [node]}}})

    async def ask(_relay: Relay) -> list[Finding]:
        raise AssertionError

    (parsed,) = nodes_of(text, "map")
    (finding,) = asyncio.run(ask_node(parsed, ask, root=None, key=None))
    assert (finding.check, finding.status) == (Check.DNS, status)


def test_many_relays_may_have_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    try:
        ask_all([], parallel=1, time_limit=1, on_answer=lambda _: None)
        most = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("http", "seen"),
    [
        (None, "204 with the right response"),
        (lambda _path, _headers: response("308 Permanent Redirect", location="https://x/"), "redirects"),
        (lambda _path, _headers: response("204 No Content"), "X-Tailscale-Response is None"),
    ],
)
def test_port_80_is_proved_by_the_answer_that_clients_expect(http: Answers | None, seen: str) -> None:
    with running(Behaviour(http=http)) as relay:
        (finding,) = asyncio.run(ask_port_80(relay, seconds=5))
    assert (finding.status is Status.OK) is (http is None)
    assert seen in finding.seen


def test_port_80_of_who_does_not_answer_is_not_proved() -> None:
    with running(Behaviour()) as relay:
        pass
    (finding,) = asyncio.run(ask_port_80(relay, seconds=5))
    assert (finding.check, finding.status) == (Check.CAPTIVE_PORTAL, Status.FAILED)
    for silent in (dataclasses.replace(relay, http_port=None), dataclasses.replace(relay, can_port_80=False)):
        assert asyncio.run(ask_port_80(silent, seconds=5)) == []


def test_a_resolver_without_answer_holds_nobody_beyond_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering, answered = threading.Event(), threading.Event()

    def look_up(*_arguments: object, **_options: object) -> list[object]:
        answering.wait(10)
        answered.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    (node,) = nodes_of(
        '{"Regions": {"900": {"RegionID": 900, "Nodes":'
        f' [{{"Name": "900a", "RegionID": 900, "HostName": "{DOMAIN}"}}]}}}}}}',
        "x",
    )
    ask = mock.AsyncMock()
    try:
        ((finding,),) = ask_all(
            [lambda: ask_node(node, ask, root=None, key=None)],
            parallel=1,
            time_limit=0.2,
            on_answer=lambda _: None,
        )
        assert not answered.is_set()
    finally:
        answering.set()
    assert "time limit of 0.2 s" in finding.seen
    ask.assert_not_awaited()


def map_of(relay: Relay) -> str:
    node = {"Name": "900a", "RegionID": 900, "HostName": DOMAIN, "IPv4": "127.0.0.1", "IPv6": "none"}
    node |= {"DERPPort": relay.https_port, "STUNPort": relay.stun_port}
    return json.dumps({"Regions": {"900": {"RegionID": 900, "RegionCode": "home", "Nodes": [node]}}})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(probe_command, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("_signals_kept")
def test_a_derp_map_is_asked_and_every_report_tells_the_same(tmp_path: Path) -> None:
    derp_map, root, keys = tmp_path / "map.json", tmp_path / "root.pem", tmp_path / "keys.json"
    xml, metrics = tmp_path / "probe.xml", tmp_path / "probe.prom"
    with running(Behaviour()) as relay:
        derp_map.write_text(map_of(relay))
        root.write_text(relay.ca_roots or "")
        arguments = ("--derp-map", derp_map, "--ca", root, "--server-keys", keys, "--timeout", 5)
        done = run(*arguments, "--json", "--accept-key", "--junit", xml, "--prometheus", metrics)
        told = json.loads(done.stdout)
        assert json.loads(keys.read_text()) == {DOMAIN: SERVER_KEY.hex()}

        keys.write_text(json.dumps({DOMAIN: "ff" * 32}))
        changed = run(*arguments, "--json")
    (found,) = told["relays"]
    assert (found["region"], found["domain"], found["stack"]) == ("home", DOMAIN, "")
    assert done.exit_code == told["exit_code"] == (0 if found["up"] else BROKEN)
    statuses = {(f["check"], f["address"]): f["status"] for f in found["findings"]}
    assert statuses["derp-upgrade", "127.0.0.1"] == statuses["stun", "127.0.0.1"] == "ok"

    suites = ET.fromstring(xml.read_bytes())  # noqa: S314 - our own
    assert int(suites.attrib["tests"]) == len(found["findings"])
    assert int(suites.attrib["failures"]) == list(statuses.values()).count("failed")
    samples = [s for f in text_string_to_metric_families(metrics.read_text()) for s in f.samples]
    up = {s.labels["region"]: s.value for s in samples if s.name == "derp_probe_up"}
    assert up == {"home": float(found["up"])}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (derp_map, root, keys, xml, metrics)
    )

    assert changed.exit_code == BROKEN
    (other,) = json.loads(changed.stdout)["relays"]
    assert "server-key" in {f["check"] for f in other["findings"] if f["status"] == "failed"}


@pytest.mark.usefixtures("_signals_kept")
def test_people_are_told_what_is_broken_what_it_means_and_how_to_mend_it(tmp_path: Path) -> None:
    derp_map = tmp_path / "map.json"
    with running(Behaviour()) as relay:
        # without the root of its authority
        derp_map.write_text(map_of(relay))
        done = run("--derp-map", derp_map, "--timeout", 5)
    assert done.exit_code == BROKEN
    said = " ".join(done.stdout.split())
    assert "broken: tls" in said
    assert "1 broken" in said
    assert "not asked: no trusted TLS connection" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--derp-map", "map.json", "home"], "name no stacks beside it"),
        (["--accept-key", "--derp-map", "map.json"], "--accept-key needs --server-keys"),
        (["--server-keys", "keys.json"], "are for --derp-map"),
        (["--parallel", "0"], "--parallel"),
        (["--time-limit", "0"], "--time-limit"),
        (["--derp-map", "not-there.json"], "cannot be read"),
    ],
)
@pytest.mark.usefixtures("_signals_kept")
def test_wrong_options_are_told_before_anything_is_asked(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.exit_code == WRONG_ASKED
    assert told in done.output


@pytest.mark.usefixtures("_signals_kept")
def test_addresses_and_keys_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # rich takes :a:, :b: and :key: for emoji unless it is told not to
    address = "fd12:3456:a:b::1"
    said = failed(Check.TLS, address, f"at {address}", meaning="see derp-relays:key:", mend="x")
    monkeypatch.setattr("relayctl.probe_command.ask_all", mock.Mock(return_value=[[said]]))
    derp_map = tmp_path / "map.json"
    derp_map.write_text(map_of(Relay(DOMAIN, ["127.0.0.1"])))
    monkeypatch.setenv("COLUMNS", "200")
    done = run("--derp-map", derp_map)
    assert done.exit_code == BROKEN
    assert done.output.count(address) == 2
    assert "derp-relays:key:" in done.output


def test_only_a_servers_firewall_says_which_ports_may_be_open() -> None:
    def relay(**values: object) -> Relay:
        settings = settings_from({**MINIMAL, **values}, "stacks/Pulumi.test.yaml")
        return relay_check.relay_of(settings, ["203.0.113.7"], None, None)

    assert relay().other_ports is None
    rules = [
        {"protocol": "tcp", "port": "8000-8002", "from": ["203.0.113.0/24"]},
        {"protocol": "udp", "port": "51820", "from": ["203.0.113.0/24"]},
        {"protocol": "icmp", "from": ["203.0.113.0/24"]},
    ]
    server = {"kind": "hetzner", "location": "nbg1", "sshFrom": ["203.0.113.0/24"], "firewallRules": rules}
    assert relay(host=server).other_ports == {22, 80, 8000, 8001, 8002}
    assert (without := relay(caddy={"answerByAddress": False})).http_port == 80
    assert not without.can_port_80
