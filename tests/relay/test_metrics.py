"""Metrics of derper and Caddy: told on the network for them, and to nobody else, of a relay that works."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import yaml

from probe.finding import Check
from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.metric_names import MONITORING, Told, expressions, not_told
from tests.relay.running_relay import CADDY, DERPER, DOMAIN, RunningRelay, running_relay

NETWORK = "metrics-test"
SUBNET = "172.31.254.0/28"
OWN_NETWORK = f"derp-relays-{STACK}_metrics"
DERPER_URL = "http://172.31.254.2/debug/varz"
CADDY_URL = "http://172.31.254.3:9180/metrics"
PAIRS = 8
# Caddy's for metrics is 9180, its admin API's 2019; tests/regions looks at all that a whole region publishes.
LAST_PORT = "10000"

Curl = Callable[[str], str | None]


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    without = "reverse_proxy {} {{\n  header_up -X-Forwarded-For\n}}"
    sites: list[dict[str, Any]] = [
        {"names": ["derper.localhost"], "upstream": f"{DERPER}:80"},
        {"names": ["address.localhost"], "upstream": "172.31.254.2:80"},
        {"names": ["caddy.localhost"], "upstream": f"{CADDY}:9180"},
        {"names": ["caddy-address.localhost"], "upstream": "172.31.254.3:9180"},
        {"names": ["away.localhost"], "upstream": "away:80"},
        # what makes derper take a visitor for whoever asks it
        {"names": ["bare.localhost"], "snippet": without.format(f"{DERPER}:80")},
        {"names": ["bare-address.localhost"], "snippet": without.format("172.31.254.2:80")},
    ]
    with running_relay(
        host,
        tmp_path_factory.mktemp("relay"),
        network={"name": NETWORK},
        volumes={"prefix": "m_"},
        sites=sites,
        metrics={"subnet": SUBNET},
    ) as made:
        yield made


@pytest.fixture(scope="module")
def started(relay: RunningRelay) -> Iterator[Callable[[str, str], Curl]]:
    """Return what starts a container of somebody's on a network, and returns how it asks for a URL."""
    client = relay.host.client()
    made = []

    def start(name: str, network: str) -> Curl:
        container = client.containers.run(
            client.containers.get(CADDY).image.id,
            ["caddy", "respond", "--listen", "127.0.0.1:8099"],
            name=name,
            network=network,
            detach=True,
        )
        made.append(container)
        container.reload()
        return asked_in(relay.host, container.attrs["State"]["Pid"])

    yield start
    for container in made:
        with contextlib.suppress(docker.errors.NotFound):
            container.remove(force=True)


def asked_in(host: DockerHost, pid: int) -> Curl:
    """Return how the container whose first process is ``pid`` asks for a URL."""

    def curl(url: str) -> str | None:
        return answer(host.run(["nsenter", f"--net=/proc/{pid}/ns/net", *_curl(url)], timeout=30))

    return curl


def _curl(url: str) -> Sequence[str]:
    return ["curl", "--silent", "--include", "--max-time", "3", url]


def answer(done: Any) -> str | None:
    """Return the head and body that curl was given; None if nobody answered."""
    return done.stdout if done.returncode == 0 else None


def samples(answered: str | None) -> dict[str, float]:
    """Return what ``answered`` tells, by name, summed over labels; {} for an answer with none."""
    if answered is None or " 200 " not in answered.splitlines()[0]:
        return {}
    told: dict[str, float] = {}
    for name, _, value in Told.samples(answered.partition("\n\n")[2]):
        told[name] = told.get(name, 0) + value
    return told


def of_host(relay: RunningRelay, url: str) -> dict[str, float]:
    return samples(answer(relay.host.run(_curl(url), timeout=30)))


def is_answered(relay: RunningRelay, container: str, url: str) -> bool:
    """Tell whether a program in ``container`` is answered with a 2xx status."""
    code, _ = relay.host.client().containers.get(container).exec_run(["healthcheck", url])
    return bool(code == 0)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.2)


def refuses(answered: str | None) -> bool:
    """Tell whether no metric of either is in what was ``answered``."""
    return answered is None or not any(f"{name}_" in answered for name in ("derp", "caddy", "go", "stun"))


def test_the_host_and_who_joins_are_told(relay: RunningRelay, started: Callable[[str, str], Curl]) -> None:
    curl = started("prometheus", OWN_NETWORK)
    for url, names in (
        (
            DERPER_URL,
            {"derp_accepts", "derp_current_connections", "stun_requests", "process_start_unix_time"},
        ),
        (CADDY_URL, {"caddy_config_last_reload_successful", "process_resident_memory_bytes"}),
    ):
        assert names <= of_host(relay, url).keys()
        assert names <= samples(curl(url)).keys()
    # by name too, as the container itself finds them
    assert is_answered(relay, "prometheus", f"http://{DERPER}/debug/varz")
    assert is_answered(relay, "prometheus", f"http://{CADDY}:9180/metrics")


