"""A host that is made: a server of Hetzner Cloud, with what it needs to be reached, and to be left alone."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

import pulumi
import pulumi_docker as docker
import pulumi_hcloud as hcloud

from components.engine_over_ssh import engine_over_ssh
from components.hetzner_api import STACK_LABEL
from components.site_records import SiteRecords
from render.cloud_init import cloud_init
from settings import Settings
from settings.host import HetznerHost as HetznerHostSettings
from ssh.keys import public_key

# What an edit must not rebuild a server for: it would take the relay and its certificates with it.
KEPT_UNTIL_A_REBUILD = ["userData", "sshKeys", "image"]

_EVERYWHERE = ["0.0.0.0/0", "::/0"]
# Seconds. Short, since an address that is new has to be known soon, and records are asked for seldom.
_TTL = 300


def server_name(stack: str) -> str:
    """Return the name at Hetzner of what belongs to ``stack``: a host name, as servers must have."""
    return "derp-" + re.sub(r"[^a-z0-9-]+", "-", stack.lower()).strip("-")


def address_name(stack: str, location: str, version: str) -> str:
    """Return the name at Hetzner of the primary IP of ``version``, ipv4 or ipv6, in ``location``."""
    return f"{server_name(stack)}-{location}-{version}"


def first_address(network: str) -> str:
    """Return the address that a server has in its IPv6 ``network``, such as 2001:db8::1 in 2001:db8::/64."""
    return str(ipaddress.IPv6Network(network)[1])


class HetznerHost(pulumi.ComponentResource):
    """Server, firewall, addresses, reverse DNS and DNS records, and the engine on the server.

    The addresses are resources of their own, which outlive the server. A server
    that is replaced takes all Docker resources with it (`lives_on`).
    """

    provider: docker.Provider
    server: hcloud.Server
    ipv4: pulumi.Output[str]
    ipv6: pulumi.Input[str | None]
    goarch: str

    def __init__(self, name: str, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the server of ``settings.host`` and wait for what cloud-init makes of it."""
        super().__init__("derp-relays:components:HetznerHost", name, None, opts)
        host = settings.host
        assert isinstance(host, HetznerHostSettings)  # noqa: S101 - the program chooses by kind
        stack = pulumi.get_stack()
        self._name = server_name(stack)
        self._labels = {STACK_LABEL: self._name, **host.labels}
        self._token = pulumi.Config("hcloud").get_secret("token")
        self._endpoint = pulumi.Config("hcloud").get("endpoint")
        self._api = hcloud.Provider(
            name,
            token=self._token,
            endpoint=self._endpoint,
            opts=pulumi.ResourceOptions(parent=self),
        )
        ipv4, ipv6 = (self._address(version, host) for version in ("ipv4", "ipv6"))
        self.ipv4 = ipv4.ip_address
        ipv6_address = ipv6.ip_network.apply(first_address)
        self.ipv6 = ipv6_address if settings.network.ipv6 else None
        if host.reverse_dns:
            for version, resource, address in (("ipv4", ipv4, self.ipv4), ("ipv6", ipv6, ipv6_address)):
                hcloud.Rdns(
                    f"{name}-{version}",
                    primary_ip_id=resource.id.apply(int),
                    ip_address=address,
                    dns_ptr=settings.domain,
                    opts=self._options(),
                )
        self._records(
            settings, host, {"A": self.ipv4} | ({"AAAA": ipv6_address} if settings.network.ipv6 else {})
        )
        self.server = self._server(name, settings, host, ipv4, ipv6)
        self.goarch = host.architecture
        # The address is there before the server is.
        reachable = pulumi.Output.all(self.server.id, self.ipv4).apply(lambda made: str(made[1]))
        self.provider = engine_over_ssh(name, settings, reachable, self)
        self.register_outputs({"server": self.server.id, "ipv4": self.ipv4, "ipv6": self.ipv6})

    def _options(self, **options: object) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, provider=self._api, **options)  # type: ignore[arg-type]

    def _address(self, version: str, host: HetznerHostSettings) -> hcloud.PrimaryIp:
        return hcloud.PrimaryIp(
            version,
            name=address_name(pulumi.get_stack(), host.location, version),
            type=version,
            location=host.location,
            # A server that is replaced leaves it to the next one.
            auto_delete=False,
            delete_protection=host.delete_protection,
            labels=self._labels,
            # In another location it is made before the old one goes, which the server holds till then.
            opts=self._options(protect=host.delete_protection),
        )

    def _records(
        self, settings: Settings, host: HetznerHostSettings, addresses: Mapping[str, pulumi.Output[str]]
    ) -> None:
        if host.dns_zone is None:
            return
        # The settings refuse a relay outside of its zone.
        for type_, address in addresses.items():
            hcloud.ZoneRrset(
                f"{settings.domain} {type_}",
                zone=host.dns_zone,
                name=host.record_name(settings.domain),
                type=type_,
                ttl=_TTL,
                records=[hcloud.ZoneRrsetRecordArgs(value=address)],
                labels=self._labels,
                opts=self._options(delete_before_replace=True),
            )
        records = {name: host.record_name(name) for site in settings.sites for name in site.names}
        for full, record in records.items():
            if record is None:
                pulumi.log.warn(
                    f"{full} is not in the zone {host.dns_zone}: make its records yourself.", self
                )
        # An explicit one: the default provider has all of the stack's configuration in the state.
        provider = pulumi.ProviderResource(
            "pulumi-python", "sites", {}, opts=pulumi.ResourceOptions(parent=self)
        )
        SiteRecords(
            "sites",
            zone=host.dns_zone,
            names=[record for record in records.values() if record is not None],
            ipv4=addresses["A"],
            ipv6=addresses.get("AAAA"),
            ttl=_TTL,
            labels=self._labels,
            token=self._token,
            endpoint=self._endpoint,
            # One that is made first would take what it finds for its own, and go with the old one.
            opts=pulumi.ResourceOptions(parent=self, provider=provider, delete_before_replace=True),
        )

    def _server(
        self,
        name: str,
        settings: Settings,
        host: HetznerHostSettings,
        ipv4: hcloud.PrimaryIp,
        ipv6: hcloud.PrimaryIp,
    ) -> hcloud.Server:
        assert settings.ssh_host_key is not None  # noqa: S101 - the reader refuses a stack without
        assert settings.ssh_deploy_key is not None  # noqa: S101
        host_key = settings.ssh_host_key.get_secret_value()
        deploy_key = public_key(settings.ssh_deploy_key.get_secret_value())
        key = hcloud.SshKey(
            name,
            name=self._name,
            public_key=deploy_key,
            labels=self._labels,
            opts=self._options(delete_before_replace=True),
        )
        firewall = hcloud.Firewall(
            name,
            name=self._name,
            rules=firewall_rules(settings, host),
            labels=self._labels,
            opts=self._options(),
        )
        return hcloud.Server(
            name,
            name=self._name,
            server_type=host.server_type,
            location=host.location,
            image=host.image,
            ssh_keys=[key.id],
            # It holds the host key.
            user_data=pulumi.Output.secret(
                cloud_init(
                    host_private_key=host_key,
                    host_public_key=public_key(host_key),
                    deploy_public_keys=[deploy_key, *host.deploy_public_keys],
                    image=host.image,
                )
            ),
            firewall_ids=[firewall.id.apply(int)],
            public_nets=[
                hcloud.ServerPublicNetArgs(
                    ipv4_enabled=True,
                    ipv4=ipv4.id.apply(int),
                    ipv6_enabled=True,
                    ipv6=ipv6.id.apply(int),
                )
            ],
            placement_group_id=host.placement_group,
            labels=self._labels,
            backups=host.backups,
            delete_protection=host.delete_protection,
            # Hetzner wants both or neither.
            rebuild_protection=host.delete_protection,
            # So that a larger type can be gone back from.
            keep_disk=True,
            shutdown_before_deletion=True,
            # Its name and its addresses are taken until it is gone.
            opts=self._options(
                ignore_changes=KEPT_UNTIL_A_REBUILD,
                delete_before_replace=True,
                # Hetzner would refuse only after the provider has shut it down.
                protect=host.delete_protection,
            ),
        )


def firewall_rules(settings: Settings, host: HetznerHostSettings) -> list[hcloud.FirewallRuleArgs]:
    """Return what may come in: the relay and the sites from everywhere, SSH from ``host.ssh_from`` alone."""
    caddy = settings.caddy

    def rule(
        description: str, protocol: str, port: str | None = None, sources: list[str] | None = None
    ) -> hcloud.FirewallRuleArgs:
        return hcloud.FirewallRuleArgs(
            direction="in",
            protocol=protocol,
            port=port,
            source_ips=sources or _EVERYWHERE,
            description=description,
        )

    return [
        rule("HTTP", "tcp", str(caddy.http_port)),
        rule("HTTPS, DERP", "tcp", str(caddy.https_port)),
        rule("HTTP/3", "udp", str(caddy.https_port)),
        rule("STUN", "udp", str(settings.derper.stun_port)),
        # Clients ping relays where UDP is blocked; IPv6 finds its packet size by it.
        rule("ICMP", "icmp"),
        rule("SSH", "tcp", "22", host.ssh_from),
        *(
            rule(each.description or "", each.protocol, each.port, each.sources)
            for each in host.firewall_rules
        ),
    ]
