"""The whole way for real: headscale gives two Tailscale clients our DERP map, and they meet at our relay."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from settings.base import PROJECT_FOLDER
from tests.docker_host import DockerHost
from tests.relay.outside import outside
from tests.relay.programs import running
from tests.relay.running_relay import CADDY, DERPER, DOMAIN, RunningRelay, running_relay
from tests.relay.tailnet import Tailscale, Wall, forward, headscale, log_in, tailscale, wall

MEBIBYTE = 2**20
PORT = 9000


@dataclass(frozen=True)
class Tailnet:
    """Two clients that have the relay in common and nothing else; ``standing`` is the wall between them."""

    relay: RunningRelay
    one: Tailscale
    other: Tailscale
    wall: Wall
    standing: contextlib.ExitStack

    def ping(self, *options: str) -> str:
        """Return what ``tailscale ping`` says from the one to the other."""
        return self.one.run("ping", *options, self.other.address()).stdout

    def wait_for_pong(self) -> str:
        """Ping again and again until an answer comes, for a minute; return what came last."""
        deadline = time.monotonic() + 60
        while True:
            said = self.ping("--c=1", "--timeout=5s", "--until-direct=false")
            if "pong" in said or time.monotonic() > deadline:
                return said


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    folder = tmp_path_factory.mktemp("relay")
    with running_relay(host, folder, network={"name": "tailnet"}, volumes={"prefix": "t_"}) as made:
        yield made


@pytest.fixture(scope="module")
def tailnet(relay: RunningRelay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    folder = tmp_path_factory.mktemp("tailnet")
    derp_map = folder / "derp-map.yaml"
    relay.write_derp_map(derp_map, "headscale")
    here = relay.outside
    hosts = {DOMAIN: [here.here_ipv4, here.here_ipv6]}
    with contextlib.ExitStack() as opened:
        there = opened.enter_context(outside(relay.host.namespace))
        control = opened.enter_context(outside(relay.host.namespace))
        forward(relay.host, [here, there, control])
        standing = opened.enter_context(contextlib.ExitStack())
        between = standing.enter_context(wall(relay.host, here, there))
        server = opened.enter_context(headscale(control, folder / "headscale", derp_map))
        one, other = (
            opened.enter_context(tailscale(place, folder / name, roots=relay.ca, hosts=hosts))
            for place, name in ((here, "one"), (there, "other"))
        )
        log_in(one, server, "one")
        log_in(other, server, "other")
        made = Tailnet(relay, one, other, between, standing)
        assert "pong" in made.wait_for_pong()
        yield made


def test_they_meet_at_the_relay_and_nowhere_else(tailnet: Tailnet) -> None:
    said = tailnet.ping("--c=5", "--until-direct=false")
    assert re.findall(r"pong from other \S+ via (\S+)", said) == ["DERP(test)"] * 5, said
    (peer,) = tailnet.one.status()["Peer"].values()
    assert (peer["Relay"], peer["CurAddr"]) == ("test", "")
    # They know each other's addresses and tried.
    assert tailnet.wall.refused() > 0


def test_a_stream_goes_through_both_ways(tailnet: Tailnet, tmp_path: Path) -> None:
    from_one, from_other = os.urandom(4 * MEBIBYTE), os.urandom(4 * MEBIBYTE)
    (tmp_path / "sent").write_bytes(from_other)
    serve = [sys.executable, "-m", "tests.relay.exchange", str(PORT)]
    serve += [str(tmp_path / "sent"), str(tmp_path / "received")]
    with running(
        tailnet.other.place.command(serve), tmp_path / "log", {"PYTHONPATH": str(PROJECT_FOLDER)}
    ) as end:
        listening(tailnet.other, PORT)
        client = subprocess.Popen(
            tailnet.one.command("nc", tailnet.other.address(), str(PORT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        # Its end would end the other direction too, so it stays open until all has come.
        sending = threading.Thread(target=client.stdin.write, args=(from_one,))
        sending.start()
        came = client.stdout.read(len(from_other))
        sending.join()
        client.stdin.close()
        assert end.process is not None
        end.process.wait(60)
        client.wait(60)
    assert digest(came) == digest(from_other)
    assert digest((tmp_path / "received").read_bytes()) == digest(from_one)
    (peer,) = tailnet.one.status()["Peer"].values()
    assert (peer["Relay"], peer["CurAddr"]) == ("test", "")
    assert peer["TxBytes"] > len(from_one)
    assert peer["RxBytes"] > len(from_other)


def test_a_file_goes_through(tailnet: Tailnet, tmp_path: Path) -> None:
    sent = tmp_path / "file"
    sent.write_bytes(os.urandom(MEBIBYTE))
    got = tmp_path / "got"
    got.mkdir()
    for done in (
        tailnet.one.run("file", "cp", str(sent), f"{tailnet.other.address()}:"),
        tailnet.other.run("file", "get", "--wait", str(got)),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    assert digest((got / "file").read_bytes()) == digest(sent.read_bytes())


def test_netcheck_and_the_probe_say_the_same(tailnet: Tailnet) -> None:
    relay, report = tailnet.relay, tailnet.one.netcheck()
    findings = {(f["check"], f["family"]): f for f in relay.probe()["findings"]}
    assert {f["status"] for f in findings.values()} <= {"ok", "skipped"}, findings

    assert report["UDP"]
    assert report["IPv4"]
    assert report["IPv6"]
    assert report["PreferredDERP"] == relay.settings["region"]["id"]
    for family, key in (("IPv4", "GlobalV4"), ("IPv6", "GlobalV6")):
        mapped = report[key].rpartition(":")[0].strip("[]")
        assert findings["stun", family]["facts"]["mapped_address"] == mapped
    assert report["CaptivePortal"] is False
    latency = report["RegionLatency"][str(report["PreferredDERP"])] / 1e9
    ours = min(findings["stun", family]["latency_seconds"] for family in ("IPv4", "IPv6"))
    # a wire's latency is far below a millisecond; what is more is the machine's work at other things
    assert abs(latency - ours) < 0.25


def test_tailscales_debug_is_content(tailnet: Tailnet) -> None:
    said = tailnet.one.debug_derp("test")
    assert said["Errors"] == []
    # a single region is what the test is about
    assert [warning for warning in said["Warnings"] if "single point of failure" not in warning] == []
    assert any("working IPv4 and IPv6 connectivity" in info for info in said["Info"]), said
    assert any("established a DERP connection" in info for info in said["Info"]), said


@pytest.mark.parametrize("name", [DERPER, CADDY])
def test_clients_come_back_after_a_restart(tailnet: Tailnet, name: str) -> None:
    container = tailnet.relay.host.client().containers.get(name)
    before = container.attrs["State"]["StartedAt"]
    container.restart(timeout=5)
    container.reload()
    assert container.attrs["State"]["StartedAt"] != before
    said = tailnet.wait_for_pong()
    assert "via DERP(test)" in said, said
    for client in (tailnet.one, tailnet.other):
        assert client.process.process is not None
        assert client.process.process.poll() is None


def test_without_the_wall_they_need_no_relay(tailnet: Tailnet) -> None:
    """The last test here, as it takes the wall down: it is what kept them apart."""
    tailnet.standing.close()
    said = tailnet.ping("--c=30", "--until-direct=true")
    direct = f"via {tailnet.other.place.there_ipv4}:", f"via [{tailnet.other.place.there_ipv6}]:"
    assert any(way in said for way in direct), said


def listening(client: Tailscale, port: int) -> None:
    """Wait until something listens on a port of the client's loopback."""
    deadline = time.monotonic() + 30
    while f"127.0.0.1:{port}" not in client.place.run(["ss", "-Htln"]).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
