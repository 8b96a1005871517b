"""The stand-in for the hcloud plugin under the real engine, against a sandbox's Hetzner Cloud API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcloud
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.progress import Progress
from sandbox.hcloud_api import ServedApi, serve
from tests.engine.stand_in import Project, stand_in

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
class Stack(Project):
    """A Pulumi project of the test's own and its stack, with the stand-in attached."""

    api: ServedApi

    @property
    def client(self) -> Any:
        return hcloud.Client(self.api.token, api_endpoint=self.api.endpoint, poll_interval=0.02)

    def write(self, resources: Mapping[str, Any], **provider: Any) -> None:
        arguments = {"token": self.api.token, "poll_interval": "10ms", **provider}
        (self.folder / "resources.json").write_text(
            json.dumps({"provider": arguments, "resources": resources})
        )

    def destroy(self, *, fails: bool = False) -> str:
        return self.run("destroy", "--yes", "--skip-preview", fails=fails)

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

    def unprotect(self) -> None:
        """Let go of what a test that failed has protected."""
        for kind in (self.client.servers, self.client.primary_ips):
            for each in kind.get_all():
                off = {name: False for name, protected in each.protection.items() if protected}
                if off:
                    each.change_protection(**off).wait_until_finished()
        for record_set in self.client.zones.get(ZONE).get_rrset_all():
            if record_set.protection["change"]:
                record_set.change_rrset_protection(change=False).wait_until_finished()

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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("hcloud")
    cli = pulumi_cli.bring(Progress())
    with (
        serve() as api,
        stand_in("hcloud", folder / "log", HCLOUD_ENDPOINT=api.endpoint, HCLOUD_TOKEN=api.token) as (_, port),
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
        made = Stack(project, environment, Path(cli.command), api)
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
        shared.unprotect()
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


def changed(resources: Mapping[str, Any], name: str, /, **arguments: Any) -> dict[str, Any]:
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
    assert stack.api.token not in exported, "the token is in the state in the clear"
    stack.up(changed(resources, "server", delete_protection=False, rebuild_protection=False))
    assert client.servers.get_by_id(server.id).protection == {"delete": False, "rebuild": False}


def asked(stack: Stack, since: int, *methods: str) -> list[str]:
    """Return what was asked of the API after the first ``since`` requests, such as ``POST /servers``."""
    lines = [f"{each['method']} {each['path']}" for each in stack.sandbox("GET", "/requests")["requests"]]
    return [line for line in lines[since:] if line.split()[0] in (methods or ("POST", "PUT", "DELETE"))]


def count(stack: Stack) -> int:
    return len(stack.sandbox("GET", "/requests")["requests"])


def test_what_the_api_can_change_is_changed_in_place(stack: Stack) -> None:
    resources = {"other": {"type": "Firewall", "args": {"name": "other"}}, **region()}
    stack.up(resources)
    client = stack.client
    (server,) = client.servers.get_all()
    labels = {"stack": "other"}
    edited = changed(
        resources,
        "server",
        name="renamed",
        server_type="cx33",
        backups=True,
        firewall_ids=["&firewall", "&other"],
        placement_group_id=None,
        labels=labels,
        # none of these is looked at after the creation
        user_data="#cloud-config\n{}\n",
        image="debian-12",
    )
    rule = {"direction": "in", "protocol": "tcp", "port": "8443", "source_ips": ["2001:DB8:0::/48"]}
    edited = changed(edited, "firewall", rules=[rule], name="renamed")
    edited = changed(edited, "key", name="renamed", labels=None)
    edited = changed(edited, "ipv4", name="renamed", delete_protection=True, labels=labels)
    edited = changed(edited, "rdns4", dns_ptr=f"other.{ZONE}")
    edited = changed(edited, "a", ttl=None, records=[{"value": "192.0.2.1"}, {"value": "192.0.2.2"}])
    edited = changed(edited, "aaaa", change_protection=True, labels=labels)
    steps = stack.preview(edited)
    assert {step["op"] for step in steps.values()} == {"update"}
    assert set(steps["server"]["detailedDiff"]) == {
        "name",
        "serverType",
        "backups",
        "firewallIds[1]",
        "placementGroupId",
        "labels.stack",
        "labels.project",
    }
    # a running server is not taken out of its group
    said = stack.up(edited, fails=True)
    assert "removing a running server from a placement group is currently not supported" in said
    client.servers.get_by_id(server.id).power_off().wait_until_finished()
    # what went before the failure is done: like the real plugin it would ask for the same type again
    stack.refresh()
    since = count(stack)
    stack.up(edited)
    assert f"POST /servers/{server.id}/actions/remove_from_placement_group" in asked(stack, since)
    client.servers.get_by_id(server.id).power_on().wait_until_finished()

    found = client.servers.get_by_id(server.id)
    assert (found.name, found.server_type.name, found.placement_group) == ("renamed", "cx33", None)
    assert (found.labels, found.image.name, found.backup_window is None) == (labels, "debian-13", False)
    assert found.primary_disk_size == server.primary_disk_size, "keep_disk was not heeded"
    assert len(found.public_net.firewalls) == 2
    firewall = client.firewalls.get_by_name("renamed")
    assert [(each.port, each.source_ips) for each in firewall.rules] == [("8443", ["2001:db8::/48"])]
    assert client.ssh_keys.get_by_name("renamed").labels == {}
    address = client.primary_ips.get_by_name("renamed")
    assert (address.protection, address.labels) == ({"delete": True}, labels)
    assert address.dns_ptr[0]["dns_ptr"] == f"other.{ZONE}"
    zone = client.zones.get(ZONE)
    record_set = zone.get_rrset("derp", "A")
    assert (record_set.ttl, len(record_set.records)) == (None, 2)
    assert zone.get_rrset("@", "AAAA").protection == {"change": True}
    stack.unchanged()
    stack.refresh()
    stack.unchanged()
    # what is protected is not removed, and says so
    assert "(protected, " in stack.destroy(fails=True)
    stack.up(edited)
    edited = changed(edited, "ipv4", delete_protection=False)
    stack.up(changed(edited, "aaaa", change_protection=False))


def test_a_new_type_switches_the_server_off_and_on(stack: Stack) -> None:
    stack.up(region())
    (server,) = stack.client.servers.get_all()
    since = count(stack)
    stack.up(region(server_type="cx33"))
    assert asked(stack, since) == [
        f"POST /servers/{server.id}/actions/poweroff",
        f"POST /servers/{server.id}/actions/change_type",
    ]
    assert stack.client.servers.get_by_id(server.id).status == "running"

    # other addresses: off, changed, on; what was made with the server goes, what was given stays
    extra = region(server_type="cx33")
    extra["second"] = deepcopy(extra["ipv4"])
    extra["second"]["args"]["name"] = "second"
    server_last = {name: each for name, each in extra.items() if name not in ("server", "rdns6", "aaaa")}
    server_last["server"] = changed(
        extra, "server", public_nets=[{"ipv4": "&second", "ipv6_enabled": False}]
    )["server"]
    stack.up(server_last)
    found = stack.client.servers.get_by_id(server.id)
    assert found.status == "running"
    assert found.public_net.ipv6 is None
    assert found.public_net.primary_ipv4.id == stack.client.primary_ips.get_by_name("second").id
    assert {each.name for each in stack.client.primary_ips.get_all()} == {
        "relay-ipv4",
        "relay-ipv6",
        "second",
    }
    stack.unchanged()
    stack.up(changed(server_last, "server", public_nets=[{}]))
    found = stack.client.servers.get_by_id(server.id)
    assert found.public_net.ipv4.ip
    assert found.public_net.ipv6.ip
    made = {each.name for each in stack.client.primary_ips.get_all() if each.auto_delete}
    assert len(made) == 2
    stack.unchanged()


def test_a_replaced_server_keeps_its_addresses_and_goes_first(stack: Stack) -> None:
    stack.up(region())
    before, states = stack.client.servers.get_all()[0], stack.states()
    # user data, keys and image are ignored after the creation
    edited = changed(region(user_data="#cloud-config\n{}\n"), "key", public_key=KEYS[1])
    edited["key"]["options"] = {"delete_before_replace": True}
    steps = stack.preview(edited)
    assert steps["key"]["replaceReasons"] == ["publicKey"]
    assert "server" not in steps or steps["server"]["op"] == "update"
    since = count(stack)
    said = stack.up(region(), "--replace", states["server"]["urn"])
    assert said.index("deleted original") < said.index("creating replacement")
    (after,) = stack.client.servers.get_all()
    assert after.id != before.id
    assert after.public_net.ipv4.ip == before.public_net.ipv4.ip
    assert after.public_net.ipv6.ip == before.public_net.ipv6.ip
    assert [line for line in asked(stack, since) if "/servers" in line] == [
        f"POST /servers/{before.id}/actions/shutdown",
        f"DELETE /servers/{before.id}",
        "POST /servers",
    ]
    # another place is another server
    assert stack.preview(region(location="fsn1"))["server"]["replaceReasons"] == ["location"]
    stack.write(region())
    stack.unchanged()


def test_a_server_that_vanished_is_made_again_after_a_refresh(stack: Stack) -> None:
    stack.up(region())
    (before,) = stack.client.servers.get_all()
    stack.sandbox("POST", f"/servers/{before.id}/vanish")
    stack.unchanged()
    said = stack.destroy(fails=True)
    assert f"server with ID '{before.id}' not found (not_found, " in said
    stack.refresh()
    stack.up(region())
    (after,) = stack.client.servers.get_all()
    assert after.id != before.id
    assert after.public_net.ipv4.ip == before.public_net.ipv4.ip
    stack.unchanged()


def test_a_refresh_finds_what_was_changed_by_hand(stack: Stack) -> None:
    stack.up(region())
    client = stack.client
    (server,) = client.servers.get_all()
    (firewall,) = client.firewalls.get_all()
    server.update(labels={"stack": "changed"})
    for action in firewall.set_rules(firewall.rules[1:]):
        action.wait_until_finished()
    address = client.primary_ips.get_by_name("relay-ipv4")
    address.change_dns_ptr(address.ip, "changed.example.org").wait_until_finished()
    zone = client.zones.get(ZONE)
    zone.delete_rrset(zone.get_rrset("derp", "A")).action.wait_until_finished()
    (key,) = client.ssh_keys.get_all()
    key.update(name="changed")
    stack.refresh()
    steps = stack.preview(region())
    assert {name: step["op"] for name, step in steps.items()} == {
        "server": "update",
        "firewall": "update",
        "rdns4": "update",
        "a": "create",
        "key": "update",
    }
    assert set(steps["server"]["detailedDiff"]) == {"labels.stack", "labels.project"}
    stack.up(region())
    stack.unchanged()
    (firewall,) = client.firewalls.get_all()
    assert len(firewall.rules) == len(region()["firewall"]["args"]["rules"])


def test_what_the_api_refuses_is_told_and_leaves_nothing(stack: Stack) -> None:
    fault = {
        "method": "POST",
        "path": "/servers",
        "status": 422,
        "code": "resource_unavailable",
        "message": "no capacity left",
    }
    stack.sandbox("POST", "/faults", fault)
    said = stack.up(region(), fails=True)
    assert re.search(r"no capacity left \(resource_unavailable, [0-9a-f]+\)", said)
    assert stack.client.servers.get_all() == []
    # a limit of requests and a conflict pass, by the client's own patience
    for code, status in (("rate_limit_exceeded", 429), ("conflict", 409)):
        stack.sandbox(
            "POST", "/faults", {"method": "POST", "path": "/servers", "status": status, "code": code}
        )
    stack.up(region())
    stack.unchanged()
    # as long as something still hangs on a firewall it is tried again
    stack.sandbox(
        "POST",
        "/faults",
        {"method": "DELETE", "path": "/firewalls/.*", "status": 422, "code": "resource_in_use", "times": 2},
    )
    stack.destroy()
    assert stack.left() == []


def test_what_is_wrong_is_told_with_the_words_of_the_api(stack: Stack) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("server", {"server_type": "cx1"}, "server type cx1 not found"),
        ("server", {"image": "debian-1"}, "image debian-1 for architecture x86 not found"),
        ("server", {"ssh_keys": ["nobody"]}, "SSH key not found: nobody"),
        ("server", {"placement_group_id": 1}, "placement group not found: 1"),
        ("server", {"user_data": "x" * 40_000}, "(invalid_input, "),
        ("key", {"public_key": "ssh-ed25519 nonsense"}, "(invalid_input, "),
        ("a", {"records": [{"value": "nonsense"}]}, "(invalid_input, "),
        ("a", {"zone": "nowhere.example"}, "(not_found, "),
    ]
    resources: dict[str, Any] = {}
    for number, (name, arguments, _) in enumerate(cases):
        one = changed(region(), name, **arguments)[name]
        one["args"] = {
            key: value
            for key, value in one["args"].items()
            if key not in ("firewall_ids", "public_nets") and not str(value).startswith(("@", "&"))
        }
        if name == "server" and "ssh_keys" not in arguments:
            one["args"].pop("ssh_keys")
        if name != "a":
            one["args"]["name"] = f"r{number}"
        elif "records" not in arguments:
            one["args"]["records"] = [{"value": "192.0.2.1"}]
        resources[f"r{number}"] = {"type": one["type"], "args": one["args"]}
    stack.write(resources)
    said = stack.run("up", "--yes", "--skip-preview", "--continue-on-error", fails=True)
    assert [message for _, _, message in cases if message not in said] == []
    assert said.count("(invalid_input, ") >= 3


