"""What a fleet's commands tell of regions: plans, drift, states and outcomes, for people and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pulumi.automation import EngineEvent
from rich.console import Console

import probe
from probe.report import Report
from relayctl import fleet_status, fleet_told, refresh
from relayctl.children import Child
from relayctl.fleet import Member
from relayctl.fleet_status import Status
from relayctl.plan import Change, Plan, Sessions, differences
from relayctl.rollout import Outcome, Part, Record
from settings import settings_from
from tests.unit.declared import MINIMAL

FIREWALL = "hcloud:index/firewall:Firewall"
CONTAINER = "docker:index/container:Container"
NBG = Member("nbg", settings_from(MINIMAL, "stacks/Pulumi.nbg.yaml"))
BAD = Member("bad")
IS_GONE = Change("delete", "derper's container", type=CONTAINER)
DIFFERS = Change("update", "the firewall", ("labels", "rules"), FIREWALL)
PLAN = Plan((IS_GONE, DIFFERS), Sessions.END, ("derper's container is removed",))


def shown(tell: Any, *arguments: Any, width: int = 160, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    tell(*arguments, console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def child(folder: Path, stack: str, found: Any = None, *, code: int = 0, said: str = "") -> Child:
    """Return a run that has ended, and left what it found and said."""
    made = Child(stack, ["preview", stack], folder / f"{stack}.log", folder / f"{stack}.json")
    made.code, made.seconds = code, 75
    made.log.write_text(said)
    if found is not None and made.found is not None:
        made.found.write_text(json.dumps(found))
    return made


def found_by_refresh(operation: str, type_: str, name: str, *diffs: str) -> EngineEvent:
    """Return the event that ends a resource's refresh, as Pulumi 3.250 tells it."""
    urn = f"urn:pulumi:test::derp-relays::derp-relays:components:Any${type_}::{name}"
    state = {"type": type_, "urn": urn, "inputs": {}, "outputs": {}}
    new = None if operation == "delete" else state
    metadata = {"op": operation, "type": type_, "urn": urn, "old": state, "new": new, "diffs": diffs or None}
    return EngineEvent.from_json({"resOutputsEvent": {"metadata": metadata}})


def test_a_refresh_tells_what_is_gone_and_what_differs() -> None:
    events = [
        EngineEvent.from_json(
            {"resourcePreEvent": {"metadata": {"op": "refresh", "type": FIREWALL, "urn": "x"}}}
        ),
        found_by_refresh("same", "hcloud:index/server:Server", "host"),
        found_by_refresh("update", FIREWALL, "host", "labels", "rules[0].port"),
        found_by_refresh("delete", CONTAINER, "derper"),
        found_by_refresh("update", CONTAINER, "caddy", "mustRun"),
    ]
    changes = differences(events)
    assert changes[:1] + changes[2:] == (IS_GONE, DIFFERS)
    assert refresh.told(changes).plain.splitlines() == [
        "  gone     derper's container",
        "  differs  Caddy's container: it does not run",
        "  differs  the firewall: labels, rules",
    ]
    assert refresh.told(()).plain == "All is as the state says."


def test_plans_are_the_same_after_json() -> None:
    told = json.loads(json.dumps(PLAN.as_json()))
    assert Plan.from_json(told) == PLAN


def test_plans_are_a_row_a_region_and_failures_are_told(tmp_path: Path) -> None:
    members = [NBG, Member("new"), BAD]
    done = [
        child(tmp_path, "nbg", PLAN.as_json()),
        child(tmp_path, "new"),
        child(tmp_path, "bad", code=1, said="… looking\nerror: no token\n  to mend it: export it\n"),
    ]
    said = shown(fleet_told.plans, members, done)
    rows = {row.split("│")[2].strip(): row for row in said.splitlines() if row.startswith("│")}
    assert "1 removed, 1 changed" in rows["nbg"]
    assert "end" in rows["nbg"]
    assert "all of it is made" in rows["new"]
    assert "could not be told" in rows["bad"]
    assert "Relay sessions will end: derper's container is removed" in said
    assert "bad, failed:\n  no token\n    to mend it: export it\n  all that it said: " in said


def test_an_error_is_told_whole_or_else_the_last_words(tmp_path: Path) -> None:
    assert child(tmp_path, "a", said="x\nerror: one\n  more\nerror: two\n  to mend it: so\n").error() == (
        "two\n  to mend it: so"
    )
    assert child(tmp_path, "a", said="Traceback\nValueError: no\n+-----\n").error() == "ValueError: no"
    assert child(tmp_path, "a", code=-9).error() == "ended with -9 without a word"


