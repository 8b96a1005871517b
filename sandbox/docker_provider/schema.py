"""Arguments of the docker resources that are carried, from the installed ``pulumi_docker`` package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pulumi_docker

from sandbox.provider.schema import Property, ResourceSchema, properties_of, resource_schema


@cache
def resource_schemas() -> Mapping[str, ResourceSchema]:
    """Schemas of the resource types that are carried, by type token."""
    schemas = (
        resource_schema("docker:index/network:Network", pulumi_docker.Network, pulumi_docker.NetworkArgs),
        resource_schema("docker:index/volume:Volume", pulumi_docker.Volume, pulumi_docker.VolumeArgs),
        resource_schema(
            "docker:index/remoteImage:RemoteImage", pulumi_docker.RemoteImage, pulumi_docker.RemoteImageArgs
        ),
        resource_schema(
            "docker:index/container:Container", pulumi_docker.Container, pulumi_docker.ContainerArgs
        ),
    )
    return {schema.token: schema for schema in schemas}


@cache
def provider_arguments() -> Mapping[str, Property]:
    """Return the arguments of the provider resource itself, by wire name."""
    return properties_of(pulumi_docker.ProviderArgs)
