"""A host that exists: nothing of it is made, its Docker Engine is used."""

from __future__ import annotations

import pulumi
import pulumi_docker as docker

from components.engine_over_ssh import engine_over_ssh
from settings import Settings
from settings.host import SshHost as SshHostSettings


class SshHost(pulumi.ComponentResource):
    """A server that exists, by the Docker Engine that it has."""

    provider: docker.Provider
    server: pulumi.CustomResource | None = None
    ipv4: str | None
    ipv6: str | None
    goarch: str

    def __init__(self, name: str, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        """Write what SSH needs, and declare the provider for the engine behind ``host.address``."""
        super().__init__("derp-relays:components:SshHost", name, None, opts)
        host = settings.host
        assert isinstance(host, SshHostSettings)  # noqa: S101 - the program chooses by kind
        self.provider = engine_over_ssh(name, settings, host.address, self)
        self.ipv4 = host.ipv4
        self.ipv6 = host.ipv6
        self.goarch = host.architecture
        self.register_outputs({"ipv4": self.ipv4, "ipv6": self.ipv6})
