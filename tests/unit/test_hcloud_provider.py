"""The stand-in for the hcloud plugin, without the engine: schema, checks, diffs, state, waiting."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from sandbox.hcloud_api import ServedApi, serve
from sandbox.hcloud_provider import firewall, rdns, server
from sandbox.hcloud_provider.api import ActionFailedError, Api, ApiError, connect, seconds
from sandbox.hcloud_provider.behaviour import PROVIDER_REFUSED, PROVIDER_VALIDATORS, behaviours
from sandbox.hcloud_provider.package import PACKAGE
from sandbox.hcloud_provider.schema import provider_arguments, resource_schemas
from sandbox.provider.behaviour import path_exists
from sandbox.provider.check import check, check_provider
from sandbox.provider.diff import Difference, diff
from sandbox.provider.errors import CancelledError, OperationError, RefusedError
from sandbox.provider.server import Serving
from sandbox.provider.state import created, planned, refreshed_inputs, updated
from sandbox.provider.values import UNKNOWN, to_struct

SERVER = "hcloud:index/server:Server"
FIREWALL = "hcloud:index/firewall:Firewall"
PRIMARY_IP = "hcloud:index/primaryIp:PrimaryIp"
SSH_KEY = "hcloud:index/sshKey:SshKey"
GROUP = "hcloud:index/placementGroup:PlacementGroup"
RDNS = "hcloud:index/rdns:Rdns"
ZONE = "hcloud:index/zone:Zone"
RRSET = "hcloud:index/zoneRrset:ZoneRrset"

TOKEN = "t" * 64
USER_DATA = "#cloud-config\n"
SUM = base64.b64encode(hashlib.sha1(USER_DATA.encode(), usedforsecurity=False).digest()).decode()
RULE: dict[str, Any] = {
    "direction": "in",
    "protocol": "tcp",
    "port": "443",
    "sourceIps": ["0.0.0.0/0", "::/0"],
    "description": "x",
}
FULL: dict[str, dict[str, Any]] = {
    SERVER: {
        "name": "srv",
        "serverType": "cx23",
        "location": "fsn1",
        "image": "debian-13",
        "sshKeys": ["1"],
        "userData": USER_DATA,
        "firewallIds": [3],
        "publicNets": [{"ipv4": 1, "ipv6": 2}],
        "labels": {"a": "b"},
        "backups": False,
        "keepDisk": True,
        "shutdownBeforeDeletion": True,
    },
    FIREWALL: {"name": "fw", "rules": [RULE], "labels": {"a": "b"}},
    PRIMARY_IP: {"name": "ip", "type": "ipv4", "location": "fsn1", "autoDelete": False, "labels": {"a": "b"}},
    SSH_KEY: {"name": "k", "publicKey": "ssh-ed25519 AAAA x", "labels": {"a": "b"}},
    GROUP: {"name": "g", "type": "spread"},
    RDNS: {"primaryIpId": 5, "ipAddress": "1.2.3.4", "dnsPtr": "a.b"},
    ZONE: {"name": "example.org", "mode": "primary"},
    RRSET: {"zone": "example.org", "name": "www", "type": "A", "ttl": 60, "records": [{"value": "1.2.3.4"}]},
}
OBSERVED: dict[str, dict[str, Any]] = {
    SERVER: {
        "id": "42",
        "ipv4Address": "198.18.0.10",
        "ipv6Address": "2001:db8:7:1::1",
        "ipv6Network": "2001:db8:7:1::/64",
        "status": "running",
        "primaryDiskSize": 40,
        "backupWindow": "",
        "datacenter": None,
        "image": "debian-13",
        "location": "fsn1",
        "placementGroupId": 0,
        "firewallIds": [3],
        "labels": {"a": "b"},
    },
    FIREWALL: {"id": "7", "labels": {"a": "b"}, "applyTos": [{"labelSelector": "", "server": 42}]},
    PRIMARY_IP: {
        "id": "5",
        "ipAddress": "1.2.3.4",
        "ipNetwork": None,
        "location": "fsn1",
        "assigneeId": 0,
        "assigneeType": "unassigned",
        "deleteProtection": False,
        "autoDelete": False,
        "labels": {"a": "b"},
    },
    SSH_KEY: {"id": "1", "fingerprint": "aa:bb", "labels": {"a": "b"}},
    GROUP: {"id": "9", "servers": [], "labels": {}},
    RDNS: {"id": "p-5-1.2.3.4"},
    ZONE: {"id": "11", "ttl": 3600, "labels": {}, "deleteProtection": False, "registrar": "other"},
    RRSET: {"id": "www/A", "labels": {}, "changeProtection": False},
}


def edited(token: str, edit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**deepcopy(FULL[token]), **edit}.items() if value is not None}


def checked(token: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    inputs, failures = check(arguments, PACKAGE, token, resource_name="r", make_name=lambda: "made-up")
    return inputs, [failure.reason for failure in failures]


def inputs_of(token: str, edit: dict[str, Any] | None = None) -> dict[str, Any]:
    inputs, failures = checked(token, edited(token, edit or {}))
    assert failures == []
    return inputs


def state_of(token: str) -> dict[str, Any]:
    kind = PACKAGE.resources[token]
    return created(inputs_of(token), OBSERVED[token], kind.schema, kind.behaviour)


def difference(token: str, edit: dict[str, Any], ignored: tuple[str, ...] = ()) -> Difference:
    kind = PACKAGE.resources[token]
    return diff(state_of(token), inputs_of(token, edit), kind.schema, kind.behaviour, ignored)


# -- schema


@pytest.mark.parametrize("token", FULL)
def test_the_tables_name_only_what_the_sdk_has(token: str) -> None:
    behaviour, schema = behaviours()[token], resource_schemas()[token]
    paths = {
        *behaviour.updates_in_place,
        *behaviour.computed,
        *behaviour.empty_is_change,
        *behaviour.sets,
        *behaviour.defaults,
        *behaviour.refused,
        *behaviour.validators,
        *behaviour.state_functions,
    }
    assert [path for path in sorted(paths) if not path_exists(path, schema.arguments)] == []
    assert behaviour.unknown_on_update <= {*schema.arguments, *schema.outputs}


def test_the_provider_tables_name_only_what_the_sdk_has() -> None:
    assert {*PROVIDER_REFUSED, *PROVIDER_VALIDATORS} < set(provider_arguments())


# -- check: what the real plugin says to the same arguments


@pytest.mark.parametrize(
    ("token", "edit", "reason"),
    [
        (SERVER, {"serverType": None}, "Missing required argument 'serverType'"),
        (SERVER, {"image": ""}, "must have more than 0 characters"),
        (SERVER, {"foo": 1}, "Invalid or unknown key. Examine values at 'r.foo'"),
        (SERVER, {"ipv4Address": "1.2.3.4"}, "Invalid or unknown key"),
        (SERVER, {"publicNets": [{"ipv4": 1, "foo": 2}]}, "Examine values at 'r.publicNets[0].foo'"),
        (SERVER, {"firewallIds": ["x"]}, "Examine values at 'r.firewallIds[0]'"),
        (SERVER, {"sshKeys": [""]}, "a string with at least 1 character. Examine values at 'r.sshKeys[0]'"),
        (SERVER, {"labels": {"a b": "c"}}, "label key a b is not correctly formatted"),
        (SERVER, {"labels": {"a": "c d"}}, "label value c d (key: a) is not correctly formatted"),
        (SERVER, {"backups": "x"}, "Expected true or false, got a string"),
        (SERVER, {"placementGroupId": 1.5}, "Expected a whole number"),
        (SERVER, {"networks": [{"networkId": 1}]}, "does not carry 'networks'"),
        (SERVER, {"iso": "x"}, "does not carry 'iso'"),
        (SERVER, {"datacenter": "fsn1-dc14"}, "pulumi plugin install resource hcloud 1.43.3"),
        (SERVER, {"publicNets": [{"ipv4": 1}, {"ipv6": 2}]}, "takes one element only"),
        (FIREWALL, {"rules": [{**RULE, "direction": "inn"}]}, "inn is not a valid direction"),
        (FIREWALL, {"rules": [{**RULE, "protocol": "foo"}]}, "foo is not a valid protocol"),
        (FIREWALL, {"rules": [{"protocol": "tcp"}]}, "Missing required argument 'rules[0].direction'"),
        (
            FIREWALL,
            {"rules": [{**RULE, "sourceIps": ["1.2.3.4/24"]}]},
            "1.2.3.4/24 is not the start of the cidr block 1.2.3.0/24",
        ),
        (FIREWALL, {"rules": [{**RULE, "sourceIps": ["x"]}]}, "invalid CIDR address: x"),
        (FIREWALL, {"rules": [{**RULE, "x": 1}]}, "Examine values at 'r.rules[0].x'"),
        (FIREWALL, {"applyTos": [{"server": 1}]}, "does not carry 'applyTos'"),
        (PRIMARY_IP, {"type": None}, "Missing required argument 'type'"),
        (PRIMARY_IP, {"location": None}, "Missing Attribute Configuration. Exactly one of"),
        (PRIMARY_IP, {"assigneeId": 1, "assigneeType": "server"}, "Invalid Attribute Combination"),
        (PRIMARY_IP, {"assigneeId": 1, "location": None}, "[assigneeId,assigneeType]"),
        (PRIMARY_IP, {"autoDelete": "true"}, "Expected true or false"),
        (PRIMARY_IP, {"labels": {"a b": "c"}}, "label key a b is not correctly formatted"),
        (SSH_KEY, {"publicKey": None}, "Missing required argument 'publicKey'"),
        (GROUP, {"type": "x"}, "x is not a valid placement group type"),
        (RDNS, {"primaryIpId": None}, "Missing Attribute Configuration"),
        (RDNS, {"serverId": 1}, "Invalid Attribute Combination"),
        (RDNS, {"ipAddress": "2001:db8::/64"}, "must be a valid ip"),
        (RDNS, {"floatingIpId": 1}, "does not carry 'floatingIpId'"),
        (ZONE, {"mode": None}, "Missing required argument 'mode'"),
        (ZONE, {"mode": "secondary"}, "zones of mode primary only"),
        (RRSET, {"records": []}, "must contain at least 1 elements"),
        (RRSET, {"records": [{"value": "1.2.3.4"}] * 2}, "Duplicate Set Element"),
        (RRSET, {"records": ["1.2.3.4"]}, "Expected an object, got a string"),
        (RRSET, {"records": [{"comment": "x"}]}, "Missing required argument 'records[0].value'"),
        (RRSET, {"ttl": 1.5}, "Expected a whole number"),
    ],
)
def test_wrong_arguments_are_refused(token: str, edit: dict[str, Any], reason: str) -> None:
    _, reasons = checked(token, edited(token, edit))
    assert len(reasons) == 1
    assert reason in reasons[0]


@pytest.mark.parametrize(
    ("token", "edit"),
    [
        # the API is left to refuse these
        (SERVER, {"image": None}),
        (SERVER, {"location": None}),
        (SERVER, {"deleteProtection": True}),
        (SERVER, {"name": "a_b"}),
        (SERVER, {"userData": "x" * 40_000}),
        (SERVER, {"firewallIds": ["3"], "placementGroupId": "4", "backups": "true"}),
        (SERVER, {"allowDeprecatedImages": True}),
        (SERVER, {"userData": UNKNOWN, "firewallIds": [UNKNOWN], "publicNets": [{"ipv4": UNKNOWN}]}),
        (SERVER, {"labels": {"a": UNKNOWN}}),
        (FIREWALL, {"rules": [{**RULE, "sourceIps": ["1.2.3.4", UNKNOWN]}]}),
        (FIREWALL, {"rules": [{**RULE, "port": "99999"}]}),
        (FIREWALL, {"rules": [{"direction": "in", "protocol": "icmp"}]}),
        (FIREWALL, {"rules": []}),
        (PRIMARY_IP, {"type": "ipv5"}),
        (PRIMARY_IP, {"assigneeType": "server"}),
        (PRIMARY_IP, {"assigneeId": 1, "assigneeType": "server", "location": None}),
        (PRIMARY_IP, {"location": UNKNOWN}),
        (SSH_KEY, {"publicKey": "foo"}),
        (RDNS, {"primaryIpId": UNKNOWN, "ipAddress": UNKNOWN}),
        (RDNS, {"ipAddress": "2001:0DB8:0::1"}),
        (ZONE, {"name": "Example.org", "ttl": 5}),
        (RRSET, {"type": "a", "name": "www.example.org."}),
        (RRSET, {"records": UNKNOWN}),
        (RRSET, {"records": [{"value": UNKNOWN}, {"value": UNKNOWN}]}),
    ],
)
def test_what_the_real_plugin_takes_is_taken(token: str, edit: dict[str, Any]) -> None:
    assert checked(token, edited(token, edit))[1] == []


@pytest.mark.parametrize("token", [token for token in FULL if token != RDNS])
def test_names_are_made_up(token: str) -> None:
    inputs = inputs_of(token, {"name": None})
    assert inputs["name"] == "made-up"
    assert inputs["__defaults"] == ["name"]


def test_defaults_are_filled_in_for_addresses_alone() -> None:
    inputs = inputs_of(SERVER)
    assert inputs["__defaults"] == []
    assert inputs["publicNets"][0] == {
        "ipv4": 1,
        "ipv6": 2,
        "ipv4Enabled": True,
        "ipv6Enabled": True,
        "__defaults": ["ipv4Enabled", "ipv6Enabled"],
    }
    assert inputs_of(ZONE)["__defaults"] == []


def test_the_provider_wants_a_token_of_64_characters_and_knows_what_it_takes() -> None:
    def reasons(**arguments: Any) -> list[str]:
        return [each.reason for each in check_provider(arguments, PACKAGE, resource_name="p")]

    assert reasons(token=TOKEN, endpoint="http://127.0.0.1:1/v1", version="1.43.3") == []
    assert reasons() == reasons(token=UNKNOWN, pollInterval="x") == []
    (reason,) = reasons(token="s" * 63)
    assert "must be exactly 64 characters long" in reason
    assert "sss" not in reason
    for wrong in ({"tokn": TOKEN}, {"pollFunction": "foo"}, {"endpointHetzner": "http://127.0.0.1:1"}):
        assert len(reasons(**wrong)) == 1


# -- diff: what the real plugin answers to the same edits of the same states


CHANGES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (SERVER, {}, {}),
    (SERVER, {"name": "x"}, {"name": "UPDATE"}),
    (SERVER, {"serverType": "cx33"}, {"serverType": "UPDATE"}),
    (SERVER, {"image": "debian-12"}, {"image": "UPDATE_REPLACE"}),
    (SERVER, {"image": None, "location": None}, {}),
    (SERVER, {"location": "nbg1"}, {"location": "UPDATE_REPLACE"}),
    (SERVER, {"sshKeys": ["2"]}, {"sshKeys[0]": "UPDATE_REPLACE"}),
    (SERVER, {"sshKeys": [UNKNOWN]}, {"sshKeys": "UPDATE_REPLACE"}),
    (SERVER, {"userData": "x"}, {"userData": "UPDATE_REPLACE"}),
    (SERVER, {"userData": UNKNOWN}, {"userData": "UPDATE_REPLACE"}),
    (SERVER, {"userData": None}, {"userData": "DELETE_REPLACE"}),
    (SERVER, {"firewallIds": [4]}, {"firewallIds[0]": "UPDATE"}),
    (SERVER, {"firewallIds": [4, 3]}, {"firewallIds[0]": "ADD"}),
    (SERVER, {"firewallIds": None}, {}),
    (SERVER, {"firewallIds": []}, {"firewallIds": "DELETE"}),
    (SERVER, {"firewallIds": [UNKNOWN]}, {"firewallIds": "UPDATE"}),
    (SERVER, {"publicNets": [{"ipv4": 9, "ipv6": 2}]}, {"publicNets[0].ipv4": "UPDATE"}),
    (SERVER, {"publicNets": None}, {"publicNets": "DELETE"}),
    (SERVER, {"labels": {"a": "c"}}, {"labels.a": "UPDATE"}),
    (SERVER, {"labels": None}, {"labels.a": "DELETE"}),
    (SERVER, {"backups": True}, {"backups": "UPDATE"}),
    (SERVER, {"keepDisk": False}, {"keepDisk": "UPDATE"}),
    (SERVER, {"placementGroupId": 9}, {"placementGroupId": "UPDATE"}),
    (
        SERVER,
        {"deleteProtection": True, "rebuildProtection": True},
        {"deleteProtection": "UPDATE", "rebuildProtection": "UPDATE"},
    ),
    (FIREWALL, {}, {}),
    (FIREWALL, {"rules": [{**RULE, "port": "80"}]}, {"rules[0].port": "UPDATE"}),
    (FIREWALL, {"rules": [RULE, {**RULE, "port": "80"}]}, {"rules[1]": "ADD"}),
    (FIREWALL, {"rules": None}, {"rules": "DELETE"}),
    (FIREWALL, {"rules": [{**RULE, "sourceIps": ["::/0", "0.0.0.0/0"]}]}, {}),
    (FIREWALL, {"rules": [{**RULE, "sourceIps": ["0:0::/0", "0.0.0.0/0"]}]}, {}),
    (FIREWALL, {"rules": [{**RULE, "sourceIps": ["0.0.0.0/0"]}]}, {"rules[0].sourceIps[1]": "DELETE"}),
    (FIREWALL, {"labels": {"a": "c"}}, {"labels.a": "UPDATE"}),
    (FIREWALL, {"labels": None}, {}),
    (GROUP, {"name": "x"}, {"name": "UPDATE"}),
    (GROUP, {"labels": {"a": "c"}}, {"labels.a": "ADD"}),
]


@pytest.mark.parametrize(("token", "edit", "expected"), CHANGES)
def test_changes(token: str, edit: dict[str, Any], expected: dict[str, str]) -> None:
    found = difference(token, edit)
    assert {
        path: change.value + ("_REPLACE" if path in found.replacing else "")
        for path, change in found.changes.items()
    } == expected


FRAMEWORK_CHANGES: list[tuple[str, dict[str, Any], set[str], set[str]]] = [
    (SSH_KEY, {}, set(), set()),
    (SSH_KEY, {"name": "x"}, {"name"}, set()),
    (SSH_KEY, {"publicKey": "ssh-ed25519 AAAA y"}, {"publicKey"}, {"publicKey"}),
    (SSH_KEY, {"labels": None}, {"labels"}, set()),
    (PRIMARY_IP, {}, set(), set()),
    (PRIMARY_IP, {"autoDelete": None}, set(), set()),
    (PRIMARY_IP, {"name": "x"}, {"name", "assigneeId", "assigneeType"}, set()),
    (PRIMARY_IP, {"labels": None}, {"labels", "assigneeId", "assigneeType"}, set()),
    (PRIMARY_IP, {"deleteProtection": True}, {"deleteProtection", "assigneeId", "assigneeType"}, set()),
    (PRIMARY_IP, {"location": "nbg1"}, {"location", "assigneeId", "assigneeType"}, {"location"}),
    (PRIMARY_IP, {"type": "ipv6"}, {"type", "assigneeId", "assigneeType"}, {"type"}),
    (PRIMARY_IP, {"assigneeType": "server"}, {"assigneeId", "assigneeType"}, set()),
    (RDNS, {}, set(), set()),
    (RDNS, {"dnsPtr": "x.y"}, {"dnsPtr"}, set()),
    (RDNS, {"ipAddress": UNKNOWN}, {"ipAddress"}, {"ipAddress"}),
    (RDNS, {"primaryIpId": 6}, {"primaryIpId"}, {"primaryIpId"}),
    (ZONE, {}, set(), set()),
    (ZONE, {"name": "example.com"}, {"name", *behaviours()[ZONE].unknown_on_update}, {"name"}),
    (ZONE, {"ttl": 100}, {"ttl", *behaviours()[ZONE].unknown_on_update}, set()),
    (RRSET, {}, set(), set()),
    (RRSET, {"zone": "x.y"}, {"zone", "changeProtection"}, {"zone"}),
    (RRSET, {"name": "x"}, {"name", "changeProtection"}, {"name"}),
    (RRSET, {"type": "AAAA"}, {"type", "changeProtection"}, {"type"}),
    (RRSET, {"ttl": 61}, {"ttl", "changeProtection"}, set()),
    (RRSET, {"ttl": None}, {"ttl", "changeProtection"}, set()),
    (RRSET, {"records": [{"value": "1.2.3.5"}]}, {"records", "changeProtection"}, set()),
    (RRSET, {"records": [{"value": "1.2.3.4", "comment": "x"}]}, {"records", "changeProtection"}, set()),
    (RRSET, {"records": [{"value": UNKNOWN}]}, {"records", "changeProtection"}, set()),
    (RRSET, {"changeProtection": True}, {"changeProtection"}, set()),
]


@pytest.mark.parametrize(("token", "edit", "changes", "replaces"), FRAMEWORK_CHANGES)
def test_changes_of_framework_resources(
    token: str, edit: dict[str, Any], changes: set[str], replaces: set[str]
) -> None:
    found = difference(token, edit)
    assert set(found.changed_properties) == changes
    assert set(found.replaced_properties) == replaces
    assert not found.delete_before_replace


def test_a_replaced_server_of_a_given_name_goes_first() -> None:
    assert difference(SERVER, {"image": "debian-12"}).delete_before_replace
    assert not difference(SERVER, {"image": "debian-12", "name": None}).delete_before_replace
    assert not difference(SERVER, {"serverType": "cx33"}).delete_before_replace


def test_what_is_ignored_is_no_change_and_stays_in_the_state() -> None:
    ignored = ("userData", "sshKeys", "image")
    edit = {"userData": "x", "sshKeys": ["2"], "image": "debian-12", "name": "x"}
    assert set(difference(SERVER, edit, ignored).changes) == {"name"}
    kind = PACKAGE.resources[SERVER]
    after = updated(state_of(SERVER), inputs_of(SERVER, edit), kind.schema, kind.behaviour, ignored)
    assert (after["userData"], after["sshKeys"], after["image"]) == (SUM, ["1"], "debian-13")
    assert (after["name"], after["ipv4Address"]) == ("x", "198.18.0.10")


# -- state


def test_a_preview_knows_what_the_api_does_not_choose() -> None:
    def unknown(token: str, **edit: Any) -> set[str]:
        kind = PACKAGE.resources[token]
        state = planned(inputs_of(token, edit), kind.schema, kind.behaviour, computed=UNKNOWN)
        return {name for name, value in state.items() if value == UNKNOWN}

    computed = {
        "datacenter",
        "ipv4Address",
        "ipv6Address",
        "ipv6Network",
        "status",
        "primaryDiskSize",
        "backupWindow",
    }
    assert unknown(SERVER) == computed
    assert unknown(SERVER, firewallIds=None) == {*computed, "firewallIds"}
    assert unknown(PRIMARY_IP) == {"datacenter", "ipNetwork", "ipAddress", "assigneeType", "assigneeId"}
    assert unknown(RRSET) == {"changeProtection"}
    assert unknown(SSH_KEY) == {"fingerprint"}
    assert unknown(RDNS) == set()


def test_the_state_keeps_a_sum_of_the_user_data_and_a_refresh_the_text() -> None:
    kind, state = PACKAGE.resources[SERVER], state_of(SERVER)
    assert state["userData"] == SUM == server.user_data_sum(USER_DATA)
    known = refreshed_inputs(inputs_of(SERVER), state, kind.schema, kind.behaviour)
    assert known["userData"] == USER_DATA
    assert "datacenter" not in state_of(PRIMARY_IP), "the framework writes no nulls"
    assert state_of(RRSET)["records"] == [{"value": "1.2.3.4"}]
    assert state_of(FIREWALL)["rules"][0]["destinationIps"] == []


def api_server(**edit: Any) -> dict[str, Any]:
    return {
        "id": 42,
        "name": "srv",
        "status": "running",
        "location": {"name": "fsn1"},
        "server_type": {"name": "cx23"},
        "image": {"id": 1, "name": "debian-13"},
        "public_net": {
            "ipv4": {"id": 1, "ip": "198.18.0.10"},
            "ipv6": {"id": 2, "ip": "2001:db8:7:1::/64"},
            "firewalls": [{"id": 3, "status": "applied"}],
        },
        "backup_window": None,
        "labels": {},
        "protection": {"delete": False, "rebuild": True},
        "primary_disk_size": 40,
        "placement_group": None,
        **edit,
    }


def test_a_server_is_told_as_the_real_plugin_tells_it() -> None:
    found = server.observed(api_server(), {})
    assert (found["ipv4Address"], found["ipv6Address"]) == ("198.18.0.10", "2001:db8:7:1::1")
    assert (found["backups"], found["backupWindow"], found["placementGroupId"]) == (False, "", 0)
    assert (found["image"], found["rebuildProtection"]) == ("debian-13", True)
    assert server.observed(api_server(), {"image": "1"})["image"] == "1"
    assert "image" not in server.observed(api_server(image=None), {})
    bare: dict[str, Any] = {"ipv4": None, "ipv6": None, "firewalls": []}
    found = server.observed(api_server(public_net=bare, placement_group={"id": 9}), {})
    assert (found["ipv4Address"], found["ipv6Address"], found["placementGroupId"]) == (None, None, 9)


@pytest.mark.parametrize(
    ("block", "body"),
    [
        ({}, {"enable_ipv4": True, "enable_ipv6": True}),
        ({"ipv4Enabled": False}, {"enable_ipv4": False, "enable_ipv6": True}),
        (
            {"ipv4": 1, "ipv6": "2"},
            {"enable_ipv4": True, "enable_ipv6": True, "ipv4": 1, "ipv6": 2},
        ),
    ],
)
def test_addresses_of_a_server(block: dict[str, Any], body: dict[str, Any]) -> None:
    assert server.public_net(block) == body


@pytest.mark.parametrize(
    ("written", "normalized"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("192.0.2.7/24", "192.0.2.7/24"),
        ("x", "x"),
    ],
)
def test_networks_of_rules(written: str, normalized: str) -> None:
    assert firewall.normalized_network(written) == normalized


@pytest.mark.parametrize("identifier", ["", "p-5", "x-5-1.2.3.4", "p-x-1.2.3.4", "p-5-1.2.3"])
def test_wrong_ids_of_reverse_dns(identifier: str) -> None:
    with pytest.raises(OperationError, match="Invalid ID"):
        rdns.read(Api("http://127.0.0.1:1/v1", TOKEN, 0.01), identifier, {})


# -- the API


@pytest.fixture(scope="module")
def served() -> Iterator[ServedApi]:
    with serve() as made:
        yield made


@pytest.fixture
def api(served: ServedApi) -> Api:
    return Api(served.endpoint, served.token, 0.01)


def fault(served: ServedApi, body: dict[str, Any]) -> None:
    Api(served.sandbox, served.token, 0.01).request("POST", "/faults", body)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://api.hetzner.cloud/v1",
        "http://192.0.2.1:80/v1",
        "http://sandbox:80/v1",
        "ftp://127.0.0.1/v1",
        "",
    ],
)
def test_other_apis_than_a_sandboxs_are_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HCLOUD_ENDPOINT", raising=False)
    with pytest.raises(RefusedError, match=r"on loopback only.*install resource hcloud"):
        connect({"token": TOKEN, "endpoint": endpoint})


def test_endpoint_and_token_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCLOUD_ENDPOINT", "http://127.0.0.1:1/v1/")
    monkeypatch.setenv("HCLOUD_TOKEN", TOKEN)
    assert connect({}).endpoint == "http://127.0.0.1:1/v1"
    assert connect({"endpoint": "http://[::1]:2/v1"}).endpoint == "http://[::1]:2/v1"
    with pytest.raises(RefusedError, match="poll interval"):
        connect({"pollInterval": "soon"})
    monkeypatch.setenv("HCLOUD_TOKEN", "short")
    with pytest.raises(RefusedError, match="exactly 64 characters"):
        connect({})
    monkeypatch.delenv("HCLOUD_TOKEN")
    with pytest.raises(RefusedError, match="Missing Hetzner Cloud API token"):
        connect({})


@pytest.mark.parametrize(
    ("text", "expected"), [("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("-1s", -1), ("10us", 1e-5)]
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1s2", "ms1"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        seconds(text)


def test_errors_have_the_words_the_code_and_the_fields_of_the_api(api: Api) -> None:
    with pytest.raises(ApiError, match=r"\(invalid_input, [0-9a-f]+\).*public_key") as refused:
        api.request("POST", "/ssh_keys", {"name": "a", "public_key": "nonsense"})
    assert refused.value.code == "invalid_input"
    assert api.get("/servers/1") is None
    with pytest.raises(ApiError, match="unauthorized"):
        Api(api.endpoint, "0" * 64, 0.01).get("/servers/1")
    with pytest.raises(
        OperationError, match=r"cannot talk to the Hetzner Cloud API at http://127\.0\.0\.1:1"
    ):
        Api("http://127.0.0.1:1/v1", TOKEN, 0.01).get("/servers")


ORDER = {"name": "a", "server_type": "cx23", "image": "debian-13", "location": "fsn1"}


def test_actions_are_waited_for(api: Api, served: ServedApi) -> None:
    fault(served, {"action": "create_server", "seconds": 0.3})
    began = time.monotonic()
    answer = api.request("POST", "/servers", ORDER)
    api.settle(answer["action"], None, *answer["next_actions"])
    assert time.monotonic() - began >= 0.3
    path = f"/servers/{answer['server']['id']}"
    assert api.request("GET", path)["server"]["status"] == "running"
    error = {"code": "server_error", "message": "it broke"}
    fault(served, {"action": "stop_server", "error": error})
    with pytest.raises(ActionFailedError, match=r"it broke \(server_error, \d+\)"):
        api.act(f"{path}/actions/poweroff")
    api.settle(api.request("DELETE", path)["action"])


def test_waiting_ends_when_it_is_cancelled(api: Api, served: ServedApi) -> None:
    fault(served, {"action": "create_server", "seconds": 30})
    answer = api.request("POST", "/servers", {**ORDER, "name": "b"})
    threading.Timer(0.2, api.cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(CancelledError, match=r"create_server \(\d+\)"):
        api.settle(answer["action"])
    assert time.monotonic() - began < 5
    attempts: list[int] = []
    with pytest.raises(OperationError, match="again"):
        api.persist(failing(attempts), 5, lambda _: True)
    assert len(attempts) == 1, "tried again although cancelled"


def failing(attempts: list[int]) -> Callable[[], None]:
    def attempt() -> None:
        attempts.append(1)
        raise OperationError("again")

    return attempt


def test_what_passes_is_tried_again_and_nothing_else(api: Api) -> None:
    attempts: list[int] = []
    with pytest.raises(OperationError, match="again"):
        api.persist(failing(attempts), 2, lambda _: True)
    assert len(attempts) == 2
    attempts.clear()
    with pytest.raises(OperationError, match="again"):
        api.persist(failing(attempts), 5, lambda _: False)
    assert len(attempts) == 1


# -- the service


def urn(token: str) -> str:
    return f"urn:pulumi:s::p::{token}::r"


@contextmanager
def caller(serving: Serving) -> Iterator[Any]:
    """Call the service through a connection of its own, as the engine does for each provider resource."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}", options=options) as channel:
        yield provider_pb2_grpc.ResourceProviderStub(channel)


