"""A tailnet of a test's own: headscale and Tailscale's real clients, each in a namespace of its own.

What they may reach is the relay's host and what it forwards: none of them has
a way to the internet, and name servers are asked in vain.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.docker_host import DockerHost
from tests.relay.outside import Outside
from tests.relay.programs import Process, program

# Seconds for a daemon to answer, on a machine that is busy with other things.
_PATIENCE = 60.0
_HEADSCALE_PORT = 8080


@dataclass(frozen=True)
class Headscale:
    """A control server that serves one DERP map; ``url`` is what clients log in at."""

    url: str
    command: Sequence[str]
    place: Outside

    def run(self, *arguments: str) -> Any:
        """Return what headscale's command line answers, decoded from JSON."""
        done = self.place.run([*self.command, "--output", "json", *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def key(self) -> str:
        """Return a key that any number of clients can log in with."""
        users = self.run("users", "list") or [self.run("users", "create", "tester")]
        return str(self.run("preauthkeys", "create", "--user", str(users[0]["id"]), "--reusable")["key"])


@dataclass(frozen=True)
class Tailscale:
    """A tailscaled that runs in ``place``, and its command line."""

    place: Outside
    folder: Path
    process: Process

    def command(self, *arguments: str) -> list[str]:
        """Return the command line ``tailscale ARGUMENTS`` of this client, as it runs in its namespace."""
        return self.place.command([program("tailscale"), f"--socket={_socket(self.folder)}", *arguments])

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run ``tailscale ARGUMENTS``; the exit code is the caller's to judge."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False
        )

    def status(self) -> dict[str, Any]:
        """Return what the client knows of itself and its peers (tailscale ``ipnstate.Status``)."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def address(self) -> str:
        """Return the client's own IPv4 address in the tailnet."""
        return str(self.status()["Self"]["TailscaleIPs"][0])

    def netcheck(self) -> dict[str, Any]:
        """Return the report of ``tailscale netcheck`` (tailscale ``netcheck.Report``).

        Verbose, since it gives up its check for captive portals otherwise once STUN was quick.
        """
        done = self.run("netcheck", "--format=json", "--verbose")
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def debug_derp(self, region: str) -> dict[str, list[str]]:
        """Return what ``tailscale debug derp`` says of a region: ``Info``, ``Warnings`` and ``Errors``."""
        done = self.run("debug", "derp", region, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        said = json.loads(done.stdout)
        return {kind: said[kind] or [] for kind in ("Info", "Warnings", "Errors")}


def forward(host: DockerHost, ends: Sequence[Outside]) -> None:
    """Let namespaces reach each other through ``host``, over IPv4 and IPv6, as through the internet."""
    _done(host.run(["sysctl", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"], timeout=20))
    for end in ends:
        for family, gateway in (("-4", end.here_ipv4), ("-6", end.here_ipv6)):
            _done(end.run(["ip", family, "route", "add", "default", "via", gateway]))
    for one, other in itertools.permutations(ends, 2):
        for tables in ("iptables", "ip6tables"):
            # Docker refuses to forward what is none of its containers'.
            rule = ["-I", "FORWARD", "-i", one.link, "-o", other.link, "-j", "ACCEPT"]
            _done(host.run([tables, "-w", *rule], timeout=20))


@dataclass(frozen=True)
class Wall:
    """Rules of the relay's host that let nothing through between two namespaces."""

    host: DockerHost

    def refused(self) -> int:
        """Return the number of packets that it has refused."""
        done = self.host.run(["nft", "--json", "list", "table", "inet", "wall"], timeout=20)
        listed = json.loads(_done(done).stdout)["nftables"]
        rules = [entry["rule"]["expr"] for entry in listed if "rule" in entry]
        return sum(part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)


@contextlib.contextmanager
def wall(host: DockerHost, one: Outside, other: Outside) -> Iterator[Wall]:
    """Keep two namespaces from reaching each other through ``host``; all else goes on."""
    rules = "\n".join(
        f'iifname "{near.link}" oifname "{far.link}" counter drop'
        for near, far in ((one, other), (other, one))
    )
    table = f"table inet wall {{\nchain forward {{\ntype filter hook forward priority -10;\n{rules}\n}}\n}}\n"
    _done(host.run(["nft", table], timeout=20))
    try:
        yield Wall(host)
    finally:
        _done(host.run(["nft", "delete", "table", "inet", "wall"], timeout=20))


@contextlib.contextmanager
def headscale(place: Outside, folder: Path, derp_map: Path) -> Iterator[Headscale]:
    """Run headscale in ``place``.

    Its clients know the regions of ``derp_map`` alone, a YAML file as headscale has it.
    """
    folder.mkdir(parents=True)
    configuration = folder / "config.yaml"
    configuration.write_text(
        yaml.safe_dump(
            {
                "server_url": f"http://{place.there_ipv4}:{_HEADSCALE_PORT}",
                "listen_addr": f"{place.there_ipv4}:{_HEADSCALE_PORT}",
                "metrics_listen_addr": "127.0.0.1:9090",
                "grpc_listen_addr": "127.0.0.1:50443",
                "unix_socket": str(folder / "headscale.sock"),
                "noise": {"private_key_path": str(folder / "noise.key")},
                "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
                "database": {"type": "sqlite", "sqlite": {"path": str(folder / "headscale.sqlite")}},
                "derp": {
                    "server": {"enabled": False},
                    "urls": [],
                    "paths": [str(derp_map)],
                    "auto_update_enabled": False,
                },
                "dns": {"magic_dns": False, "override_local_dns": False, "base_domain": "tailnet.test"},
                "disable_check_updates": True,
                "logtail": {"enabled": False},
            }
        )
    )
    command = [program("headscale"), "--config", str(configuration)]
    server = Headscale(f"http://{place.there_ipv4}:{_HEADSCALE_PORT}", command, place)
    process = Process(place.command([*command, "serve"]), folder / "headscale.log", dict(os.environ))
    process.start()
    try:
        _wait(process, folder / "headscale.sock")
        yield server
    finally:
        process.stop()


@contextlib.contextmanager
def tailscale(
    place: Outside, folder: Path, *, roots: Path, hosts: Mapping[str, Sequence[str]]
) -> Iterator[Tailscale]:
    """Run tailscaled in ``place``, logged in nowhere.

    ``roots`` are the certificates in PEM that it trusts. ``hosts`` are the
    addresses of the names that it can resolve: it asks no name server.
    """
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(
        "".join(f"{address} {name}\n" for name, addresses in hosts.items() for address in addresses)
    )
    # A name server that refuses at once, instead of one that is out of reach.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    script = (
        f"mount --bind {folder}/hosts /etc/hosts && mount --bind {folder}/resolv.conf /etc/resolv.conf"
        f" && exec {program('tailscaled')} --tun=userspace-networking --statedir={folder}/state"
        f" --socket={_socket(folder)} --no-logs-no-support"
    )
    process = Process(
        place.command(["unshare", "--mount", "sh", "-c", script]),
        folder / "tailscaled.log",
        {**os.environ, "SSL_CERT_FILE": str(roots)},
    )
    process.start()
    client = Tailscale(place, folder, process)
    try:
        _wait(process, _socket(folder))
        yield client
    finally:
        process.stop()


def log_in(client: Tailscale, server: Headscale, name: str) -> None:
    """Make the client a node ``name`` of headscale's tailnet."""
    done = client.run(
        *["up", f"--login-server={server.url}", f"--auth-key={server.key()}", f"--hostname={name}"],
        *["--accept-dns=false", "--timeout=60s"],
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr + client.process.log.read_text()[-4000:]


def _socket(folder: Path) -> Path:
    return folder / "tailscaled.sock"


def _wait(process: Process, socket: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not socket.exists():
        ended = process.process is not None and process.process.poll() is not None
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"{process.log} ends with:\n{process.log.read_text()[-2000:]}")
        time.sleep(0.1)


def _done(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}"
    return done
