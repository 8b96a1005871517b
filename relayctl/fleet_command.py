"""``relayctl fleet``: every region, or those chosen, each by a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import probe
from probe.report import Report
from relayctl import children, fleet_status, refresh, rollout
from relayctl import fleet as stacks_here
from relayctl.children import Child
from relayctl.command import FAILED, errors_for_people
from relayctl.fleet import Choice, Member
from relayctl.plan import Plan, Sessions
from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.rollout import Outcome, Part, Record

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STYLES = {
    Outcome.DONE: "green",
    Outcome.WAITING: "yellow",
    Outcome.RUNNING: "yellow",
    Outcome.INTERRUPTED: "yellow",
    Outcome.CHECK_FAILED: "bold red",
    Outcome.FAILED: "bold red",
}
_RESUME = 'make fleet ARGS="up --resume"'


def _labels(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{each!r} has no KEY=VALUE, such as continent=europe")
        if labels.setdefault(key, value) != value:
            raise click.BadParameter(f"{key} cannot be {labels[key]} and {value} at once")
    return labels


def _choosing(command: _Command) -> _Command:
    """Give ``command`` the arguments that say which stacks, and those that all commands of a fleet have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, and nothing else."),
        click.option(
            "--parallel",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="How many regions are at work at once.",
        ),
        click.option("--all", "every", is_flag=True, help="All stacks that have a file in stacks/."),
        click.option(
            "--label",
            "labels",
            multiple=True,
            metavar="KEY=VALUE",
            callback=_labels,
            help="Only stacks with this label in their file; repeatable: with all of them.",
        ),
        click.argument("stacks", nargs=-1, metavar="[STACK]..."),
    ):
        command = option(command)
    return command


@click.group()
def fleet() -> None:
    """Bring up, look at and take down many regions.

    Each is done by a process of its own, whose output is kept in .relayctl/fleet/:
    what fails in one region touches no other.
    """