def test_a_server_whose_creation_fails_half_way_is_kept_and_known(stack: Stack) -> None:
    stack.sandbox(
        "POST",
        "/faults",
        {"action": "start_server", "error": {"code": "server_error", "message": "start failed"}},
    )
    said = stack.up(region(), fails=True)
    assert re.search(r"start failed \(server_error, \d+\)", said)
    (server,) = stack.client.servers.get_all()
    assert stack.states()["server"]["id"] == str(server.id)
    # like the real plugin: the next update takes note of it and mends nothing
    stack.up(region())
    assert [each.id for each in stack.client.servers.get_all()] == [server.id]
    assert stack.states()["server"]["outputs"]["status"] == "off"
    stack.up(region(), "--replace", stack.states()["server"]["urn"])
    assert stack.states()["server"]["outputs"]["status"] == "running"
    stack.unchanged()


def test_cancelling_ends_a_wait_and_keeps_what_was_begun(stack: Stack) -> None:
    stack.sandbox("POST", "/faults", {"action": "create_server", "seconds": 60})
    stack.write(region())
    stack.cancelled_once(stack.client.servers.get_all)
    (server,) = stack.client.servers.get_all()
    assert stack.states()["server"]["id"] == str(server.id)
    stack.sandbox("POST", f"/servers/{server.id}/vanish")


