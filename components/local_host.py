"""A host that is this machine."""

from __future__ import annotations

import pulumi
import pulumi_docker as docker

from images.recipe import host_goarch
from settings import Settings
from settings.host import LocalHost as LocalHostSettings


class LocalHost(pulumi.ComponentResource):
    """The machine that Pulumi runs on, with the Docker Engine that it has."""

    provider: docker.Provider
    server: pulumi.CustomResource | None = None
    ipv4: str | None
    ipv6: str | None
    goarch: str

    def __init__(self, name: str, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the provider for ``host.docker``, else ``DOCKER_HOST``, else Docker's own socket."""
        super().__init__("derp-relays:components:LocalHost", name, None, opts)
        host = settings.host
        assert isinstance(host, LocalHostSettings)  # noqa: S101 - the program chooses by kind
        self.provider = docker.Provider(name, host=host.docker, opts=pulumi.ResourceOptions(parent=self))
        self.ipv4 = host.ipv4
        self.ipv6 = host.ipv6
        self.goarch = host_goarch()
        self.register_outputs({"ipv4": self.ipv4, "ipv6": self.ipv6})
