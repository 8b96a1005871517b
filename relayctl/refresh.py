"""The command ``relayctl refresh``: what there is, against what Pulumi's state says that there is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from relayctl import command, hetzner, hosts, local_stack
from relayctl.command import make_command, where
from relayctl.plan import Change, differences
from relayctl.preflight import Known
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.stack import RelayStack, StackMissingError
from relayctl.whole_file import write_whole
from settings import Settings, read_stack_file

# What Pulumi's state calls otherwise.
_WORDS = {"mustRun": "it does not run"}


@click.command()
@click.argument("stack", default=local_stack.NAME)
@click.option("--dry-run", is_flag=True, help="Only tell what is otherwise than the state says.")
@click.option("--found", type=click.Path(path_type=Path), help="Write what was found to this file, as JSON.")
def refresh(stack: str, *, dry_run: bool, found: Path | None) -> None:
    """Have Pulumi's state of STACK say what there is: what somebody changed or removed by hand.

    Nothing but the state is changed; the next `up` puts back what is otherwise than the stack's
    file says.
    """
    with command.errors_for_people() as progress:
        settings = read_stack_file(stack)
        host = hosts.of(settings, progress)
        try:
            with command.opened(stack, settings, host, progress, make=False) as opened:
                settings = host.look(opened, where(stack))
                changes = _server_that_is_gone(opened, settings)
                if (changes or opened.is_unfinished()) and not dry_run:
                    # What was begun and is not known is found by its labels, before its note goes.
                    host.prepare(opened, where(stack), going_up=False)
                if not changes or not dry_run:
                    _check_engine_answers(opened, host)
                    with progress.step(f"Comparing what {stack} is said to have with what there is"):
                        changes += differences(opened.refresh(dry_run=dry_run))
        except StackMissingError:
            progress.say(f"Pulumi knows of no stack {stack}: `{make_command('up', stack)}` makes all of it.")
            return
        progress.console.print(told(changes), soft_wrap=True)
        if changes:
            kept = "The state is as it was" if dry_run else "The state says so now"
            progress.say(f"{kept}; `{make_command('up', stack)}` puts it back as {where(stack)} has it.")
        if found is not None:
            write_whole(found, json.dumps([change.as_json() for change in changes]))


def told(changes: Sequence[Change]) -> Text:
    """Return for people what a refresh found: a line for each resource that is gone, or not as it was."""
    if not changes:
        return Text("All is as the state says.")
    lines = []
    for change in changes:
        gone = change.operation == "delete"
        how = ", ".join(_WORDS.get(each, each) for each in change.properties)
        lines.append(
            Text.assemble(
                ("  gone     " if gone else "  differs  ", "red" if gone else "cyan"),
                change.name,
                f": {how}" if how and not gone else "",
            )
        )
    return Text("\n").join(lines)


def _server_that_is_gone(opened: RelayStack, settings: Settings) -> tuple[Change, ...]:
    """Return the server if it was deleted behind Pulumi's back, and what was on it with it.

    Docker's provider would ask it for each container, and fail.
    """
    server = hetzner.server_of(opened.deployment())
    if settings.host.kind != "hetzner" or server is None:
        return ()
    config: Mapping[str, Any] = opened.config_values()
    api = hetzner.client(os.environ.get("HCLOUD_TOKEN") or config.get("hcloud:token"))
    if hetzner.find(api, server) is not None:
        return ()
    return (Change("delete", "the server, with all that was on it", type=hetzner.SERVER),)


def _check_engine_answers(opened: RelayStack, host: hosts.StackHost) -> None:
    known = Known.from_deployment(opened.deployment())
    if not (known.containers or known.volumes or known.networks):
        return
    with host.engine(opened) as client:
        if client is None:
            raise PrerequisiteError(
                f"the engine of {opened.name} does not answer, so that nobody can tell what is on it",
                "see to the host, and whether SSH is let in from here; then run it again",
            )
