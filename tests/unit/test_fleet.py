"""Which stacks a command for a fleet is for, in which order, and what no two of them may share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from relayctl import fleet
from relayctl.cli import main
from relayctl.fleet import Choice, Member
from relayctl.prerequisites.errors import PrerequisiteError
from settings import PROJECT, reader


@pytest.fixture
def stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    write(tmp_path, "nbg", 901, continent="europe", canary="true")
    write(tmp_path, "hel", 902, continent="europe")
    write(tmp_path, "ash", 903, continent="america", tier="2")
    return tmp_path


def write(folder: Path, stack: str, number: int, code: str = "", domain: str = "", **labels: str) -> None:
    values: dict[str, Any] = {
        "domain": domain or f"derp-{stack}.example.com",
        "region": {"id": number, "code": code or stack},
        "labels": labels,
    }
    config = {f"{PROJECT}:{key}": value for key, value in values.items()}
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": config}))


def names(found: Sequence[Member]) -> list[str]:
    return [member.stack for member in found]


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (Choice(), ["ash", "hel", "nbg"]),
        (Choice(all=True), ["ash", "hel", "nbg"]),
        (Choice(["nbg", "ash", "nbg"]), ["nbg", "ash"]),
        (Choice(labels={"continent": "europe"}), ["hel", "nbg"]),
        (Choice(labels={"continent": "europe", "canary": "true"}), ["nbg"]),
        (Choice(["hel", "ash"], {"continent": "europe"}), ["hel"]),
    ],
)
@pytest.mark.usefixtures("stacks")
def test_stacks_are_chosen_by_name_and_by_all_labels(choice: Choice, found: list[str]) -> None:
    assert names(fleet.chosen(fleet.members(), choice)) == found


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(["nbgg"]), "stacks/Pulumi.nbgg.yaml is not there\n  to mend it: nbg is"),
        (Choice(["zzz"]), "name one of the stacks that are: ash, hel, nbg"),
        (
            Choice(labels={"continent": "asia"}),
            "the labels that there are: canary=true, continent=america, continent=europe, tier=2",
        ),
        (Choice(["nbg"], {"tier": "2"}), "no stack of those named has the label tier=2"),
    ],
)
@pytest.mark.usefixtures("stacks")
def test_a_choice_of_nothing_says_what_there_is(choice: Choice, told: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        fleet.chosen(fleet.members(), choice)
    assert told in str(caught.value)


def test_copies_that_the_sandbox_made_are_no_regions(stacks: Path) -> None:
    write(stacks, "sandbox-nbg", 901)
    assert names(fleet.members()) == ["ash", "hel", "nbg"]
    with pytest.raises(PrerequisiteError, match="make sandbox-up REGION=nbg"):
        fleet.chosen(fleet.members(), Choice(["sandbox-nbg"]))


@pytest.mark.usefixtures("stacks")
def test_canaries_are_those_named_and_those_labelled() -> None:
    found = fleet.members()
    assert fleet.canaries_of(found) == ["nbg"]
    assert fleet.canaries_of(found, ["ash"]) == ["ash", "nbg"]
    with pytest.raises(PrerequisiteError, match="the canary nbg is not among the chosen stacks: hel"):
        fleet.canaries_of(fleet.chosen(found, Choice(["hel"])), ["nbg"])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"number": 901}, "stacks/Pulumi.nbg.yaml and stacks/Pulumi.twin.yaml have the same region.id, 901"),
        ({"code": "nbg"}, "have the same region.code, nbg"),
        ({"domain": "derp-nbg.example.com"}, "have the same domain, derp-nbg.example.com"),
    ],
)
def test_what_clients_tell_regions_apart_by_is_no_two_stacks(
    stacks: Path, other: dict[str, Any], told: str
) -> None:
    """Of stacks too that are not chosen, as their regions are in the same DERP map."""
    write(stacks, "twin", **{"number": 910, **other})
    everyone = fleet.members()
    with pytest.raises(PrerequisiteError) as caught:
        fleet.check(everyone, fleet.chosen(everyone, Choice(["nbg"])))
    assert told in str(caught.value)
    fleet.check(everyone, fleet.chosen(everyone, Choice(["ash"])))


def test_all_that_is_wrong_is_told_at_once_and_only_of_those_chosen(stacks: Path) -> None:
    (stacks / "Pulumi.bad.yaml").write_text(f"config: {{{PROJECT}:domain: a.example.com}}")
    write(stacks, "twin", 902)
    everyone = fleet.members()
    with pytest.raises(PrerequisiteError) as caught:
        fleet.check(everyone, everyone)
    assert "Pulumi.bad.yaml: 1 bad value" in str(caught.value)
    assert "the same region.id, 902" in str(caught.value)
    fleet.check(everyone, fleet.chosen(everyone, Choice(["nbg"])))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["up"], "say which: name stacks, or give --label KEY=VALUE, or --all"),
        (["destroy", "--yes"], "say which"),
        (["refresh"], "say which"),
        (["up", "--label", "europe"], "'europe' has no KEY=VALUE"),
        (["up", "--label", "a=b", "--label", "a=c"], "a cannot be b and c at once"),
        (["up", "--resume", "nbg"], "--resume goes on with the regions and options of the last run"),
    ],
)
@pytest.mark.usefixtures("stacks")
def test_what_changes_regions_is_to_be_told_which(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["fleet", *arguments])
    assert (done.exit_code, told in done.output) == (2, True), done.output
