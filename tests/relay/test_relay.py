"""The main job end to end: the real program, engine, Docker, derper and Caddy, seen by real clients."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayctl.prerequisites import go_programs, provider_plugins
from relayctl.prerequisites.progress import Progress
from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.relay.running_relay import CADDY, DERPER, DOMAIN, RunningRelay, running_relay

NETWORK = "relay-test"


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    folder = tmp_path_factory.mktemp("relay")
    (folder / "blog").mkdir()
    (folder / "blog" / "index.html").write_text("<h1>a folder of the host</h1>")
    sites = [
        {"names": ["blog.localhost"], "folder": "blog"},
        {"names": ["old.localhost"], "redirect": "https://new.localhost/"},
        # derper's own page stands in for any other container's
        {"names": ["app.localhost", "www.app.localhost"], "upstream": f"{DERPER}:80"},
        {"names": ["away.localhost"], "upstream": "away:8080"},
        # Caddy's own authority signs for its names alone, and is no public one
        {"names": ["tls.localhost"], "upstream": f"https://{CADDY}", "tls": {"serverName": DOMAIN}},
        {
            "names": ["any.localhost"],
            "upstream": f"https://{CADDY}",
            "tls": {"serverName": DOMAIN, "verify": False},
        },
    ]
    with running_relay(
        host, folder, network={"name": NETWORK}, volumes={"prefix": "relay-test_"}, sites=sites
    ) as made:
        yield made


def test_up_ends_with_checks_an_address_and_a_derp_map(relay: RunningRelay) -> None:
    assert f"The relay is up: https://{DOMAIN}" in relay.said
    policy = json.loads(relay.said[relay.said.index("\n{") : relay.said.index("\n}") + 2])
    node = policy["derpMap"]["Regions"]["999"]["Nodes"][0]
    assert node["HostName"] == DOMAIN
    assert (node["IPv4"], node["IPv6"]) == (relay.outside.here_ipv4, relay.outside.here_ipv6)
    assert node["CanPort80"]
    for command in (f"make up STACK={STACK}", f"make down STACK={STACK}"):
        assert command in relay.said


def test_a_stand_in_is_announced_and_only_where_it_is_used(relay: RunningRelay) -> None:
    plugin = provider_plugins.find("docker", relay.checkout.cli, Progress())
    assert ("STAND-IN IN USE" in relay.said) is not plugin.installed


def test_an_upstream_that_is_not_there_is_told_and_the_others_are_not(relay: RunningRelay) -> None:
    warned = [line for line in relay.said.splitlines() if "does not answer" in line]
    assert len(warned) == 2, relay.said
    assert "sites[4].upstream: caddy-test:443 does not answer (tls: failed to verify certificate" in warned[1]
    assert " 502" in relay.get("tls.localhost").splitlines()[0]
    assert " 200" in relay.get("any.localhost").splitlines()[0]
    assert "sites[3].upstream: away:8080 does not answer" in warned[0]
    assert "visitors of away.localhost get 502" in warned[0]
    assert " 502" in relay.get("away.localhost").splitlines()[0]


def test_a_client_outside_finds_all_right_and_learns_its_own_addresses(relay: RunningRelay) -> None:
    probed = relay.probe()
    bad = [f for f in probed["findings"] if f["status"] != "ok"]
    # of names below .localhost DNS is not asked
    assert [f["check"] for f in bad] == ["dns"], bad
    mapped = {f["address"]: f["facts"]["mapped_address"] for f in probed["findings"] if f["check"] == "stun"}
    assert mapped == {
        relay.outside.here_ipv4: relay.outside.there_ipv4,
        relay.outside.here_ipv6: relay.outside.there_ipv6,
    }


@pytest.fixture(scope="module")
def derp_map(relay: RunningRelay, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file that `map` wrote while the relay ran."""
    path = tmp_path_factory.mktemp("map") / "derp-map.json"
    done = relay.checkout.relayctl("map", "--format", "json", "--output", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_the_map_claims_port_80_since_it_was_just_proved(relay: RunningRelay, derp_map: Path) -> None:
    (node,) = json.loads(derp_map.read_text())["Regions"]["999"]["Nodes"]
    assert (node["IPv4"], node["IPv6"]) == (relay.outside.here_ipv4, relay.outside.here_ipv6)
    assert node["CanPort80"] is True


def test_the_relay_is_found_working_by_its_stack_and_by_its_map(
    relay: RunningRelay, derp_map: Path, tmp_path: Path
) -> None:
    """By the stack on the host itself, by the map from elsewhere, where nothing but two files is known."""
    by_stack = relay.checkout.relayctl("probe", STACK, "--json")
    told = json.loads(by_stack.stdout)
    assert by_stack.returncode == 0, by_stack.stdout
    (found,) = told["relays"]
    assert (found["stack"], found["region"], found["up"]) == (STACK, "test", True)
    keys = {f["facts"]["server_key"] for f in found["findings"] if f["check"] == "server-key"}
    (key_file,) = (relay.checkout.folder / ".relayctl").glob("*.server-key")
    assert keys == {key_file.read_text().strip()}

    metrics = tmp_path / "relay.prom"
    by_map = relay.outside.run(
        [
            *(sys.executable, "-m", "relayctl", "probe", "--derp-map", str(derp_map), "--ca", str(relay.ca)),
            *("--prometheus", str(metrics)),
        ],
        cwd=relay.checkout.folder,
    )
    assert by_map.returncode == 0, by_map.stdout + by_map.stderr
    assert "1 asked" in by_map.stdout
    assert "all work" in by_map.stdout
    assert f'derp_probe_up{{domain="{DOMAIN}",region="test",stack=""}} 1.0' in metrics.read_text()


def test_another_key_than_the_noted_one_is_told_until_it_is_accepted(relay: RunningRelay) -> None:
    (key_file,) = (relay.checkout.folder / ".relayctl").glob("*.server-key")
    right = key_file.read_text()
    key_file.write_text("ab" * 32)
    found = relay.checkout.relayctl("probe", STACK, "--accept-key")
    assert found.returncode == 1, found.stdout
    assert "broken: server-key" in found.stdout
    assert key_file.read_text() == right


def test_derpprobe_is_content(relay: RunningRelay, derp_map: Path, tmp_path: Path) -> None:
    """Tailscale's own prober: mesh, STUN over both families, and bandwidth, through Caddy."""
    derpprobe = go_programs.build("derpprobe", Progress())
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{relay.outside.here_ipv4} {DOMAIN}\n{relay.outside.here_ipv6} {DOMAIN}\n")
    # Caddy's own authority signs for 12 hours, and derpprobe's TLS probe wants a week: it is left out.
    command = (
        f"mount --bind {hosts} /etc/hosts && exec {derpprobe} -once -derp-map=file://{derp_map}"
        " -tls-interval=0 -bw-interval=1s -bw-probe-size-bytes=1000000"
    )
    done = relay.outside.run(
        ["unshare", "--mount", "sh", "-c", command], env={"SSL_CERT_FILE": str(relay.ca)}, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    good = set(re.findall(r"good: ([^\s:]+)", said))
    assert {f"derp/test/999a/{kind}" for kind in ("udp", "udp6")} <= good, said
    assert {f"derp/test/999a/999a/{kind}" for kind in ("mesh", "bw")} <= good, said


def test_a_second_update_changes_nothing_and_neither_does_a_refresh(relay: RunningRelay) -> None:
    relay.assert_nothing_to_change()


def test_the_key_survives_replacing_the_container(relay: RunningRelay) -> None:
    before_key, before_id = relay.server_key(), relay.host.client().containers.get(DERPER).id
    with relay.checkout.pulumi() as pulumi:
        state = json.loads(pulumi("stack", "export", "--stack", STACK).stdout)
        urn = next(
            r["urn"] for r in state["deployment"]["resources"] if r["urn"].endswith(":Container::derper")
        )
        done = pulumi("up", "--yes", "--skip-preview", "--stack", STACK, "--replace", urn)
        assert done.returncode == 0, done.stdout + done.stderr
    assert relay.host.client().containers.get(DERPER).id != before_id
    assert relay.server_key() == before_key


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("blog.localhost", "/", "a folder of the host"),
        ("old.localhost", "/page?q=1", "location: https://new.localhost/page?q=1"),
        ("app.localhost", "/", "How to run a DERP server"),
        ("www.app.localhost", "/", "How to run a DERP server"),
    ],
)
def test_the_other_sites_live_beside_the_relay(
    relay: RunningRelay, name: str, path: str, expected: str
) -> None:
    assert expected in relay.get(name, path)
    assert f"ocation: https://{name}{path}" in relay.get(name, path, scheme="http")


