"""A region of its own server, looked at from hosts that are neither the server nor who made it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.hetzner_host import first_address
from relayctl.prerequisites import provider_plugins
from relayctl.prerequisites.progress import Progress
from sandbox.machines.network import PLACES_OUTSIDE, Outside
from settings import PROJECT
from settings.base import PROJECT_FOLDER
from tests.regions.cloud import Cloud, cloud
from tests.regions.port_scan import LAST_PORT, Found, Ports

STACK = "nbg"
# Where Hetzner's servers, like those of others, ask for what they are: user data among it.
METADATA_SERVICE = "169.254.169.254"
EXTRA_PORT = 8443

# Says over HTTP, on all addresses of both families, that it is there.
_LISTEN = """
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"somebody is there")
server = Server(("::", int(sys.argv[1])), Answer)
print("listening", flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Region:
    """A region that `up` brought up, and two places outside: SSH is let in from ``friend`` alone."""

    cloud: Cloud
    settings: dict[str, Any]
    stranger: Outside
    friend: Outside
    server_id: int
    ipv4: str
    ipv6: str
    said: str

    @property
    def addresses(self) -> tuple[str, str]:
        return self.ipv4, self.ipv6

    @property
    def ca(self) -> Path:
        return self.cloud.checkout.folder / ".relayctl" / self.said.split(".relayctl/")[1].split()[0]

    def on_server(self, *argv: str) -> str:
        """Run a command at the server's console."""
        done = subprocess.run(
            self.cloud.machines.command(self.server_id, argv), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self, **host: Any) -> subprocess.CompletedProcess[str]:
        """Bring it up again with other settings of the host; the exit code is the caller's to judge."""
        self.cloud.checkout.write_stack({**self.settings, "host": {**self.settings["host"], **host}}, STACK)
        return self.cloud.checkout.relayctl("up", STACK)

    def asked(self, place: Outside, port: int) -> list[str]:
        """Return what HTTP servers at both addresses say, else what curl's exit codes mean."""
        said = []
        for host in (self.ipv4, f"[{self.ipv6}]"):
            done = place.run(["curl", "--silent", "--max-time", "3", f"http://{host}:{port}/"])
            meaning = {7: "refused", 28: "silent"}.get(done.returncode, f"curl's {done.returncode}")
            said.append(done.stdout or meaning)
        return said

    def ssh(self, place: Outside, address: str) -> subprocess.CompletedProcess[str]:
        """Log in from a place outside with all that the stack's own connection has; its timeout is short."""
        config = f".relayctl/ssh/{STACK}/config"
        options = ["-F", config, "-o", "ControlPath=none", "-o", "ConnectTimeout=3", "-l", "root"]
        return subprocess.run(
            place.command(["ssh", *options, "--", address, "hostname"]),
            cwd=self.cloud.checkout.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def containers(self) -> str:
        """Return the ids of all containers that run."""
        return self.on_server("docker", "ps", "--quiet", "--no-trunc")


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    with (
        cloud(tmp_path_factory.mktemp("region")) as made,
        made.machines.outside(0) as stranger,
        made.machines.outside(1) as friend,
    ):
        settings = made.settings(STACK)
        settings["host"]["sshFrom"] += [friend.ipv4, friend.ipv6]
        made.checkout.write_stack(settings, STACK)
        done = made.checkout.relayctl("up", STACK)
        assert done.returncode == 0, done.stdout + done.stderr
        server: Any = made.client.servers.get_by_name(f"derp-{STACK}")
        yield Region(
            cloud=made,
            settings=settings,
            stranger=stranger,
            friend=friend,
            server_id=server.id,
            ipv4=server.public_net.ipv4.ip,
            ipv6=first_address(server.public_net.ipv6.ip),
            said=done.stdout,
        )


def run_here(place: Outside, *module: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this project in a place outside."""
    return place.run([sys.executable, "-m", *module], timeout=180, env={"PYTHONPATH": str(PROJECT_FOLDER)})


def scanned(place: Outside, addresses: Sequence[str], last_port: int = LAST_PORT) -> list[Found]:
    """Scan addresses at the same time."""

    def one(address: str) -> Found:
        done = run_here(place, "tests.regions.port_scan", address, str(last_port))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return Found(Ports(**found["tcp"]), Ports(**found["udp"]), found["ping"])

    with concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(one, addresses))


@contextlib.contextmanager
def moved(region: Region) -> Iterator[str]:
    """Have this machine reach the server from another address, which is yielded, while the context lasts."""
    here = region.cloud.here[0]
    elsewhere = str(ipaddress.IPv4Address(here) + PLACES_OUTSIDE)
    (route,) = json.loads(subprocess.check_output(["ip", "-json", "route", "get", region.ipv4]))
    changes = (["address", "{}", f"{elsewhere}/32"], ["route", "{}", region.ipv4, "src", elsewhere])

    def change(how: str, words: Sequence[str]) -> None:
        subprocess.run(["ip", *(word.format(how) for word in words), "dev", route["dev"]], check=True)

    with contextlib.ExitStack() as undone:
        for words in changes:
            change("add", words)
            undone.callback(change, "delete", words)
        yield elsewhere


@contextlib.contextmanager
def listening(command: Sequence[str]) -> Iterator[None]:
    """Run a command that listens, while the context lasts."""
    # nsenter has a child where it enters a namespace of processes: both are ended.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"listening\n"
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def test_a_stand_in_is_announced_and_only_where_it_is_used(region: Region) -> None:
    cli = region.cloud.checkout.cli
    installed = all(provider_plugins.find(name, cli, Progress()).installed for name in ("docker", "hcloud"))
    assert ("STAND-IN IN USE" in region.said) is not installed


def test_exactly_the_declared_ports_answer(region: Region) -> None:
    """HTTP, HTTPS, HTTP/3, STUN and ping; of all else not even a refusal comes back, over both families."""
    expected = Found(tcp=Ports([80, 443], []), udp=Ports([443, 3478], []), ping=True)
    assert scanned(region.stranger, region.addresses) == [expected, expected]


def test_where_ssh_is_let_in_it_is_all_that_is_there_besides(region: Region) -> None:
    expected = Found(tcp=Ports([22, 80, 443], []), udp=Ports([443, 3478], []), ping=True)
    assert scanned(region.friend, region.addresses, 4096) == [expected, expected]


def test_a_stranger_finds_all_right_and_learns_its_own_addresses(region: Region) -> None:
    arguments = ["--domain", region.settings["domain"], "--ca", str(region.ca), "--json"]
    arguments += ["--address", region.ipv4, "--address", region.ipv6, "--timeout", "30"]
    done = run_here(region.stranger, "probe", *arguments)
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)["findings"]
    # Nobody can have a record in example.com.
    bad = [found for found in findings if found["status"] != "ok" and found["check"] != "dns"]
    assert not bad, bad
    mapped = {f["address"]: f["facts"]["mapped_address"] for f in findings if f["check"] == "stun"}
    assert mapped == {region.ipv4: region.stranger.ipv4, region.ipv6: region.stranger.ipv6}


def test_ssh_is_for_the_allowed_network_alone(region: Region) -> None:
    for address in region.addresses:
        refused = region.ssh(region.stranger, address)
        assert refused.returncode == 255, refused.stdout
        assert "timed out" in refused.stderr
        allowed = region.ssh(region.friend, address)
        assert (allowed.returncode, allowed.stdout) == (0, f"derp-{STACK}\n"), allowed.stderr


def test_the_server_lets_nobody_in_by_password(region: Region) -> None:
    options = ["-F", "/dev/null", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3"]
    done = region.friend.run(["ssh", *options, f"root@{region.ipv4}", "true"])
    assert done.returncode == 255, done.stdout
    assert "Permission denied (publickey)." in done.stderr


def test_containers_do_not_reach_the_metadata_service(region: Region) -> None:
    """The server itself does; containers reach all else that is where the service is."""
    ip = ["ip", "address", "add", f"{METADATA_SERVICE}/32", "dev", "eth0"]
    with region.cloud.machines.outside(2) as service:
        assert service.run(ip).returncode == 0
        region.on_server("ip", "route", "replace", METADATA_SERVICE, "dev", "eth0")
        with listening(service.command([sys.executable, "-c", _LISTEN, "80"])):
            for name in ("derper", "caddy"):
                pid = region.on_server("docker", "inspect", "--format", "{{.State.Pid}}", name).strip()

                def get(address: str, *place: str) -> str:
                    curl = ["curl", "--silent", "--max-time", "3", f"http://{address}/"]
                    return region.on_server("sh", "-c", '"$@" || echo "curl: $?"', "sh", *place, *curl)

                inside = ("nsenter", f"--net=/proc/{pid}/ns/net")
                assert get(METADATA_SERVICE) == "somebody is there"
                assert get(service.ipv4, *inside) == "somebody is there"
                assert get(METADATA_SERVICE, *inside) == "curl: 7\n"


def test_a_firewall_rule_opens_a_port_to_the_network_that_it_names(region: Region) -> None:
    """Server and containers go on as they were."""
    before = region.containers()
    rule = {"protocol": "tcp", "port": EXTRA_PORT, "from": [region.friend.ipv4, region.friend.ipv6]}
    with listening(
        region.cloud.machines.command(region.server_id, ["python3", "-c", _LISTEN, str(EXTRA_PORT)])
    ):
        assert region.asked(region.friend, EXTRA_PORT) == ["silent"] * 2
        done = region.up(firewallRules=[rule])
        assert done.returncode == 0, done.stdout + done.stderr
        assert region.asked(region.friend, EXTRA_PORT) == ["somebody is there"] * 2
        assert region.asked(region.stranger, EXTRA_PORT) == ["silent"] * 2
    assert [server.id for server in region.cloud.client.servers.get_all()] == [region.server_id]
    assert region.containers() == before


def test_without_the_rule_the_port_is_closed_even_by_who_is_shut_out(region: Region) -> None:
    """By a machine whose address has changed since: it lets itself in by the same update."""
    before = region.containers()
    assert region.asked(region.friend, EXTRA_PORT) == ["refused"] * 2
    with moved(region) as address:
        done = region.up(sshFrom=[*region.settings["host"]["sshFrom"], address])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ssh: no answer yet" in done.stdout
    assert region.asked(region.friend, EXTRA_PORT) == ["silent"] * 2
    assert region.containers() == before


def test_keys_that_the_file_has_lost_are_not_made_anew(region: Region) -> None:
    """The server knows no others; and what is told of that is how to have them back."""
    path = region.cloud.checkout.folder / "stacks" / f"Pulumi.{STACK}.yaml"
    whole = path.read_text()
    file = yaml.safe_load(whole)
    for key in ("sshHostKey", "sshDeployKey"):
        del file["config"][f"{PROJECT}:{key}"]
    path.write_text(yaml.safe_dump(file))
    done = region.cloud.checkout.relayctl("up", STACK)
    said, left = done.stdout + done.stderr, yaml.safe_load(path.read_text())
    path.write_text(whole)
    assert done.returncode == 1, said
    assert f"has lost sshHostKey and sshDeployKey, by which the server derp-{STACK} is reached" in said
    assert left == file


def test_who_answers_with_another_host_key_is_not_talked_to(region: Region, tmp_path: Path) -> None:
    """The last test of this module: the server's key is no longer its own."""
    before = region.containers()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    put = ["sh", "-c", 'printf %s "$1" >/etc/ssh/ssh_host_ed25519_key', "sh", (tmp_path / "key").read_text()]
    region.on_server(*put)
    region.on_server("systemctl", "restart", "ssh")
    done = region.up(firewallRules=[])
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "shows another host key than the one that is pinned" in said
    assert "Traceback" not in said
    assert region.containers() == before
    for address in region.addresses:
        refused = region.ssh(region.friend, address)
        assert refused.returncode == 255, refused.stdout
        assert "Host key verification failed" in refused.stderr
