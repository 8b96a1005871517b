"""The command line: ``python -m relayctl``, which ``make up`` and ``make down`` call."""

from __future__ import annotations

import contextlib
import json
import shlex
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import docker
import docker.errors

import probe
from delivery import DeliveryError, forget_content
from images import built_image
from probe.__main__ import findings_table
from relayctl import (
    command,
    failure,
    hetzner,
    hosts,
    local_stack,
    preflight,
    relay_check,
    rollback,
    upstreams,
)
from relayctl.command import make_command, where
from relayctl.fleet import SANDBOX
from relayctl.fleet_command import fleet
from relayctl.map_command import map_command
from relayctl.plan import Plan, Sessions
from relayctl.prerequisites import image_contexts, registry
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.probe_command import probe_command
from relayctl.refresh import refresh
from relayctl.stack import RelayStack, StackMissingError, UpdateFailedError, state_copy
from relayctl.whole_file import write_whole
from settings import Settings, SettingsError, read_stack_file
from settings.reader import stack_file
from ssh.connection import Connection


@click.group()
def main() -> None:
    """Run your own Tailscale DERP relays behind Caddy."""


main.add_command(map_command)
main.add_command(probe_command)
main.add_command(fleet)
main.add_command(refresh)


@main.command()
@click.argument("stack", default=local_stack.NAME)
@click.option("--keep-sessions", is_flag=True, help="Change nothing if relay sessions would or may end.")
def up(stack: str, *, keep_sessions: bool) -> None:
    """Bring up the relay of STACK (by default this machine's), and check it as a client would.

    What is missing on this machine is brought: Pulumi, its plugins, a Docker
    Engine, the images. A second run takes seconds. What it changes of a relay that
    is there, and whether sessions end by it, is told before.
    """
    with command.errors_for_people() as progress:
        _write_local_stack(stack, progress)
        settings = read_stack_file(stack)
        host = hosts.of(settings, progress)
        with command.opened(stack, settings, host, progress) as opened:
            settings = host.prepare(opened, where(stack), going_up=True)
            running = _bring_up(opened, host, settings, progress, keep_sessions=keep_sessions)
        _check_and_tell(stack, settings, running, progress)


@main.command()
@click.argument("stack", default=local_stack.NAME)
@click.option("--found", type=click.Path(path_type=Path), help="Write the plan to this file too, as JSON.")
def preview(stack: str, *, found: Path | None) -> None:
    """Tell what `up` would change of STACK, and whether relay sessions would end. Nothing is changed."""
    with command.errors_for_people() as progress:
        if stack == local_stack.NAME and not stack_file(stack).exists():
            progress.say(f"{where(stack)} is not there yet: `{make_command('up', stack)}` writes it.")
            return
        settings = read_stack_file(stack)
        host = hosts.of(settings, progress)
        try:
            with command.opened(stack, settings, host, progress, make=False) as opened:
                plan = _tell_plan(opened, progress, refresh=not _is_as_known(opened, host))
            if found is not None:
                write_whole(found, json.dumps(plan.as_json()))
        except StackMissingError:
            progress.say(f"Pulumi knows of no stack {stack}: `{make_command('up', stack)}` makes all of it.")


@main.command()
@click.argument("stack")
@click.option("--without-volumes", is_flag=True, help="Copy nothing: for a server that cannot be reached.")
def rebuild(stack: str, *, without_volumes: bool) -> None:
    """Make the server of STACK anew, with the user data, image and keys that its file says now.

    Its addresses stay, and so do certificates and the relay's key, which are copied
    to this machine meanwhile. The relay is away for as long as a new server takes.
    """
    with command.errors_for_people() as progress:
        settings = read_stack_file(stack)
        host = hosts.of(settings, progress)
        if not isinstance(host, hosts.Server) or settings.host.kind != "hetzner":
            raise PrerequisiteError(
                f"{where(stack)} has host.kind {settings.host.kind}: nothing there can be made anew",
                f"see to the host yourself, then: {make_command('up', stack)}",
            )
        with command.opened(stack, settings, host, progress, make=False) as opened:
            settings = host.prepare(opened, where(stack), going_up=True)
            _bring_images(stack, settings, host.goarch, None, progress)
            hetzner.check_can_be_deleted(opened.deployment(), where(stack))
            with progress.step(f"Removing the server of {stack}"), opened.changes_noted():
                host.remove(opened, copy_volumes=not without_volumes)
            running = _bring_up(opened, host, settings, progress)
        _check_and_tell(stack, settings, running, progress)