@fleet.command()
@_choosing
@click.option("--canary", "canaries", multiple=True, metavar="STACK", help="Bring it up first, alone.")
@click.option("--keep-sessions", is_flag=True, help="Change no region whose relay sessions would or may end.")
@click.option("--resume", is_flag=True, help="Go on with the last run: what is not done, or edited since.")
def up(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    labels: Mapping[str, str],
    every: bool,
    parallel: int,
    as_json: bool,
    canaries: tuple[str, ...],
    keep_sessions: bool,
    resume: bool,
) -> None:
    """Bring up regions one after the other, canaries first; the next one when a relay has passed its check.

    A relay that runs and fails its check stops the rollout, and so does a canary
    that fails in any way. Another failure is that region's own, and the others go
    on. Canaries are named, or have the label canary=true.
    """
    choice = Choice(stacks, labels, every)
    if resume and (choice.is_made() or canaries or keep_sessions):
        raise click.UsageError("--resume goes on with the regions and options of the last run: name none")
    if not resume:
        _see_that_it_is_made(choice)
    console = Console(stderr=as_json, highlight=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        everyone = stacks_here.members()
        record = _last_record() if resume else None
        if record is not None:
            choice = Choice([part.stack for part in record.parts])
        found = stacks_here.chosen(everyone, choice)
        stacks_here.check(everyone, found)
        first = stacks_here.canaries_of(found, canaries)
        inputs = rollout.inputs_of(found)
        record = (
            rollout.new_record(found, first, keep_sessions=keep_sessions)
            if record is None
            else record.resumed(inputs)
        )
        pulumi_cli.bring(progress)
        record = _with_what_is_broken(record, found, progress)
        record.save()
        rolling = rollout.Rollout(record, inputs, parallel=parallel, console=console)
        try:
            rolling.run()
        finally:
            _tell_rollout(rolling.record, found, console, as_json=as_json)
    sys.exit(FAILED if rolling.record.left() else 0)


def _see_that_it_is_made(choice: Choice) -> None:
    if not choice.is_made():
        raise click.UsageError("say which: name stacks, or give --label KEY=VALUE, or --all")


def _last_record() -> Record:
    record = Record.load()
    if record is None:
        raise PrerequisiteError(
            "there is no rollout to go on with",
            'make fleet ARGS="up --all"   or name stacks, or give --label',
        )
    return record


def _with_what_is_broken(record: Record, found: Sequence[Member], progress: Progress) -> Record:
    """Note of the relays that are up and broken already that they are; tell of them."""
    left = {part.stack for part in record.left()}
    wanted = [member for member in found if member.stack in left]
    statuses = fleet_status.of(wanted, progress, parallel=_READING)
    for stack, what in fleet_status.broken(fleet_status.probed(statuses, progress)).items():
        progress.warn(f"{stack} is broken already, before the update: {what}")
        record = record.with_part(stack, before=what)
    return record


# Exports of states at once: each is a process of Pulumi's, which takes a core for half a second.
_READING = 4


def _tell_rollout(record: Record, found: Sequence[Member], console: Console, *, as_json: bool) -> None:
    regions = {member.stack: member.of_region() for member in found}
    resume = _RESUME if record.left() else None
    if as_json:
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
        told = {"regions": parts, "stopped": record.is_stopped(), "resume": resume}
        click.echo(json.dumps(told, indent=2))
        return
    table = Table(title="Rollout", title_justify="left")
    for heading in ("Region", "Stack", "Outcome", "Time", "Next"):
        table.add_column(heading, overflow="fold")
    for part in record.parts:
        table.add_row(
            str(regions[part.stack]["code"] or ""),
            f"{part.stack} (canary)" if part.canary else part.stack,
            Text(part.outcome.value, style=_STYLES[part.outcome]),
            _duration(part.seconds),
            _what_next(part),
        )
    console.print(table)
    for part in record.parts:
        if part.error:
            console.print(f"\n[bold]{part.stack}[/], {part.outcome.value}:", soft_wrap=True)
            console.print(Text(_indented(part.error)), soft_wrap=True)
            console.print(Text(f"  all that it said: {part.log}"), soft_wrap=True)
    if record.is_stopped():
        console.print("\n[bold red]Stopped:[/] no further region was begun.", soft_wrap=True)
    if resume:
        console.print(f"\nTo go on: {resume}", soft_wrap=True)


def _what_next(part: Part) -> str:
    match part.outcome:
        case Outcome.DONE:
            return "broken before, works now" if part.before else ""
        case Outcome.CHECK_FAILED:
            was = "was broken before; " if part.before else ""
            return f"{was}see below, mend it, then resume"
        case Outcome.FAILED:
            return "see below, mend it, then resume"
        case _:
            return "resume"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return "" if not seconds else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


@fleet.command()
@_choosing
def preview(
    stacks: tuple[str, ...], *, labels: Mapping[str, str], every: bool, parallel: int, as_json: bool
) -> None:
    """Tell what `up` would change of each region, by default of all, and whether relay sessions would end."""
    console = Console(stderr=as_json, highlight=False)
    with errors_for_people(console=console) as progress:
        found = stacks_here.chosen(stacks_here.members(), Choice(stacks, labels, every))
        pulumi_cli.bring(progress)
        done = _done_for_each(found, "preview", ["--found"], parallel, console)
    plans = {child.stack: Plan.from_json(json.loads(text)) if text else None for child, text in done}
    if as_json:
        _print_json(found, done, lambda stack: {"plan": plan.as_json() if (plan := plans[stack]) else None})
    else:
        _tell_plans(found, done, plans, console)
    _exit(done)


def _tell_plans(
    found: Sequence[Member],
    done: Sequence[tuple[Child, str]],
    plans: Mapping[str, Plan | None],
    console: Console,
) -> None:
    table = _regions_table("What would change", "Changes", "Relay sessions")
    for member, (child, _) in zip(found, done, strict=True):
        plan = plans[child.stack]
        table.add_row(*_names(member), *_plan_in_short(child, plan))
    console.print(table)
    for child, _ in done:
        plan = plans[child.stack]
        if plan is not None and plan.changes:
            console.print(f"\n[bold]{child.stack}[/]", soft_wrap=True)
            console.print(plan.told(), soft_wrap=True)
    _tell_failures(done, console)


def _plan_in_short(child: Child, plan: Plan | None) -> tuple[str, str | Text]:
    if child.code != 0:
        return "could not be told, see below", ""
    if plan is None:
        return "all of it is made", "none yet"
    counts = {word: sum(each.operation == word for each in plan.changes) for word in _OPERATIONS}
    changes = ", ".join(f"{count} {_OPERATIONS[word]}" for word, count in counts.items() if count)
    ending = plan.sessions in (Sessions.END, Sessions.UNKNOWN)
    words = {Sessions.END: "end", Sessions.UNKNOWN: "may end"}
    return changes or "none", Text(
        words.get(plan.sessions, plan.sessions.value), "bold red" if ending else ""
    )


_OPERATIONS = {"delete": "removed", "replace": "replaced", "update": "changed", "create": "made"}


@fleet.command("refresh")
@_choosing
@click.option("--dry-run", is_flag=True, help="Only tell what is otherwise than the states say.")
def refresh_command(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    labels: Mapping[str, str],
    every: bool,
    parallel: int,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Have Pulumi's states say what there is: what somebody changed or removed by hand."""
    choice = Choice(stacks, labels, every)
    if not dry_run:
        _see_that_it_is_made(choice)
    console = Console(stderr=as_json, highlight=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        found = stacks_here.chosen(stacks_here.members(), choice)
        pulumi_cli.bring(progress)
        options = ["--dry-run"] if dry_run else []
        done = _done_for_each(found, "refresh", [*options, "--found"], parallel, console)
    if as_json:
        _print_json(found, done, lambda stack: {"drift": _drift_in(dict(_texts(done))[stack])})
    else:
        table = _regions_table("What is otherwise than the states say", "Found")
        for member, (child, text) in zip(found, done, strict=True):
            table.add_row(*_names(member), _drift_in_short(child, text))
        console.print(table)
        _tell_drift(done, console)
        _tell_failures(done, console)
    _exit(done)


def _drift_in(text: str) -> list[dict[str, Any]] | None:
    return json.loads(text) if text else None


def _drift_in_short(child: Child, text: str) -> Text:
    if child.code != 0:
        return Text("could not be told, see below", "bold red")
    if not text:
        return Text("never up")
    count = len(fleet_status.changes_in(text))
    return Text(f"{count} otherwise", "yellow") if count else Text("none", "green")


def _tell_drift(done: Sequence[tuple[Child, str]], console: Console) -> None:
    for child, text in done:
        changes = fleet_status.changes_in(text) if text else ()
        if changes:
            console.print(f"\n[bold]{child.stack}[/]", soft_wrap=True)
            console.print(refresh.told(changes), soft_wrap=True)


@fleet.command()
@_choosing
@click.option("--volumes", is_flag=True, help="Remove certificates and keys too, and forget the stacks.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    labels: Mapping[str, str],
    every: bool,
    parallel: int,
    as_json: bool,
    volumes: bool,
    yes: bool,
) -> None:
    """Take regions down. Volumes with certificates and keys stay unless asked for."""
    choice = Choice(stacks, labels, every)
    _see_that_it_is_made(choice)
    console = Console(stderr=as_json, highlight=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        found = stacks_here.chosen(stacks_here.members(), choice)
        what = "with certificates and keys" if volumes else "except for certificates and keys"
        named = ", ".join(member.stack for member in found)
        if not yes:
            _ask(f"Take down {len(found)} regions, {what}: {named}?")
        pulumi_cli.bring(progress)
        options = ["--volumes"] if volumes else []
        done = _done_for_each(found, "down", options, parallel, console)
    if as_json:
        _print_json(found, done, lambda _: {})
    else:
        table = _regions_table("Taken down", "Outcome", "Time")
        for member, (child, _) in zip(found, done, strict=True):
            outcome = Text("done", "green") if child.code == 0 else Text("failed, see below", "bold red")
            table.add_row(*_names(member), outcome, _duration(child.seconds))
        console.print(table)
        _tell_failures(done, console)
    _exit(done)


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise PrerequisiteError("nobody is there to be asked whether to take regions down", "give --yes")
    if not click.confirm(question, err=True):
        raise PrerequisiteError("nothing was taken down", "answer y, or give --yes")


@fleet.command()
@_choosing
@click.option("--drift", is_flag=True, help="Tell what is otherwise than the states say; this takes a while.")
@click.option("--probe/--no-probe", "ask_relays", default=True, help="Ask the relays as clients would.")
def status(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    labels: Mapping[str, str],
    every: bool,
    parallel: int,
    as_json: bool,
    drift: bool,
    ask_relays: bool,
) -> None:
    """Tell how regions are, by default all: up or not, since when, and what clients find of their relays."""
    console = Console(stderr=as_json, highlight=False)
    with errors_for_people(console=console) as progress:
        found = stacks_here.chosen(stacks_here.members(), Choice(stacks, labels, every))
        statuses = fleet_status.of(found, progress, parallel=_READING)
        if ask_relays:
            reports = fleet_status.probed(statuses, progress)
            statuses = [replace(s, report=report) for s, report in zip(statuses, reports, strict=True)]
        done: list[tuple[Child, str]] = []
        if drift:
            known = [
                s.member for s in statuses if s.state not in (fleet_status.NEVER_UP, fleet_status.UNKNOWN)
            ]
            done = _done_for_each(known, "refresh", ["--dry-run", "--found"], parallel, console)
            statuses = _with_drift(statuses, done)
    if as_json:
        click.echo(json.dumps({"regions": [each.as_json() for each in statuses]}, indent=2))
    else:
        _tell_statuses(statuses, console, drift=drift, ask_relays=ask_relays)
        _tell_drift(done, console)
        _tell_failures(done, console)
    sys.exit(0 if all(each.is_well for each in statuses) else FAILED)


def _with_drift(
    statuses: Sequence[fleet_status.Status], done: Sequence[tuple[Child, str]]
) -> list[fleet_status.Status]:
    texts, errors = dict(_texts(done)), {child.stack: child.error() for child, _ in done if child.code != 0}
    return [
        replace(
            each,
            drift=fleet_status.changes_in(texts[each.member.stack]) if texts.get(each.member.stack) else None,
            error=each.error or errors.get(each.member.stack, ""),
        )
        for each in statuses
    ]


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


def _tell_statuses(
    statuses: Sequence[fleet_status.Status], console: Console, *, drift: bool, ask_relays: bool
) -> None:
    more = [*(["Probe"] if ask_relays else []), *(["Drift"] if drift else [])]
    table = _regions_table("Regions", "Id", "Domain", "Host", "State", "Last update", "Resources", *more)
    for each in statuses:
        region = each.member.of_region()
        row: list[str | Text] = [str(region[key] or "") for key in ("id", "domain", "host")]
        row += [
            Text(each.state, _STATE_STYLES.get(each.state, "yellow")),
            (each.last_update or "")[:16].replace("T", " "),
            str(each.resources or ""),
        ]
        row += [_PROBE_WORDS[each.report.status] if each.report else ""] if ask_relays else []
        row += ["" if each.drift is None else str(len(each.drift) or "none")] if drift else []
        table.add_row(*_names(each.member), *row)
    console.print(table)
    reports: list[Report | None] = [each.report for each in statuses]
    for stack, what in fleet_status.broken(reports).items():
        console.print(f"[bold red]{stack} is broken:[/] {what}", soft_wrap=True)
        console.print(f"  what it means, and how to mend it: make probe STACK={stack}", soft_wrap=True)
    for each in statuses:
        if each.error:
            console.print(Text(f"{each.member.stack}: {each.error}"), soft_wrap=True)


def _done_for_each(
    found: Sequence[Member], command: str, options: Sequence[str], parallel: int, console: Console
) -> list[tuple[Child, str]]:
    """Run ``relayctl COMMAND STACK OPTIONS`` for each, ``parallel`` at once; return them and what they found.

    Where ``options`` end with ``--found``, that is in a file that the run writes, and empty if it did not.
    """
    files = {member.stack: rollout.log_file(member.stack, command).with_suffix(".json") for member in found}
    runs = []
    for member in found:
        files[member.stack].unlink(missing_ok=True)
        told = [str(files[member.stack])] if "--found" in options else []
        log = rollout.log_file(member.stack, command)
        runs.append(Child(member.stack, [command, member.stack, *options, *told], log))
    children.run(runs, parallel=parallel, console=console)
    texts = [path.read_text() if (path := files[child.stack]).exists() else "" for child in runs]
    return list(zip(runs, texts, strict=True))


def _texts(done: Sequence[tuple[Child, str]]) -> list[tuple[str, str]]:
    return [(child.stack, text) for child, text in done]


def _regions_table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("Region", "Stack", *headings):
        table.add_column(heading, overflow="fold")
    return table


def _names(member: Member) -> tuple[str, str]:
    return str(member.of_region()["code"] or ""), member.stack


def _tell_failures(done: Sequence[tuple[Child, str]], console: Console) -> None:
    for child, _ in done:
        if child.code != 0:
            console.print(f"\n[bold]{child.stack}[/], failed:", soft_wrap=True)
            console.print(Text(_indented(child.error())), soft_wrap=True)
            console.print(Text(f"  all that it said: {child.log}"), soft_wrap=True)


def _print_json(
    found: Sequence[Member],
    done: Sequence[tuple[Child, str]],
    more: Callable[[str], Mapping[str, Any]],
) -> None:
    regions = [
        {
            **member.of_region(),
            "outcome": (Outcome.DONE if child.code == 0 else Outcome.FAILED).value,
            "seconds": round(child.seconds, 1),
            "error": "" if child.code == 0 else child.error(),
            "log": str(child.log),
            **more(child.stack),
        }
        for member, (child, _) in zip(found, done, strict=True)
    ]
    click.echo(json.dumps({"regions": regions}, indent=2))


def _exit(done: Sequence[tuple[Child, str]]) -> None:
    sys.exit(FAILED if any(child.code != 0 for child, _ in done) else 0)
