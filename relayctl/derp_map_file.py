"""Reads a DERP map as its users have it: JSON, HuJSON, headscale's YAML, or a tailnet's whole policy file."""

from __future__ import annotations

import collections
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import json5
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from probe.relay import HTTPS_PORT, STUN_PORT
from relayctl.prerequisites.errors import PrerequisiteError

_HIGHEST_PORT = 65535
# tailcfg/derpmap.go of tailscale, DERPNode: "To disable STUN on this node, use -1."
_NO_STUN = -1


class DerpMapError(PrerequisiteError):
    """A file is no DERP map, or one that clients would not take as it is meant."""


@dataclass(frozen=True)
class MapNode:
    """A node of a DERP map, as clients take it (tailscale ``tailcfg/derpmap.go``, ``DERPNode``).

    ``ipv4`` and ``ipv6`` are literal addresses, empty where clients ask DNS, and
    ``None`` where the map says that the family is not used. ``https_port`` is
    ``None`` for a node that has STUN alone, ``stun_port`` for one without STUN.
    ``verified`` is whether clients verify its certificate.
    """

    region: str
    name: str
    domain: str
    ipv4: str | None
    ipv6: str | None
    https_port: int | None
    stun_port: int | None
    can_port_80: bool
    verified: bool


def read_derp_map(path: Path) -> list[MapNode]:
    """Return the nodes of all regions of the DERP map in ``path``.

    Raises ``DerpMapError`` with all that is wrong in it, and ``PrerequisiteError``
    if it cannot be read.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise PrerequisiteError(
            f"{path} cannot be read: {error.strerror}", "name a file with a DERP map"
        ) from error
    except UnicodeDecodeError as error:
        raise DerpMapError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    return nodes_of(text, str(path))


class _Node(BaseModel):
    """tailscale ``tailcfg/derpmap.go``, ``DERPNode``, with keys as headscale writes them."""

    model_config = ConfigDict(strict=True)

    name: str = Field(min_length=1)
    regionid: int
    hostname: str = Field(min_length=1)
    certname: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stunport: int = Field(default=0, ge=_NO_STUN, le=_HIGHEST_PORT)
    stunonly: bool = False
    derpport: int = Field(default=0, ge=0, le=_HIGHEST_PORT)
    insecurefortests: bool = False
    canport80: bool = False


class _Region(BaseModel):
    """tailscale ``tailcfg/derpmap.go``, ``DERPRegion``."""

    model_config = ConfigDict(strict=True)

    regionid: int
    regioncode: str = ""
    nodes: list[_Node]


class _DerpMap(BaseModel):
    """tailscale ``tailcfg/derpmap.go``, ``DERPMap``; a policy file removes a region with ``null``."""

    regions: dict[int, _Region | None]


def nodes_of(text: str, where: str) -> list[MapNode]:
    """Return the nodes of the DERP map ``text``; errors call it ``where``. Raises as `read_derp_map`."""
    content = _lower_keys(_parsed(text, where))
    if isinstance(content, Mapping) and "regions" not in content:
        content = content.get("derpmap")
    if not isinstance(content, Mapping) or "regions" not in content:
        raise DerpMapError(
            f"{where} has no DERP map: neither Regions nor derpMap.Regions stands in it",
            "give what `relayctl map` prints, headscale's file, or the tailnet's policy file"
            " (docs/derp-map.md)",
        )
    try:
        regions = {
            key: region
            for key, region in _DerpMap.model_validate(content).regions.items()
            if region is not None
        }
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    else:
        problems = list(_problems_of(regions))
    if problems:
        raise DerpMapError(
            "\n  ".join([f"{where} is a DERP map that clients would not take as it is meant:", *problems]),
            "mend these; tailscale's tailcfg/derpmap.go says what each field is",
        )
    return [
        _map_node(region.regioncode or str(key), node)
        for key, region in regions.items()
        for node in region.nodes
    ]


def _problems_of(regions: Mapping[int, _Region]) -> Iterator[str]:
    """Find what the types do not tell."""
    nodes = [(key, node) for key, region in regions.items() for node in region.nodes]
    if not nodes:
        yield "no region has a node"
    for key, region in regions.items():
        if region.regionid != key:
            yield f"regions.{key}: has RegionID {region.regionid}"
    for name, count in collections.Counter(node.name for _, node in nodes).items():
        if count > 1:
            yield f"the node name {name} is given {count} times"
    for key, node in nodes:
        at = f"regions.{key}, node {node.name}"
        if node.regionid != key:
            yield f"{at}: has RegionID {node.regionid}"
        if _address(node.ipv4, 4) is None and _address(node.ipv6, 6) is None:
            yield f"{at}: has neither IPv4 nor IPv6, so that no client can reach it"
        if node.certname not in ("", node.hostname):
            yield f"{at}: has a CertName, by which the probe cannot verify; take the node out of the file"


def _parsed(text: str, where: str) -> Any:
    """Parse JSON, HuJSON, which JSON5 has all of, or YAML."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    # A policy file begins with a brace or a comment of its own, which YAML does not have.
    if text.lstrip().startswith(("{", "//", "/*")):
        try:
            return json5.loads(text)
        except ValueError as error:
            raise DerpMapError(f"{where} is no HuJSON: {error}", "mend it there") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f", line {mark.line + 1}"
        raise DerpMapError(
            f"{where}{at} is no YAML: {getattr(error, 'problem', error)}", "mend that line"
        ) from error


def _lower_keys(value: Any) -> Any:
    """Return it with keys as headscale writes them; Go's JSON does not tell their case apart either."""
    if isinstance(value, Mapping):
        return {str(key).lower(): _lower_keys(each) for key, each in value.items()}
    return [_lower_keys(each) for each in value] if isinstance(value, list) else value


def _map_node(region: str, node: _Node) -> MapNode:
    return MapNode(
        region=region,
        name=node.name,
        domain=node.hostname,
        ipv4=_address(node.ipv4, 4),
        ipv6=_address(node.ipv6, 6),
        https_port=None if node.stunonly else node.derpport or HTTPS_PORT,
        stun_port=None if node.stunport == _NO_STUN else node.stunport or STUN_PORT,
        can_port_80=node.canport80,
        verified=not node.insecurefortests,
    )


def _address(text: str, version: int) -> str | None:
    """Return a literal address, "" where DNS is asked; ``None`` for all else, which clients do not use."""
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(address) if address.version == version else None