@main.command()
@click.argument("stack", default=local_stack.NAME)
@click.option("--volumes", is_flag=True, help="Remove certificates and keys too, and forget the stack.")
def down(stack: str, *, volumes: bool) -> None:
    """Remove what `up` made of STACK. Volumes with certificates and keys stay unless asked for."""
    with command.errors_for_people() as progress:
        if not stack_file(stack).exists() and not state_copy(stack).exists():
            progress.say(f"{where(stack)} is not there: nothing was ever brought up from here.")
            return
        try:
            settings = read_stack_file(stack)
            host = hosts.of(settings, progress)
        except SettingsError as error:
            if _has_a_server(stack):
                raise
            # What is up is in the state: a folder that has gone since is no reason to leave it up.
            progress.warn(f"Taking down by the state alone, as the settings are no longer good: {error}")
            settings, host = None, hosts.ThisMachine(None, progress)
        try:
            with command.opened(stack, settings, host, progress, make=False) as opened:
                settings = host.prepare(opened, where(stack), going_up=False) if settings else None
                with host.engine(opened) as client:
                    known = _true_state(opened, client, progress)
                    if client is not None:
                        preflight.check_networks_are_free(known.networks, client)
                if volumes:
                    hetzner.check_can_be_deleted(opened.deployment(), where(stack))
                with progress.step(f"Taking down the stack {stack}"), opened.changes_noted():
                    opened.destroy(volumes=volumes)
                _clear_up(opened, host, settings, progress, volumes=volumes)
        except StackMissingError:
            progress.say(f"Pulumi knows of no stack {stack}: there is nothing to take down.")
            return
        progress.say(f"The stack {stack} is down.")
        if volumes:
            progress.say("Its volumes are gone too.")
            # a copy for the sandbox goes with it
            if not stack.startswith(SANDBOX):
                progress.say(f"{where(stack)} is kept; delete it to start from nothing.")
        else:
            server = ", and so is the server that they are on, which costs what it did"
            progress.say(
                "Volumes with certificates and keys are kept"
                f"{server if settings and settings.host.kind == 'hetzner' else ''};"
                f" `{make_command('down', stack)} ARGS=--volumes` removes them."
            )


@main.command()
@click.argument("stack", default=local_stack.NAME)
def setup(stack: str) -> None:
    """Bring what STACK needs on this machine, and change nothing that runs."""
    with command.errors_for_people() as progress:
        _write_local_stack(stack, progress)
        settings = read_stack_file(stack)
        host = hosts.of(settings, progress)
        with command.opened(stack, settings, host, progress) as opened:
            settings = host.prepare(opened, where(stack), going_up=True)
            with host.engine(opened) as client:
                _bring_images(stack, settings, host.goarch, client, progress)


@dataclass(frozen=True)
class _Running:
    """A stack that is up: outputs, the addresses to ask, and the root of its own authority, if any."""

    outputs: dict[str, Any]
    addresses: list[str]
    root: Path | None


def _bring_up(
    opened: RelayStack,
    host: hosts.StackHost,
    settings: Settings,
    progress: Progress,
    *,
    keep_sessions: bool = False,
) -> _Running:
    """Bring the stack up; tell before what that changes of a relay that is there.

    With ``keep_sessions``, raises ``PrerequisiteError`` instead of ending sessions.
    """
    stack = opened.name
    with host.engine(opened) as client:
        _bring_images(stack, settings, host.goarch, client, progress)
        known = _see_that_it_fits(opened, settings, client, progress)
        images = None if client is None else preflight.images_by_reference(client)
    if known.containers:
        with _failures_explained(opened, host, settings):
            # Providers have nobody to ask before the engine answers; the update waits for it.
            plan = _tell_plan(opened, progress, images) if images is not None else None
        if keep_sessions:
            _check_sessions_are_kept(stack, plan)
    host.put_back(opened)
    former = rollback.images_of(opened.deployment())
    try:
        with (
            _failures_explained(opened, host, settings),
            progress.step(f"Bringing up the stack {stack}"),
            opened.changes_noted(),
        ):
            present = opened.up()
    except UpdateFailedError as error:
        changed = rollback.changed(former, opened.deployment())
        _go_back(opened, host, settings, changed, progress, because=error)
        raise
    _go_back(opened, host, settings, rollback.changed(former, present), progress)
    outputs = opened.outputs()
    with host.engine(opened) as client:
        if client is None:
            raise PrerequisiteError(
                f"the engine of {stack} does not answer any more", "run it again: it waits for it"
            )
        root = relay_check.save_root_certificate(settings, stack, client)
        try:
            for warning in upstreams.unanswered(settings, stack, host.goarch, client):
                progress.warn(warning)
        except DeliveryError as error:
            # the relay is up: this is advice
            progress.warn(str(error))
    return _Running(outputs, hosts.addresses(settings, outputs), root)


