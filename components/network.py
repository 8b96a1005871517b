"""The Docker network that Caddy, derper and the sites' containers share."""

from __future__ import annotations

import pulumi
import pulumi_docker as docker

from components.host import Host, lives_on, on_host
from settings import Settings


class RelayNetwork(pulumi.ComponentResource):
    """The shared network: made here, with IPv6, or one that is there already.

    Without IPv6 on it Docker hands IPv6 packets on through a proxy process,
    and STUN tells clients that process's address (tailscale issue 17565).
    """

    name: pulumi.Input[str]
    ipv6: bool

    def __init__(
        self, name: str, settings: Settings, host: Host, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the network, or nothing where ``network.external`` says that it exists."""
        super().__init__("derp-relays:components:RelayNetwork", name, None, opts)
        wanted = settings.network
        self.ipv6 = wanted.ipv6
        if wanted.external:
            self.name = wanted.name
        else:
            subnet = wanted.subnet(pulumi.get_stack())
            network = docker.Network(
                name,
                name=lives_on(host, wanted.name),
                ipv6=wanted.ipv6,
                ipam_configs=[docker.NetworkIpamConfigArgs(subnet=subnet)] if wanted.ipv6 else None,
                labels=[docker.NetworkLabelArgs(label="derp-relays.stack", value=pulumi.get_stack())],
                opts=on_host(
                    host,
                    self,
                    # The engine adds an IPv4 subnet of its choice, which a refresh
                    # reads back; the trigger stands in for what is ignored.
                    ignore_changes=["ipamConfigs"],
                    delete_before_replace=True,
                    replacement_trigger=subnet if wanted.ipv6 else "no IPv6",
                ),
            )
            self.name = network.name
        self.register_outputs({"name": self.name})
