"""One stack of the program, driven through Pulumi's Automation API."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psutil
from pulumi import automation

from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.prerequisites.pulumi_cli import PulumiCli
from settings.model import PROJECT_FOLDER

T = TypeVar("T")

# Seconds to wait for another update of the same stack, which may be an interrupted one's last breath.
_LOCK_WAIT = 120.0
# The file backend's account of a lock: "created by USER@HOST (pid PID) at TIME".
_LOCK_HOLDER = re.compile(r"created by (?P<user>[^@\s]+)@(?P<host>\S+) \(pid (?P<pid>\d+)\)")

# Pulumi's remark on programs that were brought: told once, at set-up, by where they are from.
_ON_PATH = re.compile(r"using pulumi-\S+ from \$PATH")


class UpdateFailedError(PrerequisiteError):
    """Pulumi could not do what it was asked; its own messages have been shown."""


class RelayStack:
    """A stack that exists, with what Pulumi needs in its environment."""

    def __init__(self, name: str, cli: PulumiCli, environment: Mapping[str, str], progress: Progress) -> None:
        """Select the stack ``name``, or make it; ``environment`` is added to the command line's own.

        Raises ``UpdateFailedError`` with Pulumi's message if it cannot.
        """
        self.name = name
        self.progress = progress
        # The command is found by PATH, as its language host is.
        os.environ["PATH"] = cli.environment["PATH"]
        self._command = automation.PulumiCommand(skip_version_check=True)
        options = automation.LocalWorkspaceOptions(
            work_dir=str(PROJECT_FOLDER),
            pulumi_command=self._command,
            env_vars={**cli.environment, **environment},
        )
        try:
            workspace = automation.LocalWorkspace(**vars(options))
            self._stack = automation.Stack.create_or_select(name, workspace)
        except automation.CommandError as error:
            raise UpdateFailedError(
                f"Pulumi cannot open the stack {name}: {_message(error)}",
                "see Pulumi's message; docs/state.md tells of backends and passphrases",
            ) from error

    def deployment(self) -> Mapping[str, Any]:
        """Return the stack's state as Pulumi exports it."""
        exported = self._stack.export_stack().deployment
        return exported or {}

    def up(self) -> None:
        """Bring the stack up; show what changes. Raises ``UpdateFailedError`` if that fails."""
        self._locked(
            lambda: self._stack.up(on_output=self._show, suppress_outputs=True, color="never"),
            "the update failed; what was done is kept, and the next one goes on from there",
        )

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs by name."""
        return {name: output.value for name, output in self._stack.outputs().items()}

    def destroy(self, *, volumes: bool) -> None:
        """Remove what the stack made; protected volumes, and then the stack, only with ``volumes``."""
        if volumes:
            self._run("state", "unprotect", "--all", "--yes")
        self._locked(
            lambda: self._stack.destroy(
                on_output=self._show, suppress_outputs=True, color="never", exclude_protected=not volumes
            ),
            "not all could be removed; run it again when Docker's message above is mended",
        )
        if volumes:
            # Its file stays: it is the user's.
            self._run("stack", "rm", self.name, "--yes", "--preserve-config")

    def _run(self, *arguments: str) -> None:
        where = [] if "rm" in arguments else ["--stack", self.name]
        environment = dict(self._stack.workspace.env_vars)
        self._locked(
            lambda: self._command.run([*arguments, *where], str(PROJECT_FOLDER), environment),
            f"`pulumi {' '.join(arguments)}` failed",
        )

    def _show(self, line: str) -> None:
        # Lines that start with @ are what a terminal shows as moving dots.
        if line.strip() and not line.startswith("@") and not _ON_PATH.search(line):
            self.progress.say(f"  {line.rstrip()}")

    def _locked(self, action: Callable[[], T], failure: str) -> T:
        """Do ``action``; wait for another update's lock, or take it over from a dead one."""
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                return action()
            except automation.ConcurrentUpdateError as error:
                self._wait_or_take_over(error, deadline)
            except automation.CommandError as error:
                raise UpdateFailedError(f"stack {self.name}: {_message(error)}", failure) from error

    def _wait_or_take_over(self, error: automation.ConcurrentUpdateError, deadline: float) -> None:
        held = _LOCK_HOLDER.search(str(error))
        here = held is not None and held["host"] == socket.gethostname()
        if held is not None and here and not psutil.pid_exists(int(held["pid"])):
            self.progress.say(
                f"An update of {self.name} was interrupted (pid {held['pid']}); going on from there."
            )
            self._stack.cancel()
            return
        if not here or time.monotonic() > deadline:
            by = f"{held['user']}@{held['host']} (pid {held['pid']})" if held else "another update"
            raise UpdateFailedError(
                f"the stack {self.name} is locked by {by}",
                f"wait for it to end; if it has, run: pulumi cancel --stack {self.name}",
            ) from error
        with self.progress.step(
            f"Waiting for another update of {self.name} (pid {held['pid'] if held else '?'})"
        ):
            time.sleep(2)


def _message(error: automation.CommandError) -> str:
    """Return the lines that say what went wrong, without Pulumi's account of its own call."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines()]
    errors = [line for line in lines if line.startswith("error:")]
    return "\n  ".join(dict.fromkeys(errors)) or json.dumps(text[-400:])