def test_the_challenge_is_answered_by_name_too(relay: RunningRelay) -> None:
    assert " 204 " in relay.get(DOMAIN, "/generate_204", scheme="http").splitlines()[0]


@pytest.mark.parametrize(
    "path", ["/debug", "/debug/", "/debug/varz", "/DEBUG/varz", "/debug%2fvarz", "//debug/varz"]
)
def test_debug_is_closed(relay: RunningRelay, path: str) -> None:
    assert " 404" in relay.get(DOMAIN, path).splitlines()[0]


def test_caddy_takes_the_configuration_without_a_complaint(relay: RunningRelay) -> None:
    """Valid, in the form that `caddy fmt` gives, and nothing warned of but what plain HTTP implies."""
    container = relay.host.client().containers.get(CADDY)
    code, output = container.exec_run(["caddy", "validate", "--config", "/etc/caddy/Caddyfile"])
    assert code == 0, output
    chunks, _ = container.get_archive("/etc/caddy/Caddyfile")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        member = archive.extractfile("Caddyfile")
        assert member is not None
        text = member.read()
    formatted = subprocess.run(
        [str(go_programs.build("caddy", Progress())), "fmt", "-"], input=text, capture_output=True, check=True
    )
    assert formatted.stdout == text


def test_both_containers_are_healthy_and_bounded(relay: RunningRelay) -> None:
    for name in (DERPER, CADDY):
        attrs = relay.host.client().containers.get(name).attrs
        assert attrs["State"]["Health"]["Status"] == "healthy"
        assert attrs["HostConfig"]["Memory"] == 512 * 1024 * 1024
        assert attrs["HostConfig"]["LogConfig"]["Type"] == "local"
        assert attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_down_keeps_data_and_down_with_volumes_leaves_nothing(relay: RunningRelay) -> None:
    """The last test of this module: it takes the relay down."""
    key, client = relay.server_key(), relay.host.client()
    volumes = {"caddy_config", "caddy_data", "caddy_etc", "caddy_srv", "derp_certs", "derp_data"}

    done = relay.checkout.relayctl("down", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.containers.list(all=True) == []
    assert {v.name for v in client.volumes.list()} == {f"relay-test_{name}" for name in volumes}
    assert NETWORK not in {network.name for network in client.networks.list()}

    done = relay.checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert relay.server_key() == key

    done = relay.checkout.relayctl("down", STACK, "--volumes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((relay.checkout.folder / ".relayctl").glob("*.server-key")) == []
    assert client.containers.list(all=True) == []
    assert client.volumes.list() == []
    assert {network.name for network in client.networks.list()} == {"bridge", "host", "none"}
    assert [tag for image in client.images.list() for tag in image.tags] == []
    left = [
        name
        for _, _, names in os.walk(relay.checkout.folder / "state" / ".pulumi" / "stacks")
        for name in names
    ]
    assert [name for name in left if name.endswith(".json")] == []
