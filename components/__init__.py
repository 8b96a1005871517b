"""The parts of a relay, each a component that only declares."""

from collections.abc import Callable, Mapping

from components.caddy import CaddyProxy
from components.caddy_configuration import CaddyConfiguration
from components.delivery import Delivery
from components.derper import DerperRelay
from components.hetzner_host import HetznerHost
from components.host import Host
from components.local_host import LocalHost
from components.network import RelayNetwork
from components.ssh_host import SshHost
from settings import Settings

HOSTS: Mapping[str, Callable[[str, Settings], Host]] = {
    "local": LocalHost,
    "ssh": SshHost,
    "hetzner": HetznerHost,
}
"""The component of each ``host.kind``."""

__all__ = [
    "HOSTS",
    "CaddyConfiguration",
    "CaddyProxy",
    "Delivery",
    "DerperRelay",
    "HetznerHost",
    "Host",
    "LocalHost",
    "RelayNetwork",
    "SshHost",
]