_SEND_TO_NOBODY = """
import asyncio, secrets, ssl, sys

from probe import Relay, derp
from probe.derp_client import log_in

async def send(domain, address, ca):
    relay = Relay(domain=domain, addresses=[address])
    client = await log_in(await derp.connect(relay, address, ssl.create_default_context(cafile=ca)))
    for _ in range(10):
        await client.send(secrets.token_bytes(32), b"packet")
    await client.close()

asyncio.run(send(*sys.argv[1:]))
"""


def test_what_is_told_moves_with_sessions(relay: RunningRelay, tmp_path: Path) -> None:
    before, served = of_host(relay, DERPER_URL), of_host(relay, CADDY_URL)

    def moved(name: str) -> float:
        return of_host(relay, DERPER_URL)[name] - before[name]

    with relay.sessions(tmp_path, pairs=PAIRS, interval="10ms") as running:
        assert moved("derp_current_connections") == 2 * PAIRS
        assert moved("derp_accepts") >= 2 * PAIRS
        assert moved("derp_bytes_received") > 0
        assert moved("derp_bytes_sent") > 0
        dropped = moved("derp_packets_dropped")
        address = relay.outside.here_ipv4
        done = relay.outside.run(
            [sys.executable, "-c", _SEND_TO_NOBODY, DOMAIN, address, str(relay.ca)], cwd=relay.checkout.folder
        )
        assert done.returncode == 0, done.stderr
        wait_until(lambda: moved("derp_packets_dropped") >= dropped + 10)
        relay.host.client().containers.get(CADDY).restart()
        wait_until(lambda: moved("derp_accepts") >= 4 * PAIRS)
        wait_until(lambda: moved("derp_current_connections") == 2 * PAIRS)
        report = running.end()
    assert report.reconnects >= 2 * PAIRS
    wait_until(lambda: moved("derp_current_connections") == 0)
    after = of_host(relay, CADDY_URL)
    assert after["process_start_time_seconds"] > served["process_start_time_seconds"]
    assert " 502" in relay.get("away.localhost").splitlines()[0]
    assert of_host(relay, CADDY_URL)["caddy_http_request_errors_total"] > after.get(
        "caddy_http_request_errors_total", 0
    )


def test_from_outside_nothing_tells_any(relay: RunningRelay) -> None:
    outside = relay.outside
    route = ["ip", "route", "add", SUBNET, "via", outside.here_ipv4]
    assert outside.run(route).returncode == 0
    for address in (outside.here_ipv4, f"[{outside.here_ipv6}]", "172.31.254.1"):
        assert "location: https://" in (answer(outside.run(_curl(f"http://{address}/"))) or "").lower()
        for url in (
            f"http://{address}/debug/varz",
            f"http://{address}/metrics",
            f"http://{address}:9180/metrics",
            f"http://{address}:2019/metrics",
        ):
            assert refuses(answer(outside.run(_curl(url)))), url
    for address, expected in (
        (outside.here_ipv4, [80, 443]),
        (outside.here_ipv6, [80, 443]),
        # the host's own end: what the host publishes is had at each of its addresses
        ("172.31.254.1", [80, 443]),
        ("172.31.254.2", []),
        ("172.31.254.3", []),
    ):
        done = outside.run(
            [sys.executable, "-m", "tests.regions.port_scan", address, LAST_PORT],
            cwd=relay.checkout.folder,
            timeout=120,
        )
        found = json.loads(done.stdout)["tcp"]["open"]
        assert found == expected, (address, found)


def test_neighbours_on_the_shared_network_are_refused(
    relay: RunningRelay, started: Callable[[str, str], Curl]
) -> None:
    curl = started("neighbour", NETWORK)
    client = relay.host.client()
    pid = client.containers.get("neighbour").attrs["State"]["Pid"]
    shared = {
        name: client.containers.get(name).attrs["NetworkSettings"]["Networks"][NETWORK]
        for name in (DERPER, CADDY)
    }
    for address in (shared[DERPER]["IPAddress"], f"[{shared[DERPER]['GlobalIPv6Address']}]"):
        assert "How to run a DERP server" in (curl(f"http://{address}/") or "")
    for name, port, path in ((DERPER, 80, "/debug/varz"), (CADDY, 9180, "/metrics")):
        for address in (shared[name]["IPAddress"], f"[{shared[name]['GlobalIPv6Address']}]"):
            assert refuses(curl(f"http://{address}:{port}{path}")), (name, address)
    assert is_answered(relay, "neighbour", f"http://{DERPER}/derp/probe")
    assert not is_answered(relay, "neighbour", f"http://{DERPER}/debug/varz")
    assert not is_answered(relay, "neighbour", f"http://{CADDY}:9180/metrics")
    for url in (DERPER_URL, CADDY_URL):
        assert refuses(curl(url)), url
        # by way of each of the two, which forward if the kernel's setting lets them
        for through in shared.values():
            within = ["nsenter", f"--net=/proc/{pid}/ns/net"]
            route = [*within, "ip", "route", "replace", SUBNET, "via", through["IPAddress"]]
            assert relay.host.run(route, timeout=30).returncode == 0
            assert refuses(curl(url)), (url, through["IPAddress"])
    assert refuses(curl(f"http://{shared[CADDY]['IPAddress']}:2019/metrics"))


