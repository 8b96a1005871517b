"""The stand-in for the hcloud plugin under the real engine, against a sandbox's Hetzner Cloud API."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hcloud import Client

from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.progress import Progress
from sandbox.hcloud_api import ServedApi, serve

ROOT = Path(__file__).resolve().parents[2]
ZONE = "example.org"

# The resources come from a file, so that a test can say them; "@name" is the id of another one, "&name" the
# same as a number, and "@name.output" one of its outputs.
PULUMI_PROGRAM = """
import json
import pulumi, pulumi_hcloud as hcloud
with open("resources.json") as file:
    wanted = json.load(file)
provider = hcloud.Provider("hcloud", **wanted["provider"])
made = {}
def given(value):
    if isinstance(value, list):
        return [given(each) for each in value]
    if isinstance(value, dict):
        return {key: given(each) for key, each in value.items()}
    if isinstance(value, str) and value[:1] in "@&" and value[1:]:
        name, _, output = value[1:].partition(".")
        found = getattr(made[name], output or "id")
        return found.apply(int) if value[0] == "#" else found
    return value
for name, one in wanted["resources"].items():
    arguments = given(one["args"])
    for secret in one.get("secrets", []):
        arguments[secret] = pulumi.Output.secret(arguments[secret])
    options = pulumi.ResourceOptions(provider=provider, **one.get("options", {}))
    made[name] = getattr(hcloud, one["type"])(name, **arguments, opts=options)
    for output in one.get("outputs", []):
        pulumi.export(f"{name}.{output}", getattr(made[name], output))
