"""Where Docker runs. A host gives the others a provider, its addresses and its architecture."""

from __future__ import annotations

from typing import Any, Protocol

import pulumi
import pulumi_docker as docker

from images.recipe import host_goarch
from settings import Settings


class Host(Protocol):
    """What the other components need of a host, whatever its kind.

    ``provider`` is bound to the host's Docker Engine. ``server`` is the
    resource that all Docker resources live and die with, or ``None`` where the
    machine is not ours to make.
    """

    provider: docker.Provider
    server: pulumi.Resource | None
    ipv4: str | None
    ipv6: str | None
    goarch: str


def on_host(host: Host, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
    """Return the options of a Docker resource on ``host``, with further ``options`` of its own.

    A provider whose address changes does not replace what it made: without
    ``deleted_with`` a rebuilt server would stay empty while its containers
    count as unchanged (pulumi-docker issue 125).
    """
    return pulumi.ResourceOptions(parent=parent, provider=host.provider, deleted_with=host.server, **options)


class LocalHost(pulumi.ComponentResource):
    """The machine that Pulumi runs on, with the Docker Engine that it has."""

    provider: docker.Provider
    server: pulumi.Resource | None = None
    ipv4: str | None
    ipv6: str | None
    goarch: str

    def __init__(self, name: str, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the provider for ``host.docker``, else ``DOCKER_HOST``, else Docker's own socket."""
        super().__init__("derp-relays:components:LocalHost", name, None, opts)
        self.provider = docker.Provider(
            name, host=settings.host.docker, opts=pulumi.ResourceOptions(parent=self)
        )
        self.ipv4 = settings.host.ipv4
        self.ipv6 = settings.host.ipv6
        self.goarch = host_goarch()
        self.register_outputs({"ipv4": self.ipv4, "ipv6": self.ipv6})
