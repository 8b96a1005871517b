"""The hcloud package: its resource types, what they do with the API, and the connection to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sandbox.provider.package import Creation, Package, ResourceType

from . import (
    PLUGIN_VERSION,
    firewall,
    placement_group,
    primary_ip,
    rdns,
    server,
    ssh_key,
    zone,
    zone_rrset,
)
from .api import Api, connect
from .behaviour import PROVIDER_REFUSED, PROVIDER_VALIDATORS, behaviours
from .schema import provider_arguments, resource_schemas


class _Life(Protocol):
    """The four functions of a resource type's module."""

    def create(self, api: Api, inputs: Mapping[str, Any], /) -> Creation:
        """Make the resource."""

    def read(self, api: Api, identifier: str, prior: Mapping[str, Any], /) -> dict[str, Any] | None:
        """Return its properties, None if it is gone."""

    def update(
        self, api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any], /
    ) -> dict[str, Any]:
        """Change it in place from one state to another; return its properties."""

    def delete(self, api: Api, identifier: str, state: Mapping[str, Any], /) -> None:
        """Remove it."""


def _resource_types() -> Mapping[str, ResourceType]:
    modules: Mapping[str, _Life] = {
        "hcloud:index/sshKey:SshKey": ssh_key,
        "hcloud:index/primaryIp:PrimaryIp": primary_ip,
        "hcloud:index/firewall:Firewall": firewall,
        "hcloud:index/placementGroup:PlacementGroup": placement_group,
        "hcloud:index/server:Server": server,
        "hcloud:index/rdns:Rdns": rdns,
        "hcloud:index/zone:Zone": zone,
        "hcloud:index/zoneRrset:ZoneRrset": zone_rrset,
    }
    return {
        token: ResourceType(
            schema=resource_schemas()[token],
            behaviour=behaviours()[token],
            create=module.create,
            read=module.read,
            update=module.update,
            delete=module.delete,
        )
        for token, module in modules.items()
    }


PACKAGE = Package(
    name="hcloud",
    version=PLUGIN_VERSION,
    provider_arguments=provider_arguments(),
    provider_refused=PROVIDER_REFUSED,
    provider_validators=PROVIDER_VALIDATORS,
    resources=_resource_types(),
    connect=connect,
    serves="it serves a sandbox's Hetzner Cloud API on loopback, and never the real one",
)