def _go_back(  # noqa: PLR0913 - what there was, what there is, and why
    opened: RelayStack,
    host: hosts.StackHost,
    settings: Settings,
    changed: Mapping[str, rollback.Image],
    progress: Progress,
    *,
    because: UpdateFailedError | None = None,
) -> None:
    """Go back to the former images of containers that do not run with the new ones, which are ``changed``.

    Nothing is done where all run, or what failed is not for the image. Raises
    ``PrerequisiteError`` once it is back, ``UpdateFailedError`` if that fails.
    """
    if not changed:
        return
    with host.engine(opened) as client:
        failed = rollback.replaced_in_vain(changed, settings, client) if client is not None else {}
        if not failed or client is None:
            return
        reason = because or failure.explained(
            UpdateFailedError(f"stack {opened.name}: it came up, and does not stay up", ""),
            opened.name,
            settings,
            client,
        )
    images = ", ".join(image.name for image in failed.values())
    progress.warn(f"New images of {' and '.join(failed)} do not run. Going back to {images}.")
    former_settings = rollback.settings_with(opened.name, failed)
    try:
        with progress.step(f"Bringing the stack {opened.name} back"), opened.changes_noted():
            opened.up(settings_from=former_settings)
    except UpdateFailedError as error:
        raise UpdateFailedError(
            f"{reason.what}\nGoing back to {images} failed too: {error.what}", error.mend
        ) from error
    finally:
        former_settings.unlink(missing_ok=True)
    raise PrerequisiteError(
        f"{reason.what}\nThe relay is back on {images}; {where(opened.name)} still names the new image",
        f"see why it does not run, or take the edit back; then: {make_command('up', opened.name)}",
    ) from because


@contextlib.contextmanager
def _failures_explained(opened: RelayStack, host: hosts.StackHost, settings: Settings) -> Iterator[None]:
    """Add what the engine shows to an ``UpdateFailedError`` of the block."""
    try:
        yield
    except UpdateFailedError as error:
        with host.engine(opened) as client:
            if client is None:
                raise
            raise failure.explained(error, opened.name, settings, client) from error


def _tell_plan(
    opened: RelayStack,
    progress: Progress,
    images: Mapping[str, str] | None = None,
    *,
    refresh: bool = False,
) -> Plan:
    """Show what an update would change of a host that has ``images``, and return it."""
    with progress.step(f"Seeing what changes in the stack {opened.name}"):
        plan = Plan.of(opened.preview(refresh=refresh), images)
    progress.console.print(plan.told(), soft_wrap=True)
    return plan


def _check_sessions_are_kept(stack: str, plan: Plan | None) -> None:
    """Raise ``PrerequisiteError`` if sessions would end, or may; without ``plan`` nobody knows."""
    if plan is not None and plan.sessions not in (Sessions.END, Sessions.UNKNOWN):
        return
    nobody_knows = ("the engine does not answer, so that nobody can tell before",)
    reasons = nobody_knows if plan is None else plan.reasons
    would = "would" if plan is not None and plan.sessions is Sessions.END else "may"
    raise PrerequisiteError(
        "\n  ".join([f"relay sessions of {stack} {would} end; nothing was changed", *reasons]),
        f"take the edit back; or run `{make_command('up', stack)}` without --keep-sessions, when it suits",
    )


def _is_as_known(opened: RelayStack, host: hosts.StackHost) -> bool:
    """Tell whether this machine has what the state knows of; of a server only an update asks that."""
    if not isinstance(host, hosts.ThisMachine):
        return True
    with host.engine(opened) as client:
        known = preflight.Known.from_deployment(opened.deployment())
        return client is None or known.all_there(client)


