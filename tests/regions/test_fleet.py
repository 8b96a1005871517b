"""Three regions as one fleet: brought up in turn, cut short, gone on with, broken, looked at, taken down.

The tests are in the order of what they do to the regions: each goes on from the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hcloud.firewalls import FirewallRule

from tests.interruptions import interrupt, kill_it, processes, started, wait_for
from tests.regions.cloud import Cloud
from tests.regions.region import MAKING, Region, changes_asked_for, cloud_with_zone

CANARY, ASHBURN, SINGAPORE = "nbg", "ash", "sin"
REGIONS = {CANARY: (901, "nbg1"), ASHBURN: (902, "ash"), SINGAPORE: (903, "sin")}
STUN = "3478"


@dataclass(frozen=True)
class Fleet:
    """The regions of a cloud, and the commands for all of them."""

    cloud: Cloud

    def region(self, stack: str) -> Region:
        return Region(self.cloud, stack)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``relayctl fleet``, which must end with ``code``; return what it printed."""
        done = self.cloud.checkout.relayctl("fleet", *arguments, timeout=MAKING)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return done.stdout

    def told(self, *arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
        """Return the regions by stack of what ``relayctl fleet ... --json`` tells."""
        regions = json.loads(self.run(*arguments, "--json", code=code))["regions"]
        return {region["stack"]: region for region in regions}

    def outcomes(self) -> dict[str, str]:
        """Return what the record on disk says of each region, in its order."""
        found = list(self.cloud.checkout.folder.glob(".relayctl/fleet/rollout-*.json"))
        return {
            part["stack"]: part["outcome"] for path in found for part in json.loads(path.read_text())["parts"]
        }

    def is_at(self, stack: str, text: str) -> bool:
        """Tell whether the run that is under way has said ``text`` of a region."""
        log = self.cloud.checkout.folder / f".relayctl/fleet/{stack}-up.log"
        return self.outcomes()[stack] == "not ended" and text in log.read_text()

    def as_it_is(self, stack: str) -> tuple[Any, ...]:
        """Return what nothing that happens to other regions may change."""
        region = self.region(stack)
        return region.server.id, region.containers(), region.key(region.root()), self.state(stack)

    def state(self, stack: str) -> Any:
        """Return the resources of the stack's state, as they are on disk."""
        (path,) = self.cloud.checkout.folder.glob(f"state/.pulumi/stacks/*/{stack}.json")
        return json.loads(path.read_text())["checkpoint"]["latest"]["resources"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with cloud_with_zone(tmp_path_factory.mktemp("fleet")) as made:
        for path in (made.checkout.folder / "stacks").glob("Pulumi.*.yaml"):
            path.unlink()
        for stack, (number, location) in REGIONS.items():
            Region(made, stack).write_settings(number, location)
            Region(made, stack).edit(labels={"canary": stack == CANARY})
        yield Fleet(made)


def test_two_stacks_with_one_id_are_refused_before_anything_is_touched(fleet: Fleet) -> None:
    asked = changes_asked_for(fleet.cloud)
    fleet.region("twin").write_settings(REGIONS[ASHBURN][0], "hel1")
    said = fleet.run("up", CANARY, ASHBURN, code=1)
    assert "Pulumi.ash.yaml and stacks/Pulumi.twin.yaml have the same region.id, 902" in said
    (fleet.cloud.checkout.folder / "stacks/Pulumi.twin.yaml").unlink()
    assert changes_asked_for(fleet.cloud) == asked


def test_the_canary_is_first_and_a_region_that_gets_no_server_keeps_no_other_from_its_own(
    fleet: Fleet,
) -> None:
    message = "unable to find a location with enough capacity"
    with started(fleet.cloud.checkout, "fleet", "up", "--all") as (process, log):
        wait_for(lambda: fleet.outcomes().get(CANARY) == "done" or process.poll() is not None, MAKING)
        assert fleet.outcomes() == {CANARY: "done", ASHBURN: "not begun", SINGAPORE: "not begun"} or (
            fleet.outcomes() == {CANARY: "done", ASHBURN: "not ended", SINGAPORE: "not begun"}
        ), log.read_text()
        assert [server.name for server in fleet.cloud.client.servers.get_all()] == ["derp-nbg"]
        fleet.cloud.ask_sandbox(
            "POST",
            "/faults",
            method="POST",
            path="/servers",
            status=422,
            code="resource_unavailable",
            message=message,
        )
        assert process.wait(MAKING) == 1
    said = log.read_text()
    assert fleet.outcomes() == {CANARY: "done", ASHBURN: "failed", SINGAPORE: "done"}, said
    assert message in said
    assert 'make fleet ARGS="up --resume"' in said
    assert {server.name for server in fleet.cloud.client.servers.get_all()} == {"derp-nbg", "derp-sin"}


def test_a_run_that_is_cut_short_is_gone_on_with_and_does_nothing_twice(fleet: Fleet) -> None:
    """First by Ctrl-C, which is handed on; then as the out-of-memory killer does."""
    others = {stack: fleet.as_it_is(stack) for stack in (CANARY, SINGAPORE)}
    checkout = fleet.cloud.checkout
    with started(checkout, "fleet", "up", "--resume") as (process, log):
        wait_for(lambda: fleet.is_at(ASHBURN, "Server host creating"), 120)
        interrupt(process)
        assert process.wait(90) == 130, log.read_text()
    assert "Interrupted: waiting for ash to end in order" in log.read_text()
    assert fleet.outcomes()[ASHBURN] == "interrupted"
    assert processes(checkout, ASHBURN) == []

    with started(checkout, "fleet", "up", "--resume") as (process, log):
        wait_for(lambda: fleet.is_at(ASHBURN, "Bringing up"), 120)
        kill_it(process)
        process.wait(10)
        assert fleet.outcomes()[ASHBURN] == "not ended"
        # Its child may be at work still: that is waited for.
        said = fleet.run("up", "--resume")
    assert "ash: relayctl up ash" in said
    assert "relayctl up nbg" not in said
    assert set(fleet.outcomes().values()) == {"done"}
    assert len(fleet.cloud.client.servers.get_all()) == len(REGIONS)
    fleet.region(ASHBURN).containers()
    assert {stack: fleet.as_it_is(stack) for stack in others} == others


def test_an_edit_since_is_what_a_finished_rollout_goes_on_with(fleet: Fleet) -> None:
    assert "relayctl up" not in fleet.run("up", "--resume")
    fleet.region(SINGAPORE).edit(sites=[])
    plans = fleet.told("preview", SINGAPORE, ASHBURN)
    assert plans[ASHBURN]["plan"]["changes"] == []
    assert plans[SINGAPORE]["plan"]["sessions"] == "kept"
    assert any(
        "1 site removed" in each
        for change in plans[SINGAPORE]["plan"]["changes"]
        for each in change["properties"]
    )
    said = fleet.run("up", "--resume")
    assert ("sin: relayctl up sin" in said, "nbg: relayctl" in said, "ash: relayctl" in said) == (
        True,
        False,
        False,
    )


def test_what_is_changed_by_hand_is_told_by_region(fleet: Fleet) -> None:
    firewall = fleet.cloud.client.firewalls.get_by_name("derp-ash")
    assert firewall is not None
    rules = [rule for rule in firewall.rules or [] if rule.port != STUN]
    firewall.set_rules([FirewallRule(**_fields(rule)) for rule in rules])
    fleet.region(SINGAPORE).on_server("docker", "rm", "--force", "derper")
    before = fleet.state(ASHBURN)
    found = fleet.told("status", "--drift", "--parallel", "2", code=1)
    drift = {
        stack: [(each["operation"], each["name"]) for each in region["drift"]]
        for stack, region in found.items()
    }
    assert drift == {
        CANARY: [],
        ASHBURN: [("update", "the firewall")],
        SINGAPORE: [("delete", "derper's container")],
    }
    assert {stack: region["probe"]["status"] for stack, region in found.items()} == {
        CANARY: "ok",
        ASHBURN: "failed",
        SINGAPORE: "failed",
    }
    assert {region["state"] for region in found.values()} == {"up"}
    assert fleet.state(ASHBURN) == before


def test_a_relay_that_fails_its_check_is_the_last_one(fleet: Fleet) -> None:
    """Of a changed firewall the state does not know, so that the update leaves STUN shut."""
    others = fleet.as_it_is(CANARY)
    said = fleet.run("up", ASHBURN, SINGAPORE, code=1)
    assert "ash is broken already, before the update: " in said
    assert fleet.outcomes() == {ASHBURN: "check failed", SINGAPORE: "not begun"}
    assert "Stopped" in said
    assert (
        "derper" not in fleet.region(SINGAPORE).on_server("docker", "ps", "--format", "{{.Names}}").decode()
    )
    assert fleet.as_it_is(CANARY) == others


def test_a_refresh_has_the_states_say_so_and_the_rollout_goes_on(fleet: Fleet) -> None:
    said = fleet.run("refresh", ASHBURN, "--label", "canary=false")
    assert "differs  the firewall: rules" in said
    assert "1 changed" in fleet.run("preview", ASHBURN)
    fleet.run("up", "--resume", "--parallel", "2")
    assert fleet.outcomes() == {ASHBURN: "done", SINGAPORE: "done"}
    assert {region["probe"]["status"] for region in fleet.told("status").values()} == {"ok"}


def test_nothing_is_taken_down_by_mistake_and_then_all_is(fleet: Fleet) -> None:
    fleet.run("destroy", "--yes", code=2)
    said = fleet.run("destroy", "--all", code=1)
    assert "nobody is there to be asked" in said
    assert len(fleet.cloud.client.servers.get_all()) == len(REGIONS)
    fleet.run("destroy", "--all", "--yes", "--volumes", "--parallel", "3")
    client = fleet.cloud.client
    for kind in (client.servers, client.primary_ips, client.firewalls, client.ssh_keys):
        assert kind.get_all() == []
    assert {region["state"] for region in fleet.told("status").values()} == {"never up"}


def _fields(rule: Any) -> dict[str, Any]:
    return {
        name: getattr(rule, name)
        for name in ("direction", "protocol", "port", "source_ips", "destination_ips", "description")
    }
