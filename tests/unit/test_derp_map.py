"""The DERP map has what clients need, and nothing that is not so."""

from __future__ import annotations

import json
from typing import Any

import json5
import pytest
import yaml
from click.testing import CliRunner

from relayctl.derp_map_file import nodes_of
from relayctl.map_command import check, map_command
from relayctl.prerequisites.errors import PrerequisiteError
from render import derp_map_region
from render.derp_map import (
    MapRegion,
    clashes,
    derp_map,
    headscale_text,
    hujson_text,
    json_text,
    without_port_80,
)
from settings import SettingsError, settings_from
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


def test_a_region_that_is_not_measured_says_so_in_the_stacks_output() -> None:
    told = region(region={"id": 901, "code": "nbg", "noMeasure": True})
    assert told["NoMeasureNoHome"] is True
    assert "NoMeasureNoHome" not in region()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"score": 0}, "region.score"),
        ({"score": -1}, "region.score"),
        ({"score": ".inf"}, "region.score"),
        ({"score": "fast"}, "region.score"),
        ({"noMeasure": "perhaps"}, "region.noMeasure"),
        ({"score": 0.5, "noMeasure": True}, "has a score, but noMeasure is true"),
    ],
)
def test_scores_that_clients_would_ignore_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        region(region={"id": 901, "code": "nbg", **values})
    assert told in str(caught.value)


def map_region(
    number: int = 901, code: str = "nbg", domain: str = "nbg.example.com", **more: Any
) -> MapRegion:
    told = region("203.0.113.7", "2001:db8::7", region={"id": number, "code": code}, domain=domain)
    return MapRegion(f"stacks/Pulumi.{code}-{number}.yaml", told, **more)


NBG = map_region(score=0.5, note="port 80 was proved")
ASH = map_region(902, "ash", "ash.example.com")


def test_a_map_has_its_regions_by_id_and_what_is_said_of_all() -> None:
    whole = derp_map([ASH, NBG], omit_default_regions=True)
    assert whole == {
        "HomeParams": {"RegionScore": {"901": 0.5}},
        "OmitDefaultRegions": True,
        "Regions": {"901": NBG.region, "902": ASH.region},
    }
    # what is not set is not said: a policy file's own stays
    assert derp_map([ASH]) == {"Regions": {"902": ASH.region}}


def test_a_claim_that_was_not_proved_is_taken_out_of_all_nodes() -> None:
    assert "CanPort80" in NBG.region["Nodes"][0]
    assert "CanPort80" not in without_port_80(NBG.region)["Nodes"][0]
    assert "CanPort80" in NBG.region["Nodes"][0]


def test_hujson_is_the_same_map_with_comments() -> None:
    text = hujson_text([ASH, NBG], omit_default_regions=True)
    assert json5.loads(text) == {"derpMap": derp_map([ASH, NBG], omit_default_regions=True)}
    lines = text.splitlines()
    comment = lines.index("      // stacks/Pulumi.nbg-901.yaml; port 80 was proved")
    assert lines[comment + 1].strip() == '"901": {'


def test_headscale_gets_its_own_keys_and_the_regions_alone() -> None:
    text = headscale_text([ASH, NBG])
    assert "  # stacks/Pulumi.nbg-901.yaml; port 80 was proved\n  901:\n" in text
    assert yaml.safe_load(text) == {
        "regions": {
            number: {
                "regionid": number,
                "regioncode": code,
                "regionname": code,
                "nodes": [
                    {
                        "name": f"{number}a",
                        "regionid": number,
                        "hostname": f"{code}.example.com",
                        "ipv4": "203.0.113.7",
                        "ipv6": "2001:db8::7",
                        "canport80": True,
                    }
                ],
            }
            for number, code in ((901, "nbg"), (902, "ash"))
        }
    }


def test_the_probe_reads_every_form_alike() -> None:
    forms = [
        json_text(derp_map([NBG, ASH])),
        json_text({"derpMap": derp_map([NBG, ASH])}),
        hujson_text([NBG, ASH]),
        headscale_text([NBG, ASH]),
    ]
    first, *others = [nodes_of(text, "map") for text in forms]
    assert [node.name for node in first] == ["901a", "902a"]
    assert all(nodes == first for nodes in others)


def test_a_name_cannot_end_its_comment() -> None:
    odd = MapRegion("stacks/Pulumi.x.yaml", {**ASH.region, "RegionName": "a\n*/ 903: {}"}, note="a\nb")
    assert json5.loads(hujson_text([odd]))["derpMap"]["Regions"] == {"902": odd.region}
    assert list(yaml.safe_load(headscale_text([odd]))["regions"]) == [902]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (map_region(901, "other", "other.example.com"), ["region.id 901", "the node name 901a"]),
        (map_region(903, "nbg", "other.example.com"), ["region.code nbg"]),
        (map_region(903, "other", "nbg.example.com"), ["domain nbg.example.com"]),
        (ASH, []),
    ],
)
def test_what_two_regions_have_is_told_with_both_files(other: MapRegion, told: list[str]) -> None:
    both = f"{NBG.where} and {other.where} both have "
    assert clashes([NBG, other]) == [both + what for what in told]
    if told:
        with pytest.raises(PrerequisiteError, match=r"Pulumi\.nbg-901\.yaml and stacks/Pulumi"):
            check([NBG, other])


def test_a_code_that_no_region_has_is_told() -> None:
    check([NBG, ASH], ["ash"])
    with pytest.raises(PrerequisiteError, match="no region with the code sin") as caught:
        check([NBG, ASH], ["ash", "sin"])
    assert "nbg, ash" in caught.value.mend


@pytest.mark.parametrize("score", ["nbg", "nbg=", "nbg=0", "nbg=-1", "nbg=nan", "nbg=inf", "nbg=1001"])
def test_scores_are_checked_before_anything_is_read(score: str) -> None:
    done = CliRunner().invoke(map_command, ["--score", score])
    assert done.exit_code == 2
    assert "give CODE=NUMBER" in done.output


def test_json_is_for_people_too() -> None:
    text = json_text(derp_map([MapRegion("x", {**ASH.region, "RegionName": "Nürnberg"})]))
    assert "Nürnberg" in text
    assert json.loads(text)["Regions"]["902"]["RegionName"] == "Nürnberg"
