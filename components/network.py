"""The Docker network that Caddy, derper and the sites' containers share, and the one for metrics."""

from __future__ import annotations

import pulumi
import pulumi_docker as docker

from components.host import Host, lives_on, on_host
from settings import Metrics, Settings


class RelayNetwork(pulumi.ComponentResource):
    """The shared network: made here, with IPv6, or one that is there already.

    Without IPv6 on it Docker hands IPv6 packets on through a proxy process,
    and STUN tells clients that process's address (tailscale issue 17565).

    With ``metrics`` there is a second one, ``metrics`` by name: internal, so that
    it leads nowhere, publishes nothing and never gives a container its gateway.
    """

    name: pulumi.Input[str]
    metrics: pulumi.Input[str] | None
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
        self.metrics = self._for_metrics(settings.metrics, host) if settings.metrics else None
        self.register_outputs({"name": self.name})

    def _for_metrics(self, metrics: Metrics, host: Host) -> pulumi.Input[str]:
        return docker.Network(
            "metrics",
            name=lives_on(host, metrics.name(pulumi.get_stack())),
            internal=True,
            ipam_configs=[
                docker.NetworkIpamConfigArgs(
                    subnet=metrics.subnet,
                    gateway=metrics.gateway,
                    # Whoever joins while ours are replaced does not get their addresses.
                    ip_range=metrics.joining,
                )
            ],
            labels=[docker.NetworkLabelArgs(label="derp-relays.stack", value=pulumi.get_stack())],
            opts=on_host(host, self, delete_before_replace=True),
        ).name

    def joined(self, metrics_address: str | None) -> list[docker.ContainerNetworksAdvancedArgs]:
        """Return the networks of a container, which has ``metrics_address`` on the one for metrics."""
        shared = docker.ContainerNetworksAdvancedArgs(name=self.name)
        if self.metrics is None:
            return [shared]
        return [
            shared,
            docker.ContainerNetworksAdvancedArgs(name=self.metrics, ipv4_address=metrics_address),
        ]
