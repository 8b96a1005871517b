"""``relayctl fleet``: every region, or those chosen, each by a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from rich.console import Console

from relayctl import children, fleet_status, fleet_told, rollout
from relayctl import fleet as stacks_here
from relayctl.children import Child
from relayctl.command import FAILED, errors_for_people
from relayctl.fleet import Choice, Member
from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.rollout import Record

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Exports of states at once: each is a process of Pulumi's, which takes a core for half a second.
_READING = 4


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
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        everyone = stacks_here.members()
        record = _last_record() if resume else None
        if record is not None:
            choice = Choice([part.stack for part in record.parts])
        found = stacks_here.chosen(everyone, choice)
        stacks_here.check(everyone, found)
        if not resume:
            _warn_of_what_is_left({member.stack for member in found}, progress)
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
            if as_json:
                fleet_told.rollout_as_json(rolling.record, found)
            else:
                fleet_told.rollout(rolling.record, found, console)
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


def _warn_of_what_is_left(stacks: Collection[str], progress: Progress) -> None:
    """Tell which stacks the last rollout left that are not among ``stacks``: its record goes."""
    last = Record.load()
    left = [part.stack for part in last.left() if part.stack not in stacks] if last else []
    if left:
        progress.warn(f"The last rollout did not get to its end: {', '.join(left)}, left out this time.")


def _with_what_is_broken(record: Record, found: Sequence[Member], progress: Progress) -> Record:
    """Note of the relays that are up and broken already that they are; tell of them."""
    left = {part.stack for part in record.left()}
    wanted = [member for member in found if member.stack in left]
    statuses = fleet_status.of(wanted, progress, parallel=_READING)
    for stack, what in fleet_status.broken(fleet_status.probed(statuses, progress)).items():
        progress.warn(f"{stack} is broken already, before the update: {what}")
        record = record.with_part(stack, before=what)
    return record


@fleet.command()
@_choosing
def preview(
    stacks: tuple[str, ...], *, labels: Mapping[str, str], every: bool, parallel: int, as_json: bool
) -> None:
    """Tell what `up` would change of each region, by default of all, and whether relay sessions would end."""
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(console=console) as progress:
        found = stacks_here.chosen(stacks_here.members(), Choice(stacks, labels, every))
        pulumi_cli.bring(progress)
        done = _done_for_each(found, ["preview"], parallel, console, finds=True)
    if as_json:
        fleet_told.as_json(found, done, "plan")
    else:
        fleet_told.plans(found, done, console)
    _exit(done)


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
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        found = stacks_here.chosen(stacks_here.members(), choice)
        pulumi_cli.bring(progress)
        options = ["--dry-run"] if dry_run else []
        done = _done_for_each(found, ["refresh", *options], parallel, console, finds=True)
    if as_json:
        fleet_told.as_json(found, done, "drift")
    else:
        fleet_told.drift(found, done, console)
    _exit(done)


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
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(console=console) as progress, rollout.only_one(progress):
        found = stacks_here.chosen(stacks_here.members(), choice)
        what = "with certificates and keys" if volumes else "except for certificates and keys"
        named = ", ".join(member.stack for member in found)
        if not yes:
            _ask(f"Take down {len(found)} regions, {what}: {named}?")
        pulumi_cli.bring(progress)
        options = ["--volumes"] if volumes else []
        done = _done_for_each(found, ["down", *options], parallel, console)
    if as_json:
        fleet_told.as_json(found, done, "")
    else:
        fleet_told.taken_down(found, done, console)
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
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(console=console) as progress:
        found = stacks_here.chosen(stacks_here.members(), Choice(stacks, labels, every))
        statuses = fleet_status.of(found, progress, parallel=_READING)
        if ask_relays:
            reports = fleet_status.probed(statuses, progress)
            statuses = [replace(s, report=report) for s, report in zip(statuses, reports, strict=True)]
        done: list[Child] = []
        if drift:
            known = [
                s.member for s in statuses if s.state not in (fleet_status.NEVER_UP, fleet_status.UNKNOWN)
            ]
            done = _done_for_each(known, ["refresh", "--dry-run"], parallel, console, finds=True)
            statuses = _with_drift(statuses, done)
    if as_json:
        fleet_told.statuses_as_json(statuses)
    else:
        fleet_told.statuses(statuses, console, with_drift=drift, probed=ask_relays)
        fleet_told.changes_found(done, console)
    sys.exit(0 if all(each.is_well for each in statuses) else FAILED)


def _with_drift(statuses: Sequence[fleet_status.Status], done: Sequence[Child]) -> list[fleet_status.Status]:
    runs = {child.stack: child for child in done}
    return [
        replace(
            each,
            drift=fleet_told.changes_of(child),
            error=each.error or ("" if child.code == 0 else child.error()),
        )
        if (child := runs.get(each.member.stack))
        else each
        for each in statuses
    ]


def _done_for_each(
    found: Sequence[Member],
    command: Sequence[str],
    parallel: int,
    console: Console,
    *,
    finds: bool = False,
) -> list[Child]:
    """Run the ``command`` with each stack, ``parallel`` at once; return the runs in the order of ``found``.

    One that ``finds`` something writes that to a file.
    """
    name, *options = command
    runs = []
    for member in found:
        log = rollout.log_file(member.stack, name)
        runs.append(
            Child(
                member.stack,
                [name, member.stack, *options],
                log,
                log.with_suffix(".json") if finds else None,
            )
        )
    children.run(runs, parallel=parallel, console=console)
    return runs


def _exit(done: Sequence[Child]) -> None:
    sys.exit(FAILED if any(child.code != 0 for child in done) else 0)
