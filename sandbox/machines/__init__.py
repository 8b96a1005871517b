"""Servers that boot on this machine: what a cloud's API needs of them, and what it may not know.

The Hetzner Cloud stand-in decides which servers there are and what they are
called; a ``Machines`` makes them answer. ``NamespaceMachines`` in
``sandbox.machines.namespaces`` is the one that needs nothing but Linux.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class MachineError(Exception):
    """A machine could not be made, started or changed; ``what`` says why, for a person to read."""

    def __init__(self, what: str) -> None:
        """Keep the reason; it is also the error's text."""
        super().__init__(what)
        self.what = what


@dataclass(frozen=True)
class MachineSpec:
    """A server as it is ordered.

    ``server_id`` is positive and no other machine's. ``name`` becomes its host
    name. ``ipv4`` is an address of the machines' IPv4 network and
    ``ipv6_network`` a /64, such as ``2001:db8:7:1::/64``, of their IPv6 network,
    in which the server is ``::1``; either may be ``None``. ``user_data`` is what
    cloud-init reads, empty for none. ``authorized_keys`` are lines as OpenSSH
    has them, for root. ``image`` is the system's name, such as ``debian-12``:
    it is told to the server, the system is always this machine's own.
    """

    server_id: int
    name: str
    ipv4: str | None
    ipv6_network: str | None
    user_data: str
    authorized_keys: tuple[str, ...]
    image: str
    memory_mb: int


@dataclass(frozen=True)
class FirewallRule:
    """What is let in: one rule of direction ``in``, as Hetzner's API has them.

    ``protocol`` is ``tcp``, ``udp``, ``icmp`` (over IPv6 too), ``esp`` or
    ``gre``. ``port`` is ``"80"``, ``"80-85"`` or ``"any"``, and ``None`` where the
    protocol has no ports. ``sources`` are networks of both families, such as
    ``0.0.0.0/0`` and ``::/0``.
    """

    protocol: str
    port: str | None
    sources: tuple[str, ...]


class Machines(Protocol):
    """Makes servers, and takes them down. Every method raises ``MachineError`` where it cannot.

    ``ipv4_network``, such as ``198.18.7.0/24``, and ``ipv6_network``, such as
    ``2001:db8:7::/48``, are what addresses are to be given from; the first nine
    IPv4 addresses and the first /64 are the network's own.
    """

    @property
    def ipv4_network(self) -> str:
        """The network that the servers' IPv4 addresses are of."""

    @property
    def ipv6_network(self) -> str:
        """The network that the servers' /64 networks are of."""

    def create(self, spec: MachineSpec) -> None:
        """Make the server's disk and network and boot it; return when its SSH server answers.

        The firewall that ``set_firewall`` was given before for this server is in
        force before the server has a network. cloud-init may still run.
        """

    def power_on(self, server_id: int) -> None:
        """Boot a server that is off; return when its SSH server answers. Nothing happens if it is on."""

    def power_off(self, server_id: int) -> None:
        """End everything that runs in the server; its disk stays. Nothing happens if it is off."""

    def delete(self, server_id: int) -> None:
        """Remove the server and its disk. Nothing happens if there is none."""

    def set_firewall(self, server_id: int, rules: Sequence[FirewallRule] | None) -> None:
        """Let in what ``rules`` say and nothing else; ``None`` is no firewall: everything comes in.

        May be called before ``create``, so that a server never runs without it.
        """

    def close(self) -> None:
        """Remove every server and the network they are on."""