@pytest.mark.parametrize(
    ("outcome", "before", "told"),
    [
        (Outcome.DONE, "", ""),
        (Outcome.DONE, "stun: no answer", "broken before, works now"),
        (Outcome.CHECK_FAILED, "stun: no answer", "was broken before; see below, mend it, then resume"),
        (Outcome.FAILED, "", "see below, mend it, then resume"),
        (Outcome.WAITING, "", "resume"),
        (Outcome.INTERRUPTED, "", "resume"),
    ],
)
def test_each_outcome_has_what_to_do_next(
    outcome: Outcome, before: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record((Part("nbg", outcome=outcome, before=before, seconds=75),))
    fleet_told.rollout_as_json(record, [NBG])
    printed = json.loads(capsys.readouterr().out)
    (region,) = printed["regions"]
    assert (region["next"], region["outcome"], region["code"]) == (told, outcome.value, "nbg")
    assert (printed["resume"] is None) == (outcome is Outcome.DONE)
    said = shown(fleet_told.rollout, record, [NBG])
    assert "1 min 15 s" in said
    assert ("To go on: make fleet" in said) == (outcome is not Outcome.DONE)


def report(status: probe.Status) -> Report:
    finding = probe.Finding(probe.Check.STUN, "203.0.113.7", status, "no answer")
    return Report("nbg", "nbg", "derp.example.com", [finding])


@pytest.mark.parametrize(
    ("status", "well"),
    [
        (Status(NBG, fleet_status.UP), True),
        (Status(NBG, fleet_status.NEVER_UP), True),
        (Status(NBG, fleet_status.UP, report=report(probe.Status.OK)), True),
        (Status(NBG, fleet_status.UP, report=report(probe.Status.WARNING)), True),
        (Status(NBG, fleet_status.UP, report=report(probe.Status.SKIPPED)), True),
        (Status(NBG, fleet_status.UP, report=report(probe.Status.FAILED)), False),
        (Status(NBG, fleet_status.UP, drift=()), True),
        (Status(NBG, fleet_status.UP, drift=(IS_GONE,)), False),
        (Status(NBG, fleet_status.INTERRUPTED), False),
        (Status(NBG, fleet_status.UNKNOWN, error="no backend"), False),
    ],
)
def test_a_region_is_well_unless_something_is_known_to_be_wrong(status: Status, *, well: bool) -> None:
    assert status.is_well == well


def test_states_are_a_row_a_region() -> None:
    up = Status(
        NBG,
        fleet_status.UP,
        "2026-11-24T12:06:01.5Z",
        38,
        report=report(probe.Status.FAILED),
        drift=(IS_GONE,),
    )
    said = shown(fleet_told.statuses, [up, Status(BAD, fleet_status.NEVER_UP)], with_drift=True, probed=True)
    row = next(line for line in said.splitlines() if "│ nbg" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == [
        "nbg",
        "nbg",
        "901",
        "derp.example.com",
        "local",
        "up",
        "2026-11-24 12:06",
        "38",
        "broken",
        "1",
    ]
    assert "nbg is broken:" in said
    assert "stun: no answer" in said
    assert up.as_json()["drift"] == [IS_GONE.as_json()]


def is_whole(said: str) -> bool:
    """Tell whether no line of the table is cut off at the terminal's edge."""
    return all(line.endswith(line[0]) for line in said.splitlines() if line.startswith(("│", "┃")))


def row_of(said: str, stack: str) -> list[str]:
    """Return the words of the first line of a stack's row."""
    return next(line for line in said.splitlines() if f"│ {stack} " in line).split()


@pytest.mark.parametrize("drift", [None, (IS_GONE,)])
def test_no_word_breaks_on_a_terminal_of_80_columns(drift: tuple[Change, ...] | None) -> None:
    told = [
        Status(
            Member("us-ashburn", NBG.settings),
            fleet_status.INTERRUPTED,
            "2026-11-24T12:06:01.5Z",
            38,
            report=report(probe.Status.WARNING),
            drift=drift,
        ),
        Status(Member("second"), fleet_status.NEVER_UP),
    ]
    said = shown(fleet_told.statuses, told, with_drift=drift is not None, probed=True, width=80)
    assert is_whole(said)
    row = row_of(said, "us-ashburn")
    assert {"nbg", "us-ashburn", "interrupted", "derp.example.com"} <= set(row)
    assert "second" in row_of(said, "second")
    assert "(no room for: Resources, Host" in said
    assert "Last update" in shown(fleet_told.statuses, told, with_drift=True, probed=True)


def test_the_other_tables_fit_80_columns(tmp_path: Path) -> None:
    parts = (
        Part("us-ashburn", canary=True, outcome=Outcome.CHECK_FAILED, before="stun: no answer", seconds=75),
        Part("second", outcome=Outcome.INTERRUPTED, seconds=754),
    )
    members = [Member("us-ashburn", NBG.settings), Member("second")]
    done = [
        child(tmp_path, "us-ashburn", PLAN.as_json()),
        child(tmp_path, "second", code=1, said="error: x\n"),
    ]
    for said in (
        shown(fleet_told.rollout, Record(parts), members, width=80),
        shown(fleet_told.plans, members, done, width=80),
        shown(fleet_told.taken_down, members, done, width=80),
    ):
        assert is_whole(said)
        assert "us-ashburn" in row_of(said, "us-ashburn")
        assert "second" in row_of(said, "second")
    assert "interrupted" in shown(fleet_told.rollout, Record(parts), members, width=80)


def test_words_break_where_not_even_the_rest_fits() -> None:
    told = [Status(Member("a-stack-with-a-rather-long-name"), fleet_status.NEVER_UP)]
    said = shown(fleet_told.statuses, told, with_drift=True, probed=True, width=30)
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    assert "".join(row[0].strip() for row in rows) == "a-stack-with-a-rather-long-name"
    assert is_whole(said)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (Status(NBG, fleet_status.INTERRUPTED), "to go on from there: make up STACK=nbg"),
        (
            Status(NBG, fleet_status.UP, drift=(IS_GONE,)),
            "to put it back as its file says: make up STACK=nbg",
        ),
        (
            Status(NBG, fleet_status.UP, report=report(probe.Status.FAILED)),
            "how to mend it: make probe STACK=nbg",
        ),
        (
            Status(NBG, fleet_status.UNKNOWN, error="no backend\n  to mend it: name one"),
            "to mend it: name one",
        ),
    ],
)
def test_each_region_that_is_not_well_is_told_with_what_to_do(status: Status, told: str) -> None:
    assert not status.is_well
    assert told in shown(fleet_told.statuses, [status], with_drift=True, probed=False, width=80)
    well = Status(NBG, fleet_status.UP, drift=())
    assert "make" not in shown(fleet_told.statuses, [well], with_drift=True, probed=False)
