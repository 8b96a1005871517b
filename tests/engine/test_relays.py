"""Which relays there are, as Pulumi's state says, without a passphrase: nothing of it runs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from render import derp_map_region
from settings import PROJECT, settings_from
from tests.checkout import Checkout

_FIRST = "near"


def values(number: int, code: str, **more: Any) -> dict[str, Any]:
    return {
        "domain": f"{code}.invalid",
        "region": {"id": number, "code": code, **more.pop("region", {})},
        "host": {"ipv4": "127.0.0.1"},
        "network": {"ipv6": False},
        "certificate": {"source": "internal"},
        **more,
    }


def states(checkout: Checkout) -> Path:
    return checkout.folder / "state" / ".pulumi" / "stacks" / PROJECT


def put(checkout: Checkout, name: str, settings: dict[str, Any], *, up: bool = True) -> None:
    """Write a stack's file, and a state that says that it is up, after the pattern of the first stack's.

    One that is not ``up`` was, and has its volumes left.
    """
    checkout.write_stack(settings, name)
    text = (states(checkout) / f"{_FIRST}.json").read_text()
    state = json.loads(text.replace(f"/{_FIRST}", f"/{name}"))
    region = derp_map_region(settings_from(settings, name), "127.0.0.1", None)
    kind = "Container" if up else "Volume"
    state["checkpoint"]["latest"]["resources"] = [
        {
            "urn": f"urn:pulumi:{name}::{PROJECT}::pulumi:pulumi:Stack::{PROJECT}-{name}",
            "custom": False,
            "type": "pulumi:pulumi:Stack",
            "outputs": {"url": "https://x", "ipv4": "127.0.0.1", "ipv6": None, "derpMapRegion": region},
        },
        {
            "urn": f"urn:pulumi:{name}::{PROJECT}::docker:index/{kind.lower()}:{kind}::derper",
            "custom": True,
            "id": "1",
            "type": f"docker:index/{kind.lower()}:{kind}",
        },
    ]
    (states(checkout) / f"{name}.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout.make(tmp_path_factory.mktemp("relays"), None)
    for path in (made.folder / "stacks").glob("Pulumi.*.yaml"):
        path.unlink()
    made.environment["PULUMI_CONFIG_PASSPHRASE"] = "the operator's"  # noqa: S105 - of this test alone
    with made.pulumi() as pulumi:
        done = pulumi("stack", "init", _FIRST)
        assert done.returncode == 0, done.stderr
    put(made, _FIRST, values(901, "near", region={"score": 0.5}))
    put(made, "far", values(902, "far", derper={"stunPort": 3479}))
    made.write_stack(values(903, "down"), "down")
    put(made, "taken-down", values(904, "taken-down"), up=False)
    # Whatever needed it would be told that it is wrong.
    made.environment["PULUMI_CONFIG_PASSPHRASE"] = "another"  # noqa: S105
    return made


def test_the_map_has_all_that_are_up_and_needs_no_passphrase(checkout: Checkout) -> None:
    done = checkout.relayctl("map", "--no-probe", "--omit-default-regions")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["derpMap"]
    assert told["HomeParams"] == {"RegionScore": {"901": 0.5}}
    assert told["OmitDefaultRegions"] is True
    assert [region["RegionCode"] for region in told["Regions"].values()] == ["near", "far"]
    assert all("CanPort80" not in region["Nodes"][0] for region in told["Regions"].values())
    assert "for this machine alone" in done.stderr


def test_headscales_file_is_written_whole_and_what_it_cannot_hold_is_told(
    checkout: Checkout, tmp_path: Path
) -> None:
    output = tmp_path / "derp.yaml"
    output.write_text("what was there before")
    options = ("--no-probe", "--format", "headscale", "--output", str(output), "--no-measure", "far")
    done = checkout.relayctl("map", "far", "near", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "scores of regions: those of near are left out" in done.stderr
    lines = output.read_text().splitlines()
    assert lines[:3] == ["regions:", "  # stacks/Pulumi.near.yaml; port 80 was not asked", "  901:"]
    assert "    nomeasurenohome: true" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["derp.yaml"]


def test_regions_that_clash_are_told_with_both_files(checkout: Checkout) -> None:
    put(checkout, "again", values(901, "near", domain="again.invalid"))
    try:
        done = checkout.relayctl("map", "--no-probe")
    finally:
        (checkout.folder / "stacks" / "Pulumi.again.yaml").unlink()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "stacks/Pulumi.again.yaml and stacks/Pulumi.near.yaml both have region.id 901" in done.stderr
    assert "both have region.code near" in done.stderr


def test_a_file_that_says_what_is_not_up_gives_no_map(checkout: Checkout) -> None:
    checkout.write_stack(values(902, "far", derper={"stunPort": 3480}), "far")
    try:
        done = checkout.relayctl("map", "far", "--no-probe")
    finally:
        checkout.write_stack(values(902, "far", derper={"stunPort": 3479}), "far")
    assert done.returncode == 1
    assert "says another name, port or region.id of the relay than what is up" in done.stderr
    assert "make up STACK=far" in done.stderr


def test_a_stack_that_was_taken_down_is_not_up_and_a_name_of_none_is_told(checkout: Checkout) -> None:
    done = checkout.relayctl("map", "taken-down", "--no-probe")
    assert done.returncode == 1
    assert "the stack taken-down is not up" in done.stderr
    done = checkout.relayctl("probe", "nosuch")
    assert done.returncode == 2
    assert "stacks/Pulumi.nosuch.yaml is not there" in done.stdout
    assert "name stacks that are: down, far, near, taken-down" in done.stdout


def test_one_stack_that_cannot_be_read_takes_nothing_from_the_others(checkout: Checkout) -> None:
    put(checkout, "cut", values(904, "cut"))
    (states(checkout) / "cut.json").write_text('{"version": 3, "che')
    put(checkout, "typo", values(905, "typo"))
    checkout.write_stack({**values(905, "typo"), "domian": "x"}, "typo")
    try:
        done = checkout.relayctl("probe", "--json")
    finally:
        for name in ("cut", "typo"):
            (checkout.folder / "stacks" / f"Pulumi.{name}.yaml").unlink()
    told = json.loads(done.stdout)
    relays = {relay["stack"]: relay for relay in told["relays"]}
    assert set(relays) == {"near", "far", "cut", "typo"}
    assert {relay["status"] for relay in relays.values()} == {"skipped"}
    seen = {name: relay["findings"][0] for name, relay in relays.items()}
    assert "Pulumi cannot read the state of cut" in seen["cut"]["seen"]
    assert "domian" in seen["typo"]["seen"]
    for name in ("near", "far"):
        # which an `up` from here would have put there
        assert "authority's root is not in" in seen[name]["seen"]
        assert f"make up STACK={name}" in seen[name]["mend"]
    # a bad file is told before what could not be judged
    assert done.returncode == told["exit_code"] == 2


@pytest.mark.parametrize(("name", "code"), [("down", 3), ("nosuch", 2)])
def test_a_stack_that_was_named_and_is_not_up_is_told(checkout: Checkout, name: str, code: int) -> None:
    done = checkout.relayctl("probe", name)
    assert done.returncode == code, done.stdout + done.stderr
    assert name in done.stdout
