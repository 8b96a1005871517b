"""The DERP map that clients learn relays from: regions, whole maps, and their texts (tailcfg.DERPMap)."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from settings import Settings


@dataclass(frozen=True)
class MapRegion:
    """A region of a map, as `derp_map_region` returns it, and where it comes from.

    ``where`` is the stack's file, for errors and comments. ``score`` is what
    clients multiply its latency by, ``None`` for 1. ``note`` says in a comment
    what was proved of it, and when.
    """

    where: str
    region: Mapping[str, Any]
    score: float | None = None
    note: str = ""


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
    if region.no_measure:
        result["NoMeasureNoHome"] = True
    return result | {"Nodes": [node]}


def without_port_80(region: Mapping[str, Any]) -> dict[str, Any]:
    """Return the region without the claim that its nodes answer on port 80."""
    nodes = [{key: value for key, value in node.items() if key != "CanPort80"} for node in region["Nodes"]]
    return {**region, "Nodes": nodes}


def clashes(regions: Sequence[MapRegion]) -> list[str]:
    """Return what two regions have and one alone may, a sentence each that names both files."""
    unique: Sequence[tuple[str, Callable[[MapRegion], list[Any]]]] = (
        ("region.id", lambda each: [each.region["RegionID"]]),
        ("region.code", lambda each: [each.region["RegionCode"]]),
        ("the node name", lambda each: [node["Name"] for node in each.region["Nodes"]]),
        ("domain", lambda each: [node["HostName"] for node in each.region["Nodes"]]),
    )
    return [
        f"{one.where} and {other.where} both have {what} {value}"
        for what, values in unique
        for one, other in itertools.combinations(regions, 2)
        for value in values(one)
        if value in values(other)
    ]


def derp_map(regions: Sequence[MapRegion], *, omit_default_regions: bool = False) -> dict[str, Any]:
    """Return the whole map of ``regions``, by their ids, as clients and policy files have it.

    With ``omit_default_regions`` clients do not use Tailscale's own.
    """
    ordered = sorted(regions, key=lambda each: each.region["RegionID"])
    made: dict[str, Any] = {}
    scores = {str(each.region["RegionID"]): each.score for each in ordered if each.score is not None}
    if scores:
        made["HomeParams"] = {"RegionScore": scores}
    if omit_default_regions:
        made["OmitDefaultRegions"] = True
    return made | {"Regions": {str(each.region["RegionID"]): dict(each.region) for each in ordered}}


def json_text(content: Mapping[str, Any]) -> str:
    """Return JSON for people, too."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def hujson_text(regions: Sequence[MapRegion], *, omit_default_regions: bool = False) -> str:
    """Return the ``derpMap`` of a policy file, with a comment before each region on where it comes from."""
    whole = derp_map(regions, omit_default_regions=omit_default_regions)
    comments = {str(each.region["RegionID"]): _comment(each) for each in regions}
    entries = []
    for key, region in whole.pop("Regions").items():
        text = f"{json.dumps(key)}: {json.dumps(region, indent=2, ensure_ascii=False)},"
        entries.append(textwrap.indent(f"// {comments[key]}\n{text}", " " * 6))
    rest = [f'    "{key}": {json.dumps(value)},' for key, value in whole.items()]
    lines = ["{", '  "derpMap": {', *rest, '    "Regions": {', *entries, "    },", "  },", "}"]
    return "\n".join(lines) + "\n"


def headscale_text(regions: Sequence[MapRegion]) -> str:
    """Return the file that headscale's ``derp.paths`` names, with a comment before each region.

    It takes keys in small letters, and of a map the regions alone: what is said of
    all regions would be dropped (hscontrol/derp/derp.go of headscale v0.26,
    mergeDERPMaps).
    """
    lines = ["regions:"]
    for each in sorted(regions, key=lambda each: each.region["RegionID"]):
        region = {each.region["RegionID"]: dict(_in_small_letters(each.region))}
        # A node a line: leaves are in braces.
        text = yaml.safe_dump(
            region, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000
        )
        lines.append(textwrap.indent(f"# {_comment(each)}\n{text}", "  ").rstrip())
    return "\n".join(lines) + "\n"


def _comment(each: MapRegion) -> str:
    # A name from a stack's file may have what ends a line.
    return " ".join("; ".join(part for part in (each.where, each.note) if part).split())


def _in_small_letters(region: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in region.items():
        if isinstance(value, list):
            yield key.lower(), [dict(_in_small_letters(node)) for node in value]
        else:
            yield key.lower(), value
