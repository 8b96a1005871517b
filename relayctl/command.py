"""What commands that open a stack share: errors for people, Pulumi and its plugins, one run at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import docker.errors
from rich.console import Console

from relayctl import hosts, local_stack, pulumi_process
from relayctl.fleet import SANDBOX
from relayctl.prerequisites import cache, provider_plugins, pulumi_cli
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.stack import RelayStack, run_folder
from settings import Settings, SettingsError
from settings.base import PROJECT_FOLDER
from settings.reader import stack_file

FAILED = 1
"""Exit code of a command that could not do what it was asked."""
RELAY_NOT_RIGHT = 4
"""Exit code of ``up`` and ``rebuild`` where the update is done, and the relay fails its check."""
# what shells tell of a program that Ctrl-C ended: 128 + SIGINT
INTERRUPTED = 130


class RelayNotRightError(PrerequisiteError):
    """The relay runs, and its check failed or could not be made."""


@dataclass(frozen=True)
class _Pulumi:
    cli: pulumi_cli.PulumiCli
    environment: dict[str, str]


@contextlib.contextmanager
def errors_for_people(
    code: int = FAILED,
    console: Console | None = None,
    *,
    interrupted: str = "Interrupted. What is done is kept: the same command goes on from there.",
) -> Iterator[Progress]:
    """Yield the progress to report to; show errors without a trace, and exit with ``code``.

    Both go to ``console``, by default standard output, and so does what is said to
    who ends it by Ctrl-C.
    A ``RelayNotRightError`` exits with `RELAY_NOT_RIGHT`.
    """
    progress = Progress(console)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    pulumi_process.bypass_proxy_on_loopback()
    for number in pulumi_process.ASKED_TO_END:
        signal.signal(number, end)
    try:
        yield progress
    except KeyboardInterrupt:
        progress.say(interrupted)
        sys.exit(INTERRUPTED)
    except (PrerequisiteError, SettingsError) as error:
        progress.console.print("[bold red]error:[/]", end=" ")
        progress.say(str(error))
        sys.exit(RELAY_NOT_RIGHT if isinstance(error, RelayNotRightError) else code)
    except docker.errors.DockerException as error:
        progress.console.print("[bold red]error:[/]", end=" ")
        progress.say(f"Docker: {error}")
        sys.exit(code)


def make_command(target: str, stack: str) -> str:
    """Return the command that a user gives for ``stack``."""
    if stack.startswith(SANDBOX) and target in ("up", "down"):
        return f"make sandbox-{target} REGION={stack.removeprefix(SANDBOX)}"
    return f"make {target}" if stack == local_stack.NAME else f"make {target} STACK={stack}"


def where(stack: str) -> str:
    """Return how errors call the file of ``stack``."""
    return f"stacks/{stack_file(stack).name}"


@contextlib.contextmanager
def _pulumi(settings: Settings | None, progress: Progress) -> Iterator[_Pulumi]:
    """Yield Pulumi with the providers that can be had: the official ones, else the stand-ins."""
    cli = pulumi_cli.bring(progress)
    names = ["docker", "hcloud"] if settings is not None and settings.host.kind == "hetzner" else ["docker"]
    plugins = [provider_plugins.find(name, cli, progress) for name in names]
    with provider_plugins.attached(plugins, progress) as attached:
        yield _Pulumi(cli, attached)


def lock_file(stack: str) -> Path:
    """Return the path of the file whose lock the run has that works on ``stack``, if there is one."""
    return run_folder() / f".the stack {stack}.lock"


@contextlib.contextmanager
def _only_run(stack: str, progress: Progress) -> Iterator[None]:
    """Be the only run for ``stack``: wait for another one, and end what killed ones left running."""
    with cache.locked(lock_file(stack), progress):
        pulumi_process.end_orphans(PROJECT_FOLDER, stack, progress)
        pulumi_process.mark(PROJECT_FOLDER, stack)
        yield


@contextlib.contextmanager
def opened(
    stack: str,
    settings: Settings | None,
    host: hosts.StackHost,
    progress: Progress,
    *,
    make: bool = True,
) -> Iterator[RelayStack]:
    """Yield the stack, ready for Pulumi, as the only run for it; without ``make`` it has to be there.

    Raises as ``RelayStack`` does, and ``PrerequisiteError`` where Pulumi or a plugin cannot be had.
    """
    with _only_run(stack, progress), _pulumi(settings, progress) as pulumi:
        environment = {**pulumi.environment, **host.environment}
        # A context would take precedence over the provider's own host.
        os.environ.pop("DOCKER_CONTEXT", None)
        if stack == local_stack.NAME:
            environment["PULUMI_CONFIG_PASSPHRASE"] = local_stack.passphrase()
        yield RelayStack(stack, pulumi.cli, environment, progress, make=make)