"""


def public_key() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{text.decode()} test"


KEYS = (public_key(), public_key())


@dataclass
class Stack:
    """A Pulumi project of the test's own and its stack, with the stand-in attached."""

    folder: Path
    api: ServedApi
    environment: Mapping[str, str]
    cli: Path

    @property
    def client(self) -> Any:
        return Client(self.api.token, api_endpoint=self.api.endpoint, poll_interval=0.02)

    def write(self, resources: Mapping[str, Any], **provider: Any) -> None:
        arguments = {"poll_interval": "10ms", **provider}
        (self.folder / "resources.json").write_text(
            json.dumps({"provider": arguments, "resources": resources})
        )

    def run(self, *arguments: str, fails: bool = False, json_only: bool = False) -> str:
        done = subprocess.run(
            [str(self.cli), *arguments, "--stack", "test", "--non-interactive", "--color=never"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout if json_only else done.stdout + done.stderr

    def up(self, resources: Mapping[str, Any], *arguments: str, fails: bool = False) -> str:
        self.write(resources)
        return self.run("up", "--yes", "--skip-preview", *arguments, fails=fails)

    def refresh(self) -> str:
        return self.run("refresh", "--yes", "--skip-preview")

    def destroy(self, *, fails: bool = False) -> str:
        return self.run("destroy", "--yes", "--skip-preview", fails=fails)

    def preview(self, resources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the steps that an update would take, but for those that change nothing, by resource."""
        self.write(resources)
        steps = json.loads(self.run("preview", "--json", json_only=True))["steps"]
        return {step["urn"].rsplit("::", 1)[-1]: step for step in steps if step["op"] != "same"}

    def unchanged(self) -> None:
        self.run("preview", "--expect-no-changes")

    def states(self) -> dict[str, dict[str, Any]]:
        """Return what the stack knows, by resource."""
        exported = json.loads(self.run("stack", "export", json_only=True))["deployment"]
        return {each["urn"].rsplit("::", 1)[-1]: each for each in exported.get("resources", [])}

    def sandbox(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = requests.request(
            method,
            self.api.sandbox + path,
            json=body,
            headers={"Authorization": f"Bearer {self.api.token}"},
            timeout=10,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def left(self) -> list[str]:
        """Return the names of all there is in the project, but for its zone."""
        client = self.client
        kinds: tuple[Any, ...] = (
            client.servers,
            client.primary_ips,
            client.firewalls,
            client.ssh_keys,
            client.placement_groups,
        )
        return [str(each.name) for kind in kinds for each in kind.get_all()]


@contextlib.contextmanager
def stand_in(log: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the stand-in as a launcher would, yield it and its port."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.hcloud_provider"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("hcloud")
    cli = pulumi_cli.bring(Progress())
    with (
        serve() as api,
        stand_in(folder / "log", HCLOUD_ENDPOINT=api.endpoint, HCLOUD_TOKEN=api.token) as (_, port),
    ):
        project = folder / "project"
        (project / "state").mkdir(parents=True)
        (project / "Pulumi.yaml").write_text("name: stand-in-test\nruntime: python\n")
        (project / "__main__.py").write_text(PULUMI_PROGRAM)
        environment = {
            **cli.environment,
            "PULUMI_BACKEND_URL": f"file://{project}/state",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_DEBUG_PROVIDERS": f"hcloud:{port}",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }
        made = Stack(project, api, environment, Path(cli.command))
        made.client.zones.create(name=ZONE, mode="primary").action.wait_until_finished()
        made.write({})
        made.run("stack", "init")
        yield made
    assert (folder / "log").read_text() == ""


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    """Yield the stack with nothing in it, and see that nothing is left of what the test made."""
    shared.write({})
    yield shared
    shared.sandbox("DELETE", "/faults")
    shared.write({})
    if shared.states():
        shared.refresh()
        shared.destroy()
    assert shared.left() == []


def region(**server: Any) -> dict[str, Any]:
    """Return a program with all that the project declares for a server."""
    labels = {"project": "derp-relays", "stack": "test"}
    everywhere = ["0.0.0.0/0", "::/0"]
    ports = (("tcp", "80"), ("tcp", "443"), ("udp", "443"), ("udp", "3478"))
    rules = [
        {"direction": "in", "protocol": protocol, "port": port, "source_ips": everywhere}
        for protocol, port in ports
    ]
    rules.append(
        {"direction": "in", "protocol": "icmp", "source_ips": everywhere, "description": "clients ping"}
    )
    rules.append(
        {"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["192.0.2.7", "2001:DB8::/32"]}
    )
    addresses = {
        version: {
            "type": "PrimaryIp",
            "args": {
                "name": f"relay-{version}",
                "type": version,
                "location": "nbg1",
                "auto_delete": False,
                "delete_protection": False,
                "labels": labels,
            },
        }
        for version in ("ipv4", "ipv6")
    }
    arguments = {
        "name": "relay",
        "server_type": "cx23",
        "location": "nbg1",
        "image": "debian-13",
        "ssh_keys": ["@key"],
        "user_data": "#cloud-config\nssh_pwauth: false\n",
        "firewall_ids": ["&firewall"],
        "public_nets": [{"ipv4": "&ipv4", "ipv6": "&ipv6"}],
        "placement_group_id": "&group",
        "labels": labels,
        "keep_disk": True,
        "shutdown_before_deletion": True,
        **server,
    }
    return {
        "key": {"type": "SshKey", "args": {"name": "relay", "public_key": KEYS[0], "labels": labels}},
        **addresses,
        "firewall": {"type": "Firewall", "args": {"name": "relay", "rules": rules, "labels": labels}},
        "group": {
            "type": "PlacementGroup",
            "args": {"name": "relay", "type": "spread", "labels": labels},
        },
        "server": {
            "type": "Server",
            "args": {name: value for name, value in arguments.items() if value is not None},
            "secrets": ["user_data"],
            "outputs": ["ipv4_address", "ipv6_address", "ipv6_network", "status"],
            "options": {"ignore_changes": ["userData", "sshKeys", "image"], "delete_before_replace": True},
        },
        "rdns4": {
            "type": "Rdns",
            "args": {
                "primary_ip_id": "&ipv4",
                "ip_address": "@ipv4.ip_address",
                "dns_ptr": f"derp.{ZONE}",
            },
        },
        "rdns6": {
            "type": "Rdns",
            "args": {
                "primary_ip_id": "&ipv6",
                "ip_address": "@server.ipv6_address",
                "dns_ptr": f"derp.{ZONE}",
            },
        },
        "a": {
            "type": "ZoneRrset",
            "args": {
                "zone": ZONE,
                "name": "derp",
                "type": "A",
                "ttl": 300,
                "records": [{"value": "@ipv4.ip_address"}],
                "labels": labels,
            },
        },
        "aaaa": {
            "type": "ZoneRrset",
            "args": {
                "zone": ZONE,
                "name": "@",
                "type": "AAAA",
                "records": [{"value": "@server.ipv6_address"}],
            },
        },
    }


def changed(resources: Mapping[str, Any], name: str, **arguments: Any) -> dict[str, Any]:
    """Return a copy of a program with arguments of one resource changed, or left out with None."""
    copy = deepcopy(dict(resources))
    edited = {**copy[name]["args"], **arguments}
    copy[name]["args"] = {key: value for key, value in edited.items() if value is not None}
    return copy


def test_a_region_is_made_as_said_and_then_left_alone(stack: Stack) -> None:
    resources = region(backups=True, delete_protection=True, rebuild_protection=True)
    assert {step["op"] for step in stack.preview(resources).values()} == {"create"}
    assert stack.left() == [], "a preview touched the API"
    assert "stand-in for the pulumi-hcloud plugin" in stack.up(resources)

    client = stack.client
    (server,) = client.servers.get_all()
    assert (server.status, server.server_type.name, server.image.name) == ("running", "cx23", "debian-13")
    assert server.location.name == "nbg1"
    assert server.backup_window is not None
    assert server.protection == {"delete": True, "rebuild": True}
    assert server.placement_group is not None
    (firewall,) = client.firewalls.get_all()
    assert [each.server.id for each in firewall.applied_to] == [server.id]
    ssh = next(rule for rule in firewall.rules if rule.port == "22")
    assert sorted(ssh.source_ips) == ["192.0.2.7/32", "2001:db8::/32"]
    addresses = {each.type: each for each in client.primary_ips.get_all()}
    assert {each.assignee_id for each in addresses.values()} == {server.id}
    outputs = json.loads(stack.run("stack", "output", "--json", json_only=True))
    assert outputs == {
        "server.ipv4_address": addresses["ipv4"].ip,
        "server.ipv6_address": addresses["ipv6"].ip.split("/")[0] + "1",
        "server.ipv6_network": addresses["ipv6"].ip,
        "server.status": "running",
    }
    assert [each["dns_ptr"] for each in addresses["ipv6"].dns_ptr] == [f"derp.{ZONE}"]
    zone = client.zones.get(ZONE)
    assert [each.value for each in zone.get_rrset("derp", "A").records] == [addresses["ipv4"].ip]
    assert [each.value for each in zone.get_rrset("@", "AAAA").records] == [outputs["server.ipv6_address"]]

    stack.unchanged()
    stack.refresh()
    stack.unchanged()
    stack.run("refresh", "--preview-only", "--expect-no-changes")
    exported = stack.run("stack", "export", json_only=True)
    assert "ssh_pwauth" not in exported, "a secret is in the state in the clear"
    stack.up(changed(resources, "server", delete_protection=False, rebuild_protection=False))
    assert client.servers.get_by_id(server.id).protection == {"delete": False, "rebuild": False}
