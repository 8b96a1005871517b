"""The summaries of a fleet's commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import probe
from relayctl import fleet_status, refresh
from relayctl.children import Child
from relayctl.command import make_command
from relayctl.fleet import Member
from relayctl.fleet_status import Status
from relayctl.plan import Change, Plan, Sessions
from relayctl.rollout import Outcome, Part, Record

_RESUME = 'make fleet ARGS="up --resume"'
_OUTCOME_STYLES = {
    Outcome.DONE: "green",
    Outcome.WAITING: "yellow",
    Outcome.RUNNING: "yellow",
    Outcome.INTERRUPTED: "yellow",
    Outcome.CHECK_FAILED: "bold red",
    Outcome.FAILED: "bold red",
}
_OPERATIONS = {"delete": "removed", "replace": "replaced", "update": "changed", "create": "made"}
_SESSIONS = {Sessions.END: Text("end", "bold red"), Sessions.UNKNOWN: Text("may end", "bold red")}
_STATE_STYLES = {
    fleet_status.UP: "green",
    fleet_status.INTERRUPTED: "bold red",
    fleet_status.UNKNOWN: "bold red",
}
_PROBE_WORDS = {
    probe.Status.OK: Text("works", "green"),
    probe.Status.WARNING: Text("works, with warnings", "yellow"),
    probe.Status.FAILED: Text("broken", "bold red"),
    probe.Status.SKIPPED: Text("not to be judged from here", "yellow"),
}
_INTERRUPTED = "its last update failed or was cut short."
_NOT_TOLD = Text("could not be told, see below", "bold red")


def rollout_as_json(record: Record, found: Sequence[Member]) -> None:
    """Print what became of a rollout of ``found``."""
    regions = {member.stack: member.of_region() for member in found}
    parts = [
        {
            **regions[part.stack],
            "canary": part.canary,
            "outcome": part.outcome.value,
            "seconds": part.seconds,
            "error": part.error,
            "before": part.before,
            "log": part.log,
            "next": _what_next(part),
        }
        for part in record.parts
    ]
    resume = _RESUME if record.left() else None
    _print_json({"regions": parts, "stopped": record.is_stopped(), "resume": resume})


def rollout(record: Record, found: Sequence[Member], console: Console) -> None:
    """Show what became of a rollout of ``found``, why, and how to go on."""
    members = {member.stack: member for member in found}
    table = _table("Rollout", "Outcome", "Time", "Next")
    for part in record.parts:
        code, stack = _names(members[part.stack])
        table.add_row(
            code,
            f"{stack} (canary)" if part.canary else stack,
            Text(part.outcome.value, style=_OUTCOME_STYLES[part.outcome]),
            _duration(part.seconds),
            _what_next(part),
        )
    _show(table, console)
    for part in record.parts:
        if part.error:
            _failure(part.stack, part.outcome.value, part.error, part.log, console)
    if record.is_stopped():
        console.print("\n[bold red]Stopped:[/] no further region was begun.", soft_wrap=True)
    if record.left():
        console.print(f"\nTo go on: {_RESUME}", soft_wrap=True)


def _what_next(part: Part) -> str:
    match part.outcome:
        case Outcome.DONE:
            return "broken before, works now" if part.before else ""
        case Outcome.CHECK_FAILED | Outcome.FAILED:
            was = "was broken before; " if part.before else ""
            return f"{was}see below, mend it, then resume"
        case _:
            return "resume"


def plans(found: Sequence[Member], done: Sequence[Child], console: Console) -> None:
    """Show what an update would change of each of ``found``: a row a region, and then the plans."""
    table = _table("What would change", "Changes", "Relay sessions")
    told = [child.what_it_found() for child in done]
    plans_ = [None if each is None else Plan.from_json(each) for each in told]
    for member, child, plan in zip(found, done, plans_, strict=True):
        table.add_row(*_names(member), *_plan_in_short(child, plan))
    _show(table, console)
    for member, plan in zip(found, plans_, strict=True):
        if plan is not None and plan.changes:
            console.print(f"\n[bold]{member.stack}[/]", soft_wrap=True)
            console.print(plan.told(), soft_wrap=True)
    failures(done, console)


def _plan_in_short(child: Child, plan: Plan | None) -> tuple[str | Text, str | Text]:
    if child.code != 0:
        return _NOT_TOLD, ""
    if plan is None:
        return "all of it is made", "none yet"
    counts = {word: sum(each.operation == word for each in plan.changes) for word in _OPERATIONS}
    changes = ", ".join(f"{count} {_OPERATIONS[word]}" for word, count in counts.items() if count)
    return changes or "none", _SESSIONS.get(plan.sessions, plan.sessions.value)


def drift(found: Sequence[Member], done: Sequence[Child], console: Console) -> None:
    """Show what a refresh found of each of ``found``."""
    table = _table("What is otherwise than the states say", "Found")
    for member, child in zip(found, done, strict=True):
        changes = changes_of(child)
        if child.code != 0:
            told = _NOT_TOLD
        elif changes is None:
            told = Text("never up", "yellow")
        else:
            told = Text(f"{len(changes)} otherwise", "yellow") if changes else Text("none", "green")
        table.add_row(*_names(member), told)
    _show(table, console)
    changes_found(done, console)
    failures(done, console)


def changes_of(child: Child) -> tuple[Change, ...] | None:
    """Return what ``relayctl refresh`` found; ``None`` if it could not be told."""
    found = child.what_it_found()
    return None if found is None else tuple(map(Change.from_json, found))


def changes_found(done: Sequence[Child], console: Console) -> None:
    """Show what each refresh found, in words."""
    for child in done:
        changes = changes_of(child)
        if changes:
            console.print(f"\n[bold]{child.stack}[/]", soft_wrap=True)
            console.print(refresh.told(changes), soft_wrap=True)


def taken_down(found: Sequence[Member], done: Sequence[Child], console: Console) -> None:
    """Show which of ``found`` are down."""
    table = _table("Taken down", "Outcome", "Time")
    for member, child in zip(found, done, strict=True):
        outcome = Text("done", "green") if child.code == 0 else Text("failed, see below", "bold red")
        table.add_row(*_names(member), outcome, _duration(child.seconds))
    _show(table, console)
    failures(done, console)


def statuses(told: Sequence[Status], console: Console, *, with_drift: bool, probed: bool) -> None:
    """Show how each region is: a row a region, then what is wrong."""
    more = [*(["Probe"] if probed else []), *(["Drift"] if with_drift else [])]
    table = _table("Regions", "Id", "Domain", "Host", "State", "Last update", "Resources", *more)
    spare = ("Resources", "Host", "Id", "Last update", "Domain", "Region")
    for each in told:
        region = each.member.of_region()
        row: list[str | Text] = [str(region[key] or "") for key in ("id", "domain", "host")]
        row += [
            Text(each.state, _STATE_STYLES.get(each.state, "yellow")),
            (each.last_update or "")[:16].replace("T", " "),
            str(each.resources or ""),
        ]
        row += [_PROBE_WORDS[each.report.status] if each.report else ""] if probed else []
        row += ["" if each.drift is None else str(len(each.drift) or "none")] if with_drift else []
        table.add_row(*_names(each.member), *row)
    _show(table, console, spare)
    for stack, what in fleet_status.broken([each.report for each in told]).items():
        console.print(f"[bold red]{stack} is broken:[/]", Text(what), soft_wrap=True)
        console.print(f"  what it means, and how to mend it: make probe STACK={stack}", soft_wrap=True)
    for each in told:
        if each.error:
            console.print(Text(f"{each.member.stack}: {each.error}"), soft_wrap=True)
        up = make_command("up", each.member.stack)
        if each.state == fleet_status.INTERRUPTED:
            console.print(f"[bold red]{each.member.stack} is interrupted:[/]", _INTERRUPTED, soft_wrap=True)
            console.print(f"  to go on from there: {up}", soft_wrap=True)
        elif each.drift:
            console.print(f"[bold red]{each.member.stack} is not as its state says.[/]", soft_wrap=True)
            console.print(f"  to put it back as its file says: {up}", soft_wrap=True)


def failures(done: Sequence[Child], console: Console) -> None:
    """Show why those of ``done`` failed that did."""
    for child in done:
        if child.code != 0:
            _failure(child.stack, "failed", child.error(), str(child.log), console)


def as_json(found: Sequence[Member], done: Sequence[Child], what: str) -> None:
    """Print how ``done`` ended for each of ``found``; ``what`` is the key of what each found."""
    regions = [
        {
            **member.of_region(),
            "outcome": (Outcome.DONE if child.code == 0 else Outcome.FAILED).value,
            "seconds": round(child.seconds, 1),
            "error": "" if child.code == 0 else child.error(),
            "log": str(child.log),
            **({what: child.what_it_found()} if what else {}),
        }
        for member, child in zip(found, done, strict=True)
    ]
    _print_json({"regions": regions})


def statuses_as_json(told: Sequence[Status]) -> None:
    """Print how each region is."""
    _print_json({"regions": [each.as_json() for each in told]})


def _print_json(told: Any) -> None:
    click.echo(json.dumps(told, indent=2))


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("Region", "Stack", *headings):
        table.add_column(heading, overflow="fold")
    return table


def _show(table: Table, console: Console, spare: Sequence[str] = ()) -> None:
    """Print ``table`` without a break in a word, at need without columns of ``spare``, the first one first.

    Those left out are told below it. Words break where even that is not enough.
    """
    left_out = []
    for heading in spare:
        if _least_width(table, console) <= console.width:
            break
        table.columns = [column for column in table.columns if column.header != heading]
        left_out.append(heading)
    room = console.width - _least_width(table, console)
    # rich takes what is too much from the widest columns, and breaks words there while others have room left.
    for column in table.columns if room >= 0 else ():
        cells = [console.measure(cell) for cell in (column.header, *column.cells)]
        least, most = max(cell.minimum for cell in cells), max(cell.maximum for cell in cells)
        column.width = least + min(room, most - least)
        room -= column.width - least
    console.print(table)
    if left_out:
        console.print(f"(no room for: {', '.join(left_out)}; --json tells all)", soft_wrap=True)


def _least_width(table: Table, console: Console) -> int:
    """Return the width in which no word of ``table`` breaks, which rich tells up to the console's own."""
    return console.measure(table, options=console.options.update_width(10_000)).minimum


def _names(member: Member) -> tuple[str, str]:
    return str(member.of_region()["code"] or ""), member.stack


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return "" if not seconds else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _failure(stack: str, outcome: str, error: str, log: str, console: Console) -> None:
    console.print(f"\n[bold]{stack}[/], {outcome}:", soft_wrap=True)
    console.print(Text("\n".join(f"  {line}" for line in error.splitlines())), soft_wrap=True)
    console.print(Text(f"  all that it said: {log}"), soft_wrap=True)