def _check_and_tell(stack: str, settings: Settings, running: _Running, progress: Progress) -> None:
    """Check the relay as a client would; tell what next.

    Raises ``RelayNotRightError`` if it is not as it should be.
    """
    addresses = running.addresses
    findings = relay_check.check(settings, addresses, running.root, progress)
    title = f"{settings.domain}, as clients see it"
    statuses = {finding.status for finding in findings}
    if statuses == {probe.Status.SKIPPED}:
        raise command.RelayNotRightError(
            "the relay runs, but this machine has no route to"
            f" {' or '.join(addresses)}, so it could not be checked",
            "see from another machine: relayctl probe --derp-map (docs/probe.md)",
        )
    if not probe.is_up(findings):
        progress.console.print(findings_table(title, findings))
        elsewhere = relay_check.records_that_lead_elsewhere(settings, addresses)
        if elsewhere is not None:
            raise command.RelayNotRightError(
                f"the relay runs, but it can have no certificate yet: {elsewhere}",
                f"make A and AAAA records for {settings.domain}: {', '.join(addresses)}; then run it again",
            )
        raise command.RelayNotRightError(
            "the relay runs, but not all is right (see the table)",
            f"do what the table says; {_docker(stack, settings, addresses)} logs"
            f" {settings.caddy.container_name}, and the same for {settings.derper.container_name}, may tell"
            " more; then run it again",
        )
    _note_key(stack, findings, progress)
    progress.console.print(relay_check.summary(findings, title))
    warnings = [finding for finding in findings if finding.status is probe.Status.WARNING]
    if warnings:
        progress.console.print(findings_table(f"{settings.domain}: what to see to soon", warnings))
    skipped = {finding.check.value for finding in findings if finding.status is probe.Status.SKIPPED}
    if skipped:
        progress.say(f"({', '.join(sorted(skipped))}: not to be judged from this machine)")
    _tell_what_next(stack, settings, running, progress)


def _note_key(stack: str, findings: list[probe.Finding], progress: Progress) -> None:
    """Note the relay's key for later probes; tell if it is another one than before."""
    known, key = relay_check.noted_key(stack), relay_check.note_key(stack, findings)
    if known is not None and key is not None and key != known:
        progress.warn(
            f"The relay has another key than at the last `{make_command('up', stack)}`, as after a new volume"
            " derp_data. Clients learn it by themselves; if nobody made it anew, see who did."
        )


def _docker(stack: str, settings: Settings, addresses: list[str]) -> str:
    """Return the command ``docker`` for the stack's engine, as a user types it."""
    if settings.host.kind == "local":
        return "docker"
    user = settings.host.user if settings.host.kind == "ssh" else "root"
    return shlex.join([*Connection(stack, user, addresses[0]).command(), "docker"])


def _has_a_server(stack: str) -> bool:
    """Tell whether the stack's last known state has an engine elsewhere."""
    copy = state_copy(stack)
    return copy.exists() and '"ssh://' in copy.read_text()


def _write_local_stack(stack: str, progress: Progress) -> None:
    if stack == local_stack.NAME and not stack_file(stack).exists():
        local_stack.write_if_missing(hosts.ThisMachine(None, progress).found, progress)


def _see_that_it_fits(
    opened: RelayStack, settings: Settings, client: docker.DockerClient | None, progress: Progress
) -> preflight.Known:
    """Raise ``PrerequisiteError`` if the engine has what is in the way; tell what is taken over.

    Without ``client`` there is no engine yet, and so nothing on it. Returns what the state knows of.
    """
    known = _true_state(opened, client, progress)
    if client is None:
        return known
    preflight.check(settings, known, client, where(opened.name))
    going = preflight.networks_that_would_go(opened.name, settings, known, client)
    preflight.check_networks_are_free(going, client)
    adopted = preflight.adopted_volumes(opened.name, settings, known, client)
    if adopted:
        progress.warn(
            f"Volumes that are there already are used, with what is in them: {', '.join(adopted)}."
            " If they are not this stack's, stop now and set volumes.prefix in"
            f" {where(opened.name)}."
        )
    return known


