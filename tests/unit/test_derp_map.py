"""The DERP map region has what clients need, and nothing that is not so."""

from __future__ import annotations

from typing import Any

from render import derp_map_region
from settings import settings_from
from tests.unit.declared import MINIMAL


def region(ipv4: str | None = None, ipv6: str | None = None, **values: Any) -> dict[str, Any]:
    return derp_map_region(settings_from({**MINIMAL, **values}, "stacks/Pulumi.test.yaml"), ipv4, ipv6)


def test_a_relay_on_its_own_ports_needs_no_ports_in_the_map() -> None:
    assert region("203.0.113.7", "2001:db8::7") == {
        "RegionID": 901,
        "RegionCode": "nbg",
        "RegionName": "Nuremberg",
        "Nodes": [
            {
                "Name": "901a",
                "RegionID": 901,
                "HostName": "derp.example.com",
                "IPv4": "203.0.113.7",
                "IPv6": "2001:db8::7",
                "CanPort80": True,
            }
        ],
    }


def test_unknown_addresses_are_left_to_dns_and_never_said_to_be_none() -> None:
    assert {"IPv4", "IPv6"}.isdisjoint(region()["Nodes"][0])


def test_other_ports_are_told_and_port_80_is_not_claimed() -> None:
    node = region(
        caddy={"httpPort": 8080, "httpsPort": 8443},
        derper={"stunPort": 3479},
        certificate={"source": "internal"},
    )["Nodes"][0]
    assert (node["DERPPort"], node["STUNPort"]) == (8443, 3479)
    assert "CanPort80" not in node


def test_port_80_is_not_claimed_where_it_only_redirects() -> None:
    assert "CanPort80" not in region(caddy={"answerByAddress": False})["Nodes"][0]


def test_coordinates_are_told_where_they_are_known() -> None:
    told = region(region={"id": 901, "code": "nbg", "latitude": 49.45, "longitude": 11.08})
    assert (told["Latitude"], told["Longitude"]) == (49.45, 11.08)
