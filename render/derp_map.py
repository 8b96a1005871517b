"""The DERP map region that clients learn the relay from (tailcfg.DERPRegion)."""

from __future__ import annotations

from typing import Any

from settings import Settings


def derp_map_region(settings: Settings, ipv4: str | None, ipv6: str | None) -> dict[str, Any]:
    """Return the region as Tailscale's policy file has it under ``derpMap.Regions``.

    ``ipv4`` and ``ipv6`` are the host's literal addresses; a missing one is
    left out, and clients then ask DNS for it. Ports stand only where they are
    not DERP's own (443 and 3478). ``CanPort80`` is said only where port 80 is
    the relay's and answers by address.
    """
    region = settings.region
    node: dict[str, Any] = {
        "Name": f"{region.id}a",
        "RegionID": region.id,
        "HostName": settings.domain,
    }
    if ipv4:
        node["IPv4"] = ipv4
    if ipv6:
        node["IPv6"] = ipv6
    if settings.caddy.https_port != 443:  # noqa: PLR2004 - tailcfg.DERPNode.DERPPort: 0 means 443
        node["DERPPort"] = settings.caddy.https_port
    if settings.derper.stun_port != 3478:  # noqa: PLR2004 - tailcfg.DERPNode.STUNPort: 0 means 3478
        node["STUNPort"] = settings.derper.stun_port
    if settings.caddy.answer_by_address and settings.caddy.http_port == 80:  # noqa: PLR2004 - as it is named
        node["CanPort80"] = True
    result: dict[str, Any] = {
        "RegionID": region.id,
        "RegionCode": region.code,
        "RegionName": region.title,
    }
    if region.latitude is not None:
        result |= {"Latitude": region.latitude, "Longitude": region.longitude}
    return result | {"Nodes": [node]}