@pytest.mark.parametrize(
    "name",
    [
        "derp.localhost",
        "derper.localhost",
        "address.localhost",
        "caddy.localhost",
        "caddy-address.localhost",
        "bare.localhost",
        "bare-address.localhost",
    ],
)
def test_through_caddys_sites_nothing_is_told(relay: RunningRelay, name: str) -> None:
    for path in ("/debug/varz", "/debug/", "/debug/vars", "/metrics"):
        assert refuses(relay.get(name, path)), path


def test_what_the_relay_does_for_clients_is_as_without(relay: RunningRelay) -> None:
    """STUN answers by the way that it came, though the container has a second one, which leads nowhere."""
    probed = relay.probe()
    assert [f for f in probed["findings"] if f["status"] == "failed"] == []
    mapped = {f["address"]: f["facts"]["mapped_address"] for f in probed["findings"] if f["check"] == "stun"}
    assert mapped == {
        relay.outside.here_ipv4: relay.outside.there_ipv4,
        relay.outside.here_ipv6: relay.outside.there_ipv6,
    }
    for name in (DERPER, CADDY):
        attrs = relay.host.client().containers.get(name).attrs
        within = ["nsenter", f"--net=/proc/{attrs['State']['Pid']}/ns/net"]
        way_out = relay.host.run([*within, "ip", "route", "show", "default"], timeout=30).stdout
        assert f"via {attrs['NetworkSettings']['Networks'][NETWORK]['Gateway']} " in way_out


def test_nothing_is_left_to_change_and_a_refresh_finds_nothing(relay: RunningRelay) -> None:
    relay.assert_nothing_to_change()


def test_a_subnet_that_the_relays_own_network_has_is_refused_before_anything_is_touched(
    relay: RunningRelay,
) -> None:
    client = relay.host.client()
    configured = client.networks.get(NETWORK).attrs["IPAM"]["Config"]
    (subnet,) = [each["Subnet"] for each in configured if "." in each["Subnet"]]
    before = {name: client.containers.get(name).id for name in (CADDY, DERPER)}
    relay.checkout.write_stack({**relay.settings, "metrics": {"subnet": subnet}})
    try:
        done = relay.checkout.relayctl("up", STACK, timeout=300)
    finally:
        relay.checkout.write_stack(relay.settings)
    assert done.returncode == 1
    assert f"the network {NETWORK} has addresses of metrics.subnet ({subnet})" in done.stdout
    assert "nothing was changed" in done.stdout
    assert {name: client.containers.get(name).id for name in before} == before


@pytest.fixture
def derp_map(relay: RunningRelay, tmp_path: Path) -> Path:
    path = tmp_path / "derp-map.json"
    policy = json.loads(relay.said[relay.said.index("\n{") : relay.said.index("\n}") + 2])
    path.write_text(json.dumps(policy["derpMap"]))
    return path


