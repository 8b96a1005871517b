"""A region of a cloud as its stack's user has it: commands, server, containers, and what clients see."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

import probe
from settings import PROJECT
from tests.regions.cloud import Cloud, cloud

ZONE = "example.com"
CONTAINERS = ("caddy", "derper")
VOLUME = "docker:index/volume:Volume::"
# Where Caddy keeps its own authority's root (caddyserver.com/docs/conventions#data-directory).
ROOT_CERTIFICATE = "/data/caddy/pki/authorities/local/root.crt"
# Seconds for an update that makes servers, on a machine that does other things meanwhile.
MAKING = 900
# Seconds after a boot: containers are asked how they are every ten.
HEALTHY_WITHIN = 60


@dataclass(frozen=True)
class Region:
    """A stack of the checkout, and the server that it has in the cloud."""

    cloud: Cloud
    stack: str

    @property
    def domain(self) -> str:
        return f"derp-{self.stack}.{ZONE}"

    @property
    def server(self) -> Any:
        """The client's ``BoundServer``; its types would allow every field to be missing."""
        server = self.cloud.client.servers.get_by_name(f"derp-{self.stack}")
        assert server is not None
        return server

    @property
    def addresses(self) -> dict[str, str]:
        """The primary IPs' addresses by type; of IPv6 the network."""
        found = self.cloud.client.primary_ips.get_all(label_selector=f"derp-relays.stack=derp-{self.stack}")
        return {str(each.type): str(each.ip) for each in found}

    def up(self) -> str:
        """Run ``relayctl up``, which must be content with the relay, and return what it said."""
        return self.relayctl("up", self.stack)

    def relayctl(self, *arguments: str) -> str:
        done = self.cloud.checkout.relayctl(*arguments, timeout=MAKING)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Pulumi's own command line for the stack; the exit code is the caller's to judge."""
        with self.cloud.checkout.pulumi() as pulumi:
            return pulumi(*arguments, "--stack", self.stack, timeout=MAKING)

    def write_settings(self, number: int, location: str) -> None:
        """Write the stack's file: a relay, and a site that leads elsewhere, with records in ``ZONE``."""
        values = self.cloud.settings(
            self.stack,
            number,
            host={"location": location, "dnsZone": ZONE},
            sites=[{"names": [f"blog-{self.stack}.{ZONE}"], "redirect": "https://new.example.net/"}],
        )
        self.cloud.checkout.write_stack(values, self.stack)

    def edit_host(self, **values: Any) -> None:
        """Change settings below ``host`` in the stack's file."""
        file = yaml.safe_load(self._file.read_text())
        file["config"][f"{PROJECT}:host"] |= values
        self._file.write_text(yaml.safe_dump(file))

    def edit(self, **values: Any) -> None:
        """Set settings in the stack's file, by their keys without the project's name."""
        file = yaml.safe_load(self._file.read_text())
        file["config"] |= {f"{PROJECT}:{key}": value for key, value in values.items()}
        self._file.write_text(yaml.safe_dump(file))

    @property
    def _file(self) -> Path:
        return self.cloud.checkout.folder / "stacks" / f"Pulumi.{self.stack}.yaml"

    def state(self) -> dict[str, tuple[str, bool]]:
        """Return id and protection of each resource in the state, by URN."""
        exported = json.loads(self.pulumi("stack", "export").stdout)
        return {
            each["urn"]: (str(each.get("id", "")), bool(each.get("protect")))
            for each in exported["deployment"]["resources"]
        }

    def volumes_are_protected(self) -> bool:
        volumes = [protected for urn, (_, protected) in self.state().items() if VOLUME in urn]
        return bool(volumes) and all(volumes)

    def on_server(self, *command: str) -> bytes:
        """Return what a command on the server's console prints; it must end well."""
        return subprocess.run(
            self.cloud.machines.command(self.server.id, command), capture_output=True, timeout=60, check=True
        ).stdout

    @retry(
        retry=retry_if_exception_type(AssertionError),
        stop=stop_after_delay(HEALTHY_WITHIN),
        wait=wait_fixed(1),
        reraise=True,
    )
    def containers(self) -> dict[str, str]:
        """Return the ids of the containers, which must become healthy, by name."""
        form = "{{.Name}} {{.Id}} {{.State.Health.Status}}"
        lines = self.on_server("docker", "inspect", "--format", form, *CONTAINERS).decode().split("\n")
        told = [line.lstrip("/").split() for line in lines if line]
        assert {name: health for name, _, health in told} == dict.fromkeys(CONTAINERS, "healthy")
        return {name: container for name, container, _ in told}

    def root(self) -> str:
        """Return the root certificate of Caddy's own authority, as the server has it."""
        packed = self.on_server("docker", "cp", f"caddy:{ROOT_CERTIFICATE}", "-")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            member = archive.extractfile("root.crt")
            assert member is not None
            return member.read().decode()

    def key(self, root: str) -> str:
        """Return the key that the relay tells its clients, who trust ``root`` and must find all right."""
        server = self.server
        addresses = [str(server.public_net.ipv4.ip), f"{server.public_net.ipv6.ip.partition('/')[0]}1"]
        findings = probe.check_relay(probe.Relay(self.domain, addresses, ca_roots=root))
        assert probe.is_up(findings), findings
        keys = {f.facts["server_key"] for f in findings if f.check is probe.Check.UPGRADE}
        assert len(keys) == 1, findings
        return str(keys.pop())

    def vanish(self) -> None:
        """Delete the server as somebody in the console would, without a word to Pulumi."""
        self.cloud.ask_sandbox("POST", f"/servers/{self.server.id}/vanish")


def changes_asked_for(made: Cloud) -> list[str]:
    """Return all requests so far that changed something at the API, such as ``POST /servers``."""
    return [one.rpartition(" ")[0] for one in made.asked() if not one.startswith("GET ")]


def records(made: Cloud) -> dict[str, list[str]]:
    """Return the values of the zone's A and AAAA records, by name and type."""
    zone = made.client.zones.get(ZONE)
    return {
        f"{each.name} {each.type}": [record.value for record in each.records or []]
        for each in made.client.zones.get_rrset_all(zone, type=["A", "AAAA"])
    }


@contextlib.contextmanager
def cloud_with_zone(folder: Path) -> Iterator[Cloud]:
    """Make a cloud, as `cloud` does, that has the zone ``ZONE``."""
    with cloud(folder) as made:
        made.client.zones.create(name=ZONE, mode="primary")
        yield made


def processes_with(text: str) -> dict[int, str]:
    """Return the command lines of processes whose command line or working directory holds ``text``."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((folder / "cwd").readlink())
        except OSError:
            continue
        if text in command or text in where:
            found[int(folder.name)] = command
    return found
