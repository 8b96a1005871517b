"""The parts of a relay, each a component that only declares."""

from components.caddy import CaddyProxy
from components.derper import DerperRelay
from components.host import LocalHost
from components.network import RelayNetwork

__all__ = ["CaddyProxy", "DerperRelay", "LocalHost", "RelayNetwork"]