def test_the_api_that_is_real_or_away_is_told(stack: Stack) -> None:
    stack.write(region(), endpoint="https://api.hetzner.cloud/v1")
    said = stack.run("preview", fails=True)
    assert "serves Hetzner Cloud APIs on loopback only" in said
    assert "pulumi plugin install resource hcloud 1.43.3" in said
    stack.write(region(), token="0" * 63)
    assert "must be exactly 64 characters long" in stack.run("preview", fails=True)
    stack.write(region(), endpoint="http://127.0.0.1:1/v1")
    said = stack.run("up", "--yes", "--skip-preview", fails=True)
    assert "cannot talk to the Hetzner Cloud API at http://127.0.0.1:1/v1" in said
    stack.write(region(), token="0" * 64)
    assert "(unauthorized, " in stack.run("up", "--yes", "--skip-preview", fails=True)


def test_zones_are_made_and_imports_take_over_what_is_there(stack: Stack) -> None:
    zone: dict[str, Any] = {"type": "Zone", "args": {"name": "example.net", "mode": "primary", "ttl": 7200}}
    stack.up({"zone": zone})
    assert stack.client.zones.get("example.net").ttl == 7200
    stack.unchanged()
    stack.up({"zone": {**zone, "args": {**zone["args"], "ttl": 600, "labels": {"a": "b"}}}})
    found = stack.client.zones.get("example.net")
    assert (found.ttl, found.labels) == (600, {"a": "b"})
    stack.up({"zone": {"type": "Zone", "args": {"name": "example.net", "mode": "primary"}}})
    assert stack.client.zones.get("example.net").ttl == 3600
    stack.refresh()
    stack.unchanged()

    key = stack.client.ssh_keys.create(name="imported", public_key=KEYS[0])
    arguments = ("--yes", "--protect=false", "--generate-code=false")
    said = stack.run("import", "hcloud:index/sshKey:SshKey", "key", str(key.id), *arguments)
    assert "1 imported" in said
    stack.up({})
    with pytest.raises(hcloud.APIException, match="not_found"):
        stack.client.zones.get("example.net")