# What a service has that the unit closes in, as far as it can be had without systemd: no capability, a file
# system to read alone but for its own folders, and no memory to write and run (PR_SET_MDWE, linux/prctl.h).
_CLOSED_IN = """
mount -t tmpfs tmpfs /run && mkdir /run/derp-relays-probe && mount -t tmpfs tmpfs /var/tmp &&
mount -o remount,bind,ro / || exit 99
setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"; code=$?
cat /run/derp-relays-probe/derp-relays.prom
exit $code
"""
_NO_NEW_CODE = (
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0;"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


def test_the_timers_service_tells_what_dashboard_and_rules_name(
    relay: RunningRelay, derp_map: Path, tmp_path: Path
) -> None:
    unit = (MONITORING / "systemd" / "derp-relays-probe.service").read_text()
    (command,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    places = {
        "/opt/derp-relays/.venv/bin/python": sys.executable,
        "/etc/derp-relays/derp-map.json": str(derp_map),
        "/etc/derp-relays/server-keys.json": str(tmp_path / "server-keys.json"),
    }
    # as a drop-in has it, for roots that are not public
    command = command.removeprefix("ExecStart=").replace("$PROBE_OPTIONS", f"--ca {relay.ca}")
    words = [places.get(word, word) for word in command.split()]
    closed_in = ["unshare", "--mount", "sh", "-c", _CLOSED_IN, "sh", sys.executable, "-c", _NO_NEW_CODE]
    done = relay.outside.run(
        [*closed_in, *words],
        cwd=relay.checkout.folder,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = Told()
    told.add(done.stdout[done.stdout.index("# HELP derp_probe") :])
    assert told.values["derp_probe_up", "region"] == {"test"}
    # a check that was skipped, such as of a name that DNS does not know, is not told
    for name in ("derp_probe_check", "derp_probe_warning"):
        told.values[name, "check"] |= {check.value for check in Check}

    assert " 502" in relay.get("away.localhost").splitlines()[0]
    for url in (DERPER_URL, CADDY_URL):
        answered = answer(relay.host.run(_curl(url), timeout=30))
        assert answered is not None
        told.add(answered.partition("\n\n")[2])
    missing = {where: not_told(expression, told) for where, expression in expressions().items()}
    assert not {where: names for where, names in missing.items() if names}


def workflow_steps(
    relay: RunningRelay, derp_map: Path, folder: Path
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run the scripts of the workflow that need no network, as GitHub would, outside of the host."""
    folder.mkdir()
    (derp_map.parent / "roots.pem").write_text(relay.ca.read_text())
    workflow = yaml.safe_load((MONITORING / "github-actions.yaml").read_text())
    environment = {
        **workflow["env"],
        "GITHUB_WORKSPACE": str(derp_map.parent),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "RUNNER_TEMP": str(folder),
        # the root of the relay's own authority
        "CA": "roots.pem",
    }
    done = {}
    for step in workflow["jobs"]["probe"]["steps"]:
        # what setup.sh does is seen by every `make`
        if "run" not in step or step["run"] == "./setup.sh":
            continue
        script = folder / "script"
        script.write_text(step["run"])
        # https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#defaultsrunshell
        shell = [sys.executable] if step.get("shell") == "python" else ["bash", "-e"]
        done[step["name"]] = relay.outside.run(
            [*shell, str(script)], cwd=relay.checkout.folder, env=environment, timeout=120
        )
    return done


def test_the_workflow_passes_for_a_good_relay_and_tells_of_a_broken_one(
    relay: RunningRelay, derp_map: Path, tmp_path: Path
) -> None:
    good = workflow_steps(relay, derp_map, tmp_path / "good")
    assert list(good) == ["Ask the relays", "Tell what is wrong"]
    assert [step.returncode for step in good.values()] == [0, 0], good
    assert "::error" not in good["Tell what is wrong"].stdout
    assert f"| test {DOMAIN} | | | " in (tmp_path / "good" / "summary.md").read_text()

    caddy = relay.host.client().containers.get(CADDY)
    caddy.stop()
    try:
        bad = workflow_steps(relay, derp_map, tmp_path / "bad")
    finally:
        caddy.start()
    assert bad["Ask the relays"].returncode == 1
    assert bad["Tell what is wrong"].returncode == 0
    ipv6 = relay.outside.here_ipv6.replace(":", "%3A")
    for address in (relay.outside.here_ipv4, ipv6):
        assert f"::error title=test {DOMAIN} tls {address}::" in bad["Tell what is wrong"].stdout
    assert "<failure" in (tmp_path / "bad" / "derp-relays.xml").read_text()
    assert "| tls | " in (tmp_path / "bad" / "summary.md").read_text()
    wait_until(lambda: relay.probe()["up"])


def test_turned_off_it_is_gone_once_nobody_is_on_the_network(
    relay: RunningRelay, started: Callable[[str, str], Curl]
) -> None:
    """The last test here."""
    started("reader", OWN_NETWORK)
    key = relay.server_key()
    without = {name: value for name, value in relay.settings.items() if name != "metrics"}
    relay.checkout.write_stack(without)
    done = relay.checkout.relayctl("up", STACK)
    assert done.returncode != 0
    assert f"docker network disconnect {OWN_NETWORK} reader" in done.stdout
    client = relay.host.client()
    for container in client.networks.get(OWN_NETWORK).containers:
        if container.name not in (DERPER, CADDY):
            container.remove(force=True)
    done = relay.checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the network for metrics" in done.stdout
    assert "Relay sessions will end" in done.stdout
    assert OWN_NETWORK not in {network.name for network in client.networks.list()}
    for name in (DERPER, CADDY):
        assert list(client.containers.get(name).attrs["NetworkSettings"]["Networks"]) == [NETWORK]
    assert relay.server_key() == key
    # turned on, it is as costly
    relay.checkout.write_stack(relay.settings)
    done = relay.checkout.relayctl("preview", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"create +the network for metrics\n", done.stdout), done.stdout
    for name in ("derper's container: environment, network", "Caddy's container: network"):
        assert re.search(rf"replace +{name}\n", done.stdout), done.stdout
    assert "Relay sessions will end" in done.stdout
