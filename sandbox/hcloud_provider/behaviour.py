"""
What the real plugin does with the arguments, beyond what its SDK tells.

The plugin (https://github.com/pulumi/pulumi-hcloud) wraps the Terraform provider
https://github.com/hetznercloud/terraform-provider-hcloud, here at v1.66.1: the tables follow
``internal/*/resource.go`` there (``ForceNew`` and ``RequiresReplace``, ``Computed``, ``Default``,
``TypeSet``, validators), under the names of the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from hcloud.helpers.labels import LabelValidator

from sandbox.provider.behaviour import Behaviour, Rule, Validator
from sandbox.provider.values import UNKNOWN

from .api import TOKEN_LENGTH
from .firewall import normalized_network, wrong_network
from .rdns import wrong_address
from .schema import resource_schemas
from .server import user_data_sum
from .zone import DEFAULT_TTL

_DATACENTER = "datacenters are gone from the API; use location"
_NO_NETWORKS = "the sandbox has no private networks"
_NO_ISO = "the sandbox has no ISO images and no rescue system"
_NO_FLOATING = "the sandbox has neither floating IPs nor load balancers"

_SERVER_TIMEOUTS = {"create": 90 * 60}


def _labels(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    labels = checked.get("labels")
    if not isinstance(labels, dict):
        return None
    for key, value in labels.items():
        if value != UNKNOWN:
            right, reason = LabelValidator.validate_verbose({key: value})
            if not right:
                return "labels", reason
    return None


def _exactly_one(*names: str) -> Rule:
    def rule(checked: Mapping[str, Any]) -> tuple[str, str] | None:
        given = [name for name in names if checked.get(name) is not None]
        if len(given) == 1:
            return None
        what = "Invalid Attribute Combination" if given else "Missing Attribute Configuration"
        where = given[0] if given else names[0]
        return where, f"{what}. Exactly one of these attributes must be configured: [{','.join(names)}]"

    return rule


def _assignee(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    if checked.get("assigneeId") is None or checked.get("assigneeType") is not None:
        return None
    return "assigneeId", "These attributes must be configured together: [assigneeId,assigneeType]"


def _one_of(what: str, *words: str) -> Validator:
    def check(value: Any) -> str | None:
        return None if value in words else f"{value} is not a valid {what}"

    return check


def _not_empty(reason: str) -> Validator:
    def check(value: Any) -> str | None:
        return None if value else reason

    return check


def _one_public_net(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    blocks = checked.get("publicNets")
    if isinstance(blocks, list) and len(blocks) > 1:
        return "publicNets", "the stand-in takes one element only"
    return None


def _primary_zone(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    if checked.get("mode") in ("primary", UNKNOWN, None):
        return None
    return "mode", "the stand-in carries zones of mode primary only"


def _records(checked: Mapping[str, Any]) -> tuple[str, str] | None:
    records = checked.get("records")
    if not isinstance(records, list):
        return None
    if not records:
        return "records", "Attribute records set must contain at least 1 elements, got: 0"
    shown = [
        sorted(each.items()) for each in records if isinstance(each, dict) and UNKNOWN not in each.values()
    ]
    if any(each in shown[:index] for index, each in enumerate(shown)):
        return "records", "Duplicate Set Element. This attribute contains duplicate values"
    return None


_SSH_KEY = Behaviour(
    framework=True,
    updates_in_place=frozenset({"name", "labels"}),
    computed=frozenset(),
    sets=frozenset(),
    defaults={"labels": {}},
    rules=(_labels,),
)

_PRIMARY_IP = Behaviour(
    framework=True,
    updates_in_place=frozenset(
        {"name", "labels", "autoDelete", "deleteProtection", "assigneeId", "assigneeType"}
    ),
    computed=frozenset({"location", "datacenter", "assigneeId", "assigneeType"}),
    unknown_on_update=frozenset({"assigneeId", "assigneeType"}),
    sets=frozenset(),
    defaults={"labels": {}, "autoDelete": False, "deleteProtection": False},
    refused={"datacenter": _DATACENTER},
    rules=(_labels, _exactly_one("location", "assigneeId"), _assignee),
)

_FIREWALL = Behaviour(
    updates_in_place=frozenset({"name", "labels", "rules", "applyTos"}),
    computed=frozenset({"labels", "applyTos"}),
    sets=frozenset({"rules", "rules.sourceIps", "rules.destinationIps", "applyTos"}),
    defaults={},
    refused={"applyTos": "give a server its firewallIds instead"},
    validators={
        "rules.direction": _one_of("direction", "in", "out"),
        "rules.protocol": _one_of("protocol", "tcp", "udp", "icmp", "esp", "gre"),
        "rules.sourceIps": wrong_network,
        "rules.destinationIps": wrong_network,
    },
    state_functions={"rules.sourceIps": normalized_network, "rules.destinationIps": normalized_network},
    rules=(_labels,),
)

_PLACEMENT_GROUP = Behaviour(
    updates_in_place=frozenset({"name", "labels"}),
    computed=frozenset(),
    sets=frozenset(),
    defaults={},
    validators={"type": _one_of("placement group type", "spread")},
    rules=(_labels,),
)

_SERVER = Behaviour(
    updates_in_place=frozenset(
        {
            "allowDeprecatedImages",
            "backups",
            "deleteProtection",
            "firewallIds",
            "ignoreRemoteFirewallIds",
            "iso",
            "keepDisk",
            "labels",
            "name",
            "networks",
            "placementGroupId",
            "publicNets",
            "rebuildProtection",
            "rescue",
            "serverType",
            "shutdownBeforeDeletion",
        }
    ),
    computed=frozenset({"datacenter", "firewallIds", "image", "location"}),
    empty_is_change=frozenset({"firewallIds"}),
    sets=frozenset({"firewallIds", "publicNets", "networks"}),
    defaults={
        "backups": False,
        "deleteProtection": False,
        "ignoreRemoteFirewallIds": False,
        "keepDisk": False,
        "publicNets.ipv4Enabled": True,
        "publicNets.ipv6Enabled": True,
        "rebuildProtection": False,
        "shutdownBeforeDeletion": False,
    },
    refused={
        "datacenter": _DATACENTER,
        "ignoreRemoteFirewallIds": "the stand-in always compares firewallIds",
        "iso": _NO_ISO,
        "networks": _NO_NETWORKS,
        "rescue": _NO_ISO,
    },
    validators={
        "image": _not_empty(
            '"image" must have more than 0 characters. Have you set the name instead of an ID?'
        ),
        "sshKeys": _not_empty("Invalid ssh key passed. You need to pass a string with at least 1 character"),
    },
    state_functions={"userData": user_data_sum},
    rules=(_labels, _one_public_net),
    timeouts=_SERVER_TIMEOUTS,
)

_RDNS = Behaviour(
    framework=True,
    updates_in_place=frozenset({"dnsPtr"}),
    computed=frozenset(),
    sets=frozenset(),
    defaults={},
    refused={"floatingIpId": _NO_FLOATING, "loadBalancerId": _NO_FLOATING},
    validators={"ipAddress": wrong_address},
    rules=(_exactly_one("serverId", "primaryIpId"),),
    autonamed=False,
)

_ZONE = Behaviour(
    framework=True,
    updates_in_place=frozenset({"ttl", "labels", "deleteProtection", "primaryNameservers"}),
    computed=frozenset({"deleteProtection", "primaryNameservers"}),
    unknown_on_update=frozenset(
        {"deleteProtection", "primaryNameservers", "authoritativeNameservers", "registrar"}
    ),
    sets=frozenset(),
    defaults={"labels": {}, "ttl": DEFAULT_TTL},
    refused={"primaryNameservers": "they belong to zones of mode secondary"},
    rules=(_labels, _primary_zone),
)

_ZONE_RRSET = Behaviour(
    framework=True,
    updates_in_place=frozenset({"ttl", "labels", "changeProtection", "records"}),
    computed=frozenset({"changeProtection"}),
    unknown_on_update=frozenset({"changeProtection"}),
    sets=frozenset({"records"}),
    defaults={"labels": {}},
    rules=(_labels, _records),
)


@cache
def behaviours() -> Mapping[str, Behaviour]:
    """Return the behaviour of each carried resource type, by type token."""
    found = {
        "SshKey": _SSH_KEY,
        "PrimaryIp": _PRIMARY_IP,
        "Firewall": _FIREWALL,
        "PlacementGroup": _PLACEMENT_GROUP,
        "Server": _SERVER,
        "Rdns": _RDNS,
        "Zone": _ZONE,
        "ZoneRrset": _ZONE_RRSET,
    }
    return {token: found[token.rsplit(":", 1)[1]] for token in resource_schemas()}


PROVIDER_REFUSED = {"endpointHetzner": "the sandbox has no storage boxes, which alone need it"}
"""Arguments of the provider resource that are not carried, with the reason."""


def _token(value: Any) -> str | None:
    if len(value) == TOKEN_LENGTH:
        return None
    return f"entered token is invalid (must be exactly {TOKEN_LENGTH} characters long)"


def _poll_function(value: Any) -> str | None:
    if value in ("constant", "exponential"):
        return None
    return f'expected poll_function to be one of ["constant" "exponential"], got {value}'


PROVIDER_VALIDATORS: Mapping[str, Validator] = {"token": _token, "pollFunction": _poll_function}
"""Validators of arguments of the provider resource (``hcloud/provider.go`` upstream)."""