def _true_state(
    opened: RelayStack, client: docker.DockerClient | None, progress: Progress
) -> preflight.Known:
    """Return what the state knows of, after it and the engine are rid of what an interrupted run left."""
    unfinished = opened.is_unfinished()
    deployment = opened.settle(
        lambda deployment: (
            client is not None and not preflight.Known.from_deployment(deployment).all_there(client)
        )
    )
    known = preflight.Known.from_deployment(deployment)
    if unfinished and client is not None:
        preflight.remove_leftovers(opened.name, known, client, progress)
    return known


def _bring_images(
    stack: str, settings: Settings, goarch: str, client: docker.DockerClient | None, progress: Progress
) -> None:
    """Fill the folders of images that are built; see that the others are there or can be pulled."""
    image_contexts.fill("deliver", progress, goarch=goarch)
    if settings.derper.builds:
        image_contexts.fill("derper", progress, goarch=goarch, version=settings.derper.version)
    if settings.caddy.builds:
        image_contexts.fill("caddy", progress, goarch=goarch, version=settings.caddy.version)
    if client is None or settings.host.kind != "local":
        # A server asks the registry itself, which another machine cannot answer for.
        return
    for key, container in (("derper", settings.derper), ("caddy", settings.caddy)):
        if container.builds:
            continue
        try:
            client.images.get(container.image)
        except docker.errors.ImageNotFound:
            answer = registry.answers(container.image)
            if not answer:
                proxy = urllib.request.getproxies().get("https")
                by = f", asked through the proxy {urlsplit(proxy).netloc.rpartition('@')[2]}" if proxy else ""
                raise PrerequisiteError(
                    f"{where(stack)}: {key}.image: {container.image} is not on this machine, and"
                    f" {answer.host} does not answer ({answer.reason}{by})",
                    f"mend the network{' or the proxy settings' if proxy else ''}, or set {key}.image to"
                    " build; nothing was changed",
                ) from None


def _clear_up(
    opened: RelayStack,
    host: hosts.StackHost,
    settings: Settings | None,
    progress: Progress,
    *,
    volumes: bool,
) -> None:
    """Remove what a stack that is down leaves here, beside its volumes."""
    if volumes:
        host.forget(opened)
        forget_content(opened.name)
        relay_check.forget_key(opened.name)
    if settings is None or settings.host.kind != "local":
        return
    with host.engine(opened) as client:
        if client is not None:
            _remove_built_images(settings, host.goarch, client, progress)


def _remove_built_images(
    settings: Settings, goarch: str, client: docker.DockerClient, progress: Progress
) -> None:
    """Remove the images that were built for the stack, unless another one runs them."""
    images = []
    if not client.api.containers(quiet=True, all=True, filters={"label": preflight.STACK_LABEL}):
        # No container has it while nothing is delivered; other stacks' deliveries need it.
        images.append(built_image("deliver", goarch))
    if settings.derper.builds:
        images.append(built_image("derper", goarch, settings.derper.version))
    if settings.caddy.builds:
        images.append(built_image("caddy", goarch, settings.caddy.version))
    for image in images:
        try:
            client.images.remove(image.name)
        except docker.errors.ImageNotFound:
            continue
        except docker.errors.APIError as error:
            progress.say(f"The image {image.name} is kept: {error.explanation}")


def _tell_what_next(stack: str, settings: Settings, running: _Running, progress: Progress) -> None:
    region, url = running.outputs["derpMapRegion"], running.outputs["url"]
    policy = {"derpMap": {"Regions": {str(region["RegionID"]): region}}}
    progress.console.print(f"\n[bold green]The relay is up:[/] {url}", soft_wrap=True)
    if running.root is not None:
        port, address = settings.caddy.https_port, running.addresses[0]
        progress.say(
            "Look at its page:\n"
            f"  curl --cacert {running.root} --resolve {settings.domain}:{port}:{address} {url}/"
        )
    progress.say("Its DERP map region, for a tailnet's policy file (headscale: docs/derp-map.md):")
    progress.say(json.dumps(policy, indent=2))
    if stack.startswith(SANDBOX):
        # What is next there is told by `make sandbox-up`, whose state and passphrase are its own.
        return
    progress.say(
        "What next:\n"
        f"  edit {where(stack)} and run `{make_command('up', stack)}` again: more sites, other names"
        " (docs/settings.md)\n"
        f"  see at any time whether it works: {make_command('probe', stack)} (docs/probe.md)"
    )
    if settings.host.kind == "local":
        progress.say('  a relay for your tailnet: README, "A real server"')
    progress.say(f"  remove all this: {make_command('down', stack)}")
