"""The relays that there are to ask: those of stacks that are up, or the nodes of a DERP map."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pulumi import automation

import probe
from relayctl import hosts, relay_check
from relayctl.command import make_command, where
from relayctl.preflight import Known
from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.pulumi_process import PulumiProcess
from relayctl.stack import StackMissingError, UpdateFailedError
from settings import Settings, SettingsError, read_stack_file
from settings.base import PROJECT_FOLDER
from settings.reader import stack_names

_ROOT_RESOURCE = "pulumi:pulumi:Stack"


@dataclass(frozen=True)
class StackRelay:
    """The relay of a stack that is up, with the stack's settings and outputs."""

    stack: str
    settings: Settings
    outputs: Mapping[str, Any]
    relay: probe.Relay


@dataclass(frozen=True)
class UnknownRelay:
    """The relay of a stack that nothing can be asked of, and why: ``error`` says how to mend it."""

    stack: str
    error: PrerequisiteError | SettingsError


def of_stacks(
    names: Sequence[str], progress: Progress, *, parallel: int, with_roots: bool = True
) -> tuple[list[StackRelay], list[UnknownRelay]]:
    """Return the relays of the stacks ``names``, by default of all that are up, and what cannot be known.

    Read are the stack's file, the outputs in Pulumi's state, and what the last
    ``up`` from this folder left: the root of Caddy's own authority and the relay's
    key; not the root unless ``with_roots``, for who opens no TLS connection. One
    stack that cannot be read takes nothing from the others. No passphrase is
    needed: no secret is read.
    """
    there = stack_names()
    if missing := [stack for stack in names if stack not in there]:
        raise PrerequisiteError(
            f"stacks/Pulumi.{missing[0]}.yaml is not there",
            f"name stacks that are: {', '.join(there) or 'none'}",
        )
    exported = state_reader(progress)

    def known(stack: str) -> StackRelay | UnknownRelay | None:
        try:
            return of_state(stack, exported(stack), with_root=with_roots)
        except StackMissingError as error:
            return UnknownRelay(stack, error) if names else None
        except (PrerequisiteError, SettingsError) as error:
            return UnknownRelay(stack, error)

    wanted = list(dict.fromkeys(names)) or there
    with progress.step("Reading which relays there are"), ThreadPoolExecutor(parallel) as pool:
        found = [each for each in pool.map(known, wanted) if each is not None]
    return (
        [each for each in found if isinstance(each, StackRelay)],
        [each for each in found if isinstance(each, UnknownRelay)],
    )


def of_state(stack: str, deployment: Mapping[str, Any], *, with_root: bool = True) -> StackRelay:
    """Return the relay of a stack whose state is ``deployment``, ``with_root`` to verify it by.

    Raises ``StackMissingError`` where the stack is not up, ``SettingsError`` for its file.
    """
    resources = deployment.get("resources") or []
    outputs: Mapping[str, Any] = next(
        (resource.get("outputs") or {} for resource in resources if resource["type"] == _ROOT_RESOURCE), {}
    )
    # Outputs outlive the relay where `down` has left volumes with certificates and keys.
    if "derpMapRegion" not in outputs or not Known.from_deployment(deployment).containers:
        raise StackMissingError(f"the stack {stack} is not up", make_command("up", stack))
    settings = read_stack_file(stack)
    return StackRelay(
        stack,
        settings,
        outputs,
        relay_check.relay_of(
            settings,
            hosts.addresses(settings, outputs),
            _root(stack, settings) if with_root else None,
            relay_check.noted_key(stack),
        ),
    )


def state_reader(progress: Progress) -> Callable[[str], Mapping[str, Any]]:
    """Return what reads the state of a stack, as Pulumi exports it; it may be called by many threads.

    `pulumi stack output` asks for the passphrase first, whatever it is to show; an
    export does not. The call raises ``StackMissingError`` where Pulumi knows of no
    such stack, ``UpdateFailedError`` if the state cannot be read.
    """
    cli = pulumi_cli.bring(progress)
    # The command is found by PATH.
    os.environ["PATH"] = cli.environment["PATH"]
    command = PulumiProcess(progress)

    def exported(stack: str) -> Mapping[str, Any]:
        arguments = ["stack", "export", "--stack", stack]
        try:
            text = command.run(arguments, str(PROJECT_FOLDER), cli.environment).stdout
        except automation.StackNotFoundError as error:
            raise StackMissingError(f"Pulumi knows of no stack {stack}", make_command("up", stack)) from error
        except automation.CommandError as error:
            said = str(error).rpartition("stderr:")[2].strip()
            raise UpdateFailedError(
                f"Pulumi cannot read the state of {stack}: {said}",
                "see Pulumi's message; docs/state.md tells of backends",
            ) from error
        return json.loads(text).get("deployment") or {}

    return exported


def _root(stack: str, settings: Settings) -> str | None:
    """Return the root that the relay's certificates end in, ``None`` where this system trusts it."""
    if settings.certificate.source != "internal":
        return None
    path = relay_check.root_certificate(stack)
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"{where(stack)} has certificate.source internal, and that authority's root is not in {path}",
            f"{make_command('up', stack)}   copies it there; or copy that file from where it was brought up",
        ) from error
