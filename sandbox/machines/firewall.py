"""A server's firewall as nftables enforces it, from the rules that the API was given.

Hetzner's firewall stands in front of the server and is stateful: what the
server asked for is let in, all else needs a rule, and a firewall without
inbound rules lets nothing in (docs.hetzner.com/cloud/firewalls/overview).
Here it is the first chain in the server that sees a packet after connection
tracking, and before Docker rewrites the address of a published port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from sandbox.machines import FirewallRule, MachineError

TABLE = "cloud_firewall"
_WITH_PORTS = ("tcp", "udp")
_WITHOUT_PORTS = {"icmp": ("icmp", "icmpv6"), "esp": ("esp", "esp"), "gre": ("gre", "gre")}
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_LAST_PORT = 65535
# RFC 4861: without these an address is not found on the link; Hetzner's firewall does not see them
_NEIGHBOUR_DISCOVERY = "nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert"


def ruleset(interface: str, rules: Sequence[FirewallRule] | None) -> str:
    """Return what ``nft -f -`` reads to put ``rules`` in force at once, in place of those before.

    ``rules`` are of all firewalls that are applied to the server together;
    ``None`` is no firewall, where everything comes in. Only what comes in by
    ``interface`` is judged. Raises ``MachineError`` for a rule that is none.
    """
    # nft deletes no table that is not there, so it is added first
    start = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    if rules is None:
        return start
    lines = [line for rule in rules for line in _matches(rule)]
    body = "".join(f"    {line} accept\n" for line in dict.fromkeys(lines))
    return (
        f"{start}table inet {TABLE} {{\n"
        "  chain inbound {\n"
        "    type filter hook prerouting priority mangle; policy accept;\n"
        f'    iifname != "{interface}" accept\n'
        "    ct state established,related accept\n"
        "    ct state invalid drop\n"
        f"    icmpv6 type {{ {_NEIGHBOUR_DISCOVERY} }} accept\n"
        f"{body}"
        "    drop\n"
        "  }\n"
        "}\n"
    )


def _matches(rule: FirewallRule) -> list[str]:
    """Return the rule's matches, one for each family of its sources."""
    networks = [_network(source) for source in rule.sources]
    # nft refuses a set whose networks overlap
    ipv4 = list(ipaddress.collapse_addresses(item for item in networks if isinstance(item, IPv4Network)))
    ipv6 = list(ipaddress.collapse_addresses(item for item in networks if isinstance(item, IPv6Network)))
    matches = []
    if ipv4:
        everywhere = ipv4[0].prefixlen == 0
        source = "meta nfproto ipv4" if everywhere else f"ip saddr {{ {', '.join(map(str, ipv4))} }}"
        matches.append(f"{source} {_protocol(rule, of_ipv6=False)}")
    if ipv6:
        everywhere = ipv6[0].prefixlen == 0
        source = "meta nfproto ipv6" if everywhere else f"ip6 saddr {{ {', '.join(map(str, ipv6))} }}"
        matches.append(f"{source} {_protocol(rule, of_ipv6=True)}")
    return matches


def _protocol(rule: FirewallRule, *, of_ipv6: bool) -> str:
    if rule.protocol in _WITHOUT_PORTS:
        if rule.port is not None:
            raise MachineError(f"a firewall rule for {rule.protocol} has no port, but {rule.port!r} is given")
        return f"meta l4proto {_WITHOUT_PORTS[rule.protocol][of_ipv6]}"
    if rule.protocol not in _WITH_PORTS:
        raise MachineError(f"a firewall rule has the protocol {rule.protocol!r}, which there is not")
    if rule.port == "any":
        return f"meta l4proto {rule.protocol}"
    match = _PORTS.fullmatch(rule.port or "")
    if match is None:
        raise MachineError(f'{rule.port!r} is no port: give "80", "80-85" or "any"')
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= _LAST_PORT:
        raise MachineError(f"{rule.port!r} is no port: ports are from 1 to {_LAST_PORT}, the lower one first")
    return f"{rule.protocol} dport {first}" + (f"-{last}" if last > first else "")


def _network(source: str) -> IPv4Network | IPv6Network:
    try:
        return ipaddress.ip_network(source)
    except ValueError as error:
        raise MachineError(f"{source!r} is no source of a firewall rule: {error}") from error
