"""Arguments of the hcloud resources that are carried, from the installed ``pulumi_hcloud`` package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pulumi_hcloud as hcloud

from sandbox.provider.schema import Property, ResourceSchema, properties_of, resource_schema


@cache
def resource_schemas() -> Mapping[str, ResourceSchema]:
    """Schemas of the resource types that are carried, by type token."""
    schemas = (
        resource_schema("hcloud:index/sshKey:SshKey", hcloud.SshKey, hcloud.SshKeyArgs),
        resource_schema("hcloud:index/primaryIp:PrimaryIp", hcloud.PrimaryIp, hcloud.PrimaryIpArgs),
        resource_schema("hcloud:index/firewall:Firewall", hcloud.Firewall, hcloud.FirewallArgs),
        resource_schema(
            "hcloud:index/placementGroup:PlacementGroup", hcloud.PlacementGroup, hcloud.PlacementGroupArgs
        ),
        resource_schema("hcloud:index/server:Server", hcloud.Server, hcloud.ServerArgs),
        resource_schema("hcloud:index/rdns:Rdns", hcloud.Rdns, hcloud.RdnsArgs),
        resource_schema("hcloud:index/zone:Zone", hcloud.Zone, hcloud.ZoneArgs),
        resource_schema("hcloud:index/zoneRrset:ZoneRrset", hcloud.ZoneRrset, hcloud.ZoneRrsetArgs),
    )
    return {schema.token: schema for schema in schemas}


@cache
def provider_arguments() -> Mapping[str, Property]:
    """Return the arguments of the provider resource itself, by wire name."""
    return properties_of(hcloud.ProviderArgs)
