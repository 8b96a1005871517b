"""Judges whether the address in a STUN answer is really the asker's.

Clients offer the address they learn by STUN to their peers for direct
connections. Docker can hide it: where a published UDP port goes through its
userland proxy, or where a bridge network has no IPv6, the container sees the
bridge's gateway instead of the client (tailscale/tailscale#17565).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from probe.finding import Status

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Docker's default address pools for bridge networks: moby daemon/libnetwork/ipamutils/utils.go.
_DOCKER_POOLS = (ipaddress.ip_network("172.16.0.0/12"), ipaddress.ip_network("192.168.0.0/16"))

# The private IPv4 ranges, RFC 1918; the shared one of carriers, RFC 6598; link-local, RFC 3927.
_IPV4_RANGES = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
    )
)
_SITE_PREFIX = 48  # one site's unique local addresses share these bits: RFC 4193, section 3.1
_LINK_PREFIXES = {4: 24, 6: 64}  # what hosts on one link usually share

_MASKED = (
    "Clients learn a wrong address for themselves and offer it to their peers: direct connections fail"
    " and their traffic stays on the relay."
)
_MEND_IPV4 = (
    "Publish the STUN port without Docker's userland proxy masking the sender: look for the port's DNAT rule"
    " in the host's firewall, restart Docker if something flushed its rules, or give derper the host's"
    " network. Put no load balancer or proxy before it. If this machine's network rewrites public addresses,"
    " name the expected one."
)
_MEND_IPV6 = (
    "Give the container's Docker network IPv6 (ip6tables on; network recreated with IPv6 and a subnet), or"
    " publish STUN on IPv4 only and leave the IPv6 address out of the DERP map."
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A status, what was seen, what it means and how to mend it."""

    status: Status
    seen: str
    meaning: str = ""
    mend: str = ""


def judge(asked: Address, local: Address, mapped: Address, expected: Collection[Address] = ()) -> Judgement:
    """Judge the mapped address of a STUN answer.

    ``asked`` is the relay's literal address, ``local`` the address our kernel
    chose for the way there, ``mapped`` what the relay saw, ``expected`` other
    addresses that are known to be ours, such as that of our NAT.

    A difference is a failure unless a NAT on our side may explain it: then
    either the mapped address is public, or it is in the same private range as
    the relay and cannot be judged. From the relay's own machine Docker's
    loopback handling may answer with a bridge address although everybody else
    gets the right one; that cannot be judged either.
    """
    if mapped == local or mapped in expected:
        return Judgement(Status.OK, f"our own address {mapped} came back")

    seen = f"asked {asked} from {local}, the relay saw {_named(mapped)}"
    masked = Judgement(Status.FAILED, seen, _MASKED, _MEND_IPV6 if asked.version == 6 else _MEND_IPV4)  # noqa: PLR2004
    if asked.is_loopback or (asked == local and mapped.version == asked.version):
        return Judgement(
            Status.SKIPPED,
            f"{seen}; asked from the same machine: the address cannot be judged from here",
            mend="Ask again from another machine.",
        )
    if mapped.version != asked.version or mapped.is_loopback:
        return masked
    of_family = [str(address) for address in expected if address.version == mapped.version]
    if of_family:
        return Judgement(
            Status.FAILED,
            f"{seen}; expected {', '.join(of_family)}",
            _MASKED,
            "If the address is one of your NAT's, name it as expected too; else something before derper"
            " rewrites the sender: " + masked.mend,
        )
    by_nat = _explained_by_nat(asked, local, mapped)
    if by_nat is None:
        return Judgement(
            Status.SKIPPED,
            f"{seen}; both are in one private range, so a NAT between us may explain it",
            mend="Ask from a machine with no NAT before the relay, or name the expected address.",
        )
    return Judgement(Status.OK, f"{seen}: a NAT on our side") if by_nat else masked


def _explained_by_nat(asked: Address, local: Address, mapped: Address) -> bool | None:
    """Tell whether a NAT on our side makes ``mapped`` of ``local``; ``None`` if it cannot be known.

    A NAT has a public side for public relays, none is needed from a public
    address, and none is passed on the way to a relay on the same link.
    """
    if local.is_global or _same_link(asked, local):
        return False
    if mapped.is_global:
        return True
    return None if not asked.is_global and _same_range(asked, mapped) else False


def _named(address: Address) -> str:
    """Say what a private address looks like to be."""
    if address.is_global:
        return str(address)
    if address.version == 4:  # noqa: PLR2004
        gateway = any(address in pool for pool in _DOCKER_POOLS) and int(address) & 0xFF == 1
    else:
        gateway = address.is_private and int(address) & 0xFFFFFFFFFFFFFFFF == 1
    kind = (
        "a private address; it looks like the gateway of a Docker bridge network" if gateway else "not public"
    )
    return f"{address} ({kind})"


def _same_link(one: Address, other: Address) -> bool:
    prefix = _LINK_PREFIXES[one.version]
    return other in ipaddress.ip_network((one, prefix), strict=False)


def _same_range(one: Address, other: Address) -> bool:
    if one.version == 4:  # noqa: PLR2004
        return any(one in network and other in network for network in _IPV4_RANGES)
    return other in ipaddress.ip_network((one, _SITE_PREFIX), strict=False)
