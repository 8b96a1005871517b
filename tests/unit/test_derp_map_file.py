"""A DERP map is read as clients take it, in every form that its users keep it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from relayctl.derp_map_file import DerpMapError, MapNode, nodes_of, read_derp_map
from relayctl.prerequisites.errors import PrerequisiteError

NODE = {"Name": "900a", "RegionID": 900, "HostName": "derp.example.com"}


def derp_map(*nodes: dict[str, Any], **region: Any) -> dict[str, Any]:
    return {"Regions": {"900": {"RegionID": 900, "RegionCode": "home", "Nodes": list(nodes), **region}}}


def read(**fields: Any) -> MapNode:
    (node,) = nodes_of(json.dumps(derp_map({**NODE, **fields})), "map.json")
    return node


EXPECTED = MapNode(
    region="home",
    name="900a",
    domain="derp.example.com",
    ipv4="203.0.113.7",
    ipv6="2001:db8::7",
    https_port=443,
    stun_port=3478,
    can_port_80=True,
    verified=True,
)
GIVEN = {**NODE, "IPv4": "203.0.113.7", "IPv6": "2001:db8::7", "CanPort80": True}
POLICY = """\
// the tailnet's policy
{
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}], /* open */
    "derpMap": {
        "OmitDefaultRegions": true,
        "Regions": {
            "1": null,
            "900": %s,
        },
    },
}
"""
HEADSCALE = """\
# from docs/derp-map.md
regions:
  900:
    regionid: 900
    regioncode: home
    nodes:
      - {name: 900a, regionid: 900, hostname: derp.example.com, ipv4: 203.0.113.7, ipv6: "2001:db8::7",
         canport80: true}
"""


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(derp_map(GIVEN)),
        json.dumps({"derpMap": derp_map(GIVEN)}),
        POLICY % json.dumps(derp_map(GIVEN)["Regions"]["900"]),
        HEADSCALE,
    ],
    ids=["json", "policy", "hujson", "headscale"],
)
def test_the_same_map_in_every_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "derp-map"
    path.write_text(text)
    assert read_derp_map(path) == [EXPECTED]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"ipv4": "", "ipv6": "", "can_port_80": False}),
        ({"IPv4": "none", "IPv6": "2001:DB8::7"}, {"ipv4": None, "ipv6": "2001:db8::7"}),
        # what is no address of its family is not used, says tailcfg/derpmap.go
        ({"IPv4": "2001:db8::7"}, {"ipv4": None, "ipv6": ""}),
        ({"DERPPort": 8443, "STUNPort": 3479}, {"https_port": 8443, "stun_port": 3479}),
        ({"DERPPort": 0, "STUNPort": 0}, {"https_port": 443, "stun_port": 3478}),
        ({"STUNPort": -1}, {"stun_port": None, "https_port": 443}),
        ({"STUNOnly": True}, {"stun_port": 3478, "https_port": None}),
        ({"InsecureForTests": True}, {"verified": False}),
        ({"CertName": "derp.example.com"}, {"verified": True}),
    ],
)
def test_fields_mean_what_clients_take_them_for(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    node = read(**fields)
    assert {name: getattr(node, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "map has no DERP map"),
        ('{"acls": []}', "map has no DERP map"),
        ("", "map has no DERP map"),
        ('{"Regions": {"900": ', "map is no HuJSON"),
        ("regions: {900: [}", "map, line 1 is no YAML"),
        ('{"Regions": {}}', "no region has a node"),
        ('{"Regions": {"home": {}}}', "regions.home"),
        (json.dumps(derp_map(NODE, RegionID=901)), "regions.900: has RegionID 901"),
        (json.dumps(derp_map({**NODE, "RegionID": 901})), "regions.900, node 900a: has RegionID 901"),
        (json.dumps(derp_map(NODE, NODE)), "the node name 900a is given 2 times"),
        (json.dumps(derp_map({**NODE, "HostName": ""})), "regions.900.nodes.0.hostname"),
        (json.dumps(derp_map({**NODE, "DERPPort": "443"})), "regions.900.nodes.0.derpport"),
        (json.dumps(derp_map({**NODE, "STUNPort": 65536})), "regions.900.nodes.0.stunport"),
        (json.dumps(derp_map({**NODE, "STUNOnly": 1})), "regions.900.nodes.0.stunonly"),
        (json.dumps(derp_map({**NODE, "IPv4": "none", "IPv6": "none"})), "has neither IPv4 nor IPv6"),
        (json.dumps(derp_map({**NODE, "CertName": "sha256-raw:00"})), "has a CertName"),
    ],
)
def test_a_bad_map_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(DerpMapError) as caught:
        nodes_of(text, "map")
    assert told in caught.value.what
    assert caught.value.mend


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(DerpMapError) as caught:
        nodes_of(json.dumps(derp_map({**NODE, "RegionID": 1}, {**NODE, "RegionID": 2}, RegionID=3)), "map")
    assert caught.value.what.count("\n") == 4


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot be read: No such file"):
        read_derp_map(tmp_path / "missing")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(DerpMapError, match="is not UTF-8"):
        read_derp_map(tmp_path / "latin")