def configure(stub: Any, api: ServedApi) -> None:
    stub.Configure(
        provider_pb2.ConfigureRequest(args=to_struct({"endpoint": api.endpoint, "token": api.token}))
    )


def make_group(stub: Any, name: str) -> None:
    properties = to_struct({"name": name, "type": "spread"})
    stub.Create(provider_pb2.CreateRequest(urn=urn(GROUP), properties=properties))


def groups(api: ServedApi) -> list[str]:
    found = Api(api.endpoint, api.token, 0.01).request("GET", "/placement_groups")["placement_groups"]
    return sorted(each["name"] for each in found)


def test_provider_resources_are_told_apart_by_their_connections() -> None:
    serving = Serving(PACKAGE)
    try:
        with serve() as one, serve() as other, caller(serving) as first, caller(serving) as second:
            with pytest.raises(grpc.RpcError, match="was not configured"):
                make_group(first, "a")
            configure(first, one)
            with caller(serving) as back:
                # gRPC makes a new connection after half an hour without calls
                make_group(back, "a")
            configure(second, other)
            make_group(first, "b")
            make_group(second, "c")
            assert (groups(one), groups(other)) == (["a", "b"], ["c"])
            with caller(serving) as lost, pytest.raises(grpc.RpcError, match="cannot tell any more"):
                make_group(lost, "d")
            # the same provider resource moves
            configure(first, other)
            make_group(first, "e")
            assert groups(other) == ["c", "e"]
            # to stop is meant for one, or for those that share its connection; the next run begins anew
            first.Cancel(empty_pb2.Empty())
            configure(first, one)
            make_group(first, "f")
            assert groups(one) == ["a", "b", "f"]
    finally:
        serving.stop(1)


def test_what_is_not_carried_is_refused_by_name() -> None:
    serving = Serving(PACKAGE)
    try:
        with caller(serving) as stub:
            request = provider_pb2.CheckRequest(urn=urn("hcloud:index/network:Network"))
            with pytest.raises(grpc.RpcError, match="carries Firewall, PlacementGroup, PrimaryIp, Rdns"):
                stub.Check(request)
            with pytest.raises(
                grpc.RpcError, match="has no functions such as hcloud:index/getImage:getImage"
            ):
                stub.Invoke(provider_pb2.InvokeRequest(tok="hcloud:index/getImage:getImage"))
            assert stub.GetPluginInfo(empty_pb2.Empty()).version == "1.43.3"
            schema = json.loads(stub.GetSchema(provider_pb2.GetSchemaRequest()).schema)
            assert schema["name"] == "hcloud"
            assert set(schema["resources"]) == set(FULL)
    finally:
        serving.stop(1)
