"""One stack of the program, driven through Pulumi's Automation API."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pulumi import automation

from relayctl import pulumi_process
from relayctl.prerequisites.errors import (
    PrerequisiteError,
    disk_full_explained,
    indented,
    last_lines,
    says_disk_full,
)
from relayctl.prerequisites.progress import Progress
from relayctl.prerequisites.pulumi_cli import PulumiCli
from settings import PROJECT, Settings, settings_from_text
from settings.base import PROJECT_FOLDER

T = TypeVar("T")

# Seconds to wait for another update of the same stack, which may be an interrupted one's last breath.
_LOCK_WAIT = 120.0
_LOCK_POLL = 2.0
# The file backend's account of each lock:
# https://github.com/pulumi/pulumi/blob/v3.250.0/pkg/backend/diy/lock.go
_LOCK_HOLDER = re.compile(
    r"created by (?P<user>.+)@(?P<host>\S+) \(pid (?P<pid>\d+)\) at (?P<time>\S+)", re.MULTILINE
)

# Pulumi's remark on programs that were brought: told once, at set-up, by where they are from.
_ON_PATH = re.compile(r"using pulumi-\S+ from \$PATH")


# What Pulumi's providers put around the message of the service behind them. Bridged ones log it too,
# with where in their source they do.
_WRAPPED = re.compile(
    r"\A\s*((creating|updating|deleting) urn:\S+: )?\d+ errors? occurred:[ ]*\n?"
    r"|^[ \t]*\* ((creating|updating|deleting) urn:\S+: )?(\d+ errors? occurred:[ ]*\n?)?"
    r"|\A\S+\.go:\d+: sdk\.helper_schema: |: provider=\w+@[\w.+-]+\Z",
    re.MULTILINE,
)
_COMPONENT = f"{PROJECT}:components:"
# In a line of progress: the same error is told at the end, whole.
_ERROR_IN_STEP = re.compile(r";? error: .*$")
_COLOR = re.compile(r"<\{%[^%]*%\}>")


# https://github.com/pulumi/pulumi/blob/v3.250.0/pkg/secrets/passphrase/manager.go
_NO_PASSPHRASE = re.compile(r"(?P<missing>passphrase must be set with)|\bincorrect passphrase\b")
# https://github.com/pulumi/pulumi/blob/v3.250.0/pkg/backend/snapshot.go
_STATE_NOT_WRITTEN = "failed to save snapshot"
STATE_DISK_FULL = "make room where Pulumi keeps the state (named above), then run this again: nothing is lost"
# Said of the state; else it is a lock: the file backend reads all that lies in the folder for locks,
# what a full disk or a kill cut short too.
_STATE_NOT_READ = "failed to load checkpoint"
_DAMAGED = re.compile(r"unexpected end of JSON input|invalid character")


def run_folder() -> Path:
    """Return the folder of this checkout for what runs leave to each other; git does not see it."""
    folder = PROJECT_FOLDER / ".relayctl"
    folder.mkdir(exist_ok=True, mode=0o700)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    return folder


def state_copy(stack: str) -> Path:
    """Return the path of the copy of the state of ``stack``, another one for each Pulumi backend."""
    backend = hashlib.sha256(os.environ.get("PULUMI_BACKEND_URL", "").encode()).hexdigest()[:8]
    return run_folder() / f"{stack}-{backend}.json"


def _state_folder() -> Path | None:
    """Return the folder of Pulumi's file backend, or ``None`` where the state is kept elsewhere."""
    url = os.environ.get("PULUMI_BACKEND_URL") or "file://~"
    if not url.startswith("file://"):
        return None
    # Pulumi takes ~ for the account's home folder, whatever HOME is.
    root = re.sub(r"\A~", pwd.getpwuid(os.getuid()).pw_dir, url.removeprefix("file://").partition("?")[0])
    return Path(root) / ".pulumi"


def _remove_cut_short_attributes() -> None:
    """Remove what a kill left empty of the file backend's notes beside its files.

    It puts each file in place whole, but writes the note on its type and sum in
    place, ends with ``EOF`` where that is empty, and goes on without a word where
    it is missing (https://github.com/google/go-cloud/blob/v0.46.0/blob/fileblob/attrs.go).
    """
    folder = _state_folder()
    for pattern in ("meta.yaml.attrs", "stacks/**/*.attrs", "locks/**/*.attrs"):
        for path in folder.glob(pattern) if folder else ():
            with contextlib.suppress(FileNotFoundError):
                if not path.stat().st_size:
                    path.unlink()


class UpdateFailedError(PrerequisiteError):
    """Pulumi could not do what it was asked; the message holds what it says of the reason, once."""


class PassphraseError(UpdateFailedError):
    """Pulumi was given no passphrase, or another one than the stack's: it began nothing."""


class StackMissingError(UpdateFailedError):
    """There is no such stack in Pulumi's backend."""


class RelayStack:
    """A stack that exists, with what Pulumi needs in its environment."""

    def __init__(
        self,
        name: str,
        cli: PulumiCli,
        environment: Mapping[str, str],
        progress: Progress,
        *,
        make: bool = True,
    ) -> None:
        """Select the stack ``name``, or ``make`` it; ``environment`` is added to the command line's own.

        Raises ``StackMissingError`` if there is none to select, ``UpdateFailedError``
        with Pulumi's message if it cannot for another reason.
        """
        self.name = name
        self.progress = progress
        self._environment = environment
        # A preview and its update warn of the same.
        self._warned: set[str] = set()
        self._copy = state_copy(name)
        self._unfinished = self._copy.with_suffix(".unfinished")
        # The command is found by PATH, as its language host is.
        os.environ["PATH"] = cli.environment["PATH"]
        self._command = pulumi_process.PulumiProcess(progress)
        options = automation.LocalWorkspaceOptions(
            work_dir=str(PROJECT_FOLDER),
            pulumi_command=self._command,
            env_vars={**cli.environment, **environment},
        )
        _remove_cut_short_attributes()
        try:
            workspace = automation.LocalWorkspace(**vars(options))
            open_stack = automation.Stack.create_or_select if make else automation.Stack.select
            try:
                self._stack = open_stack(name, workspace)
            except automation.CommandError as error:
                if _STATE_NOT_READ not in str(error) or not self._set_state_aside():
                    raise
                self._stack = automation.Stack.create_or_select(name, workspace)
                if self._copy.exists():
                    self._run("stack", "import", "--file", str(self._copy))
        except automation.StackNotFoundError as error:
            raise StackMissingError(f"there is no stack {name}", f"make up STACK={name}") from error
        except automation.CommandError as error:
            raise self._not_begun(
                f"Pulumi cannot open the stack {name}: {_message(error)}",
                "see Pulumi's message; docs/state.md tells of backends and passphrases",
            ) from error

    def _set_state_aside(self) -> bool:
        """Move a state file that is no JSON out of the way, and tell whether there was one.

        The stack could not be opened again. What was made is in the copy or, if
        the stack was just being made, nothing.
        """
        folder = _state_folder()
        if folder is None:
            return False
        path = folder / "stacks" / PROJECT / f"{self.name}.json"
        try:
            json.loads(path.read_bytes())
        except ValueError:
            aside = self._copy.with_suffix(".damaged")
            self.progress.warn(f"The state of {self.name} was cut short by a kill; it is kept as {aside}.")
            shutil.move(path, aside)
            self._unfinished.touch()
            return True
        except OSError:
            return False
        return False

    def deployment(self) -> Mapping[str, Any]:
        """Return the stack's state as Pulumi exports it; keep a copy of it.

        A state file that is damaged is replaced by the copy: on a full disk the
        file backend puts a file that is cut short in place of the whole one
        (https://github.com/google/go-cloud/blob/v0.46.0/blob/blob.go, WriteAll,
        closes after a write that failed). What was made since is found again by
        its labels and names. Raises ``UpdateFailedError`` if it cannot be read.
        """
        mend = "see Pulumi's message; docs/state.md tells of backends and passphrases"
        try:
            exported = self._run("stack", "export", mend=mend)
        except UpdateFailedError as error:
            if _STATE_NOT_READ not in error.what or not self._copy.exists():
                raise
            self.progress.warn(
                f"The state of {self.name} is damaged, by a disk that was full most likely;"
                f" going on from the copy in {self._copy}."
            )
            self._run("stack", "import", "--file", str(self._copy))
            exported = self._run("stack", "export", mend=mend)
        self._keep(exported)
        return json.loads(exported).get("deployment") or {}

    def _keep(self, exported: str) -> None:
        with disk_full_explained(self._copy):
            unfinished = self._copy.with_suffix(".new")
            # Secrets in it are encrypted; the rest is nobody else's business either.
            unfinished.touch(mode=0o600)
            unfinished.write_text(exported)
            unfinished.replace(self._copy)

    def config_values(self) -> dict[str, str]:
        """Return the stack's configuration by whole keys, as text, secrets among it.

        Raises ``UpdateFailedError``, such as for a wrong passphrase.
        """
        shown = json.loads(self._run("config", "--json", "--show-secrets"))
        return {key: str(entry.get("value", "")) for key, entry in shown.items()}

    def settings(self, where: str) -> Settings:
        """Return the settings as the program will read them, with secrets; ``where`` is the stack's file."""
        prefix = f"{PROJECT}:"
        values = {
            key.removeprefix(prefix): text
            for key, text in self.config_values().items()
            if key.startswith(prefix)
        }
        return settings_from_text(values, where)

    def set_secret(self, key: str, value: str) -> None:
        """Keep ``value`` in the stack's file, encrypted; it is on no command line."""
        self._run("config", "set", "--secret", key, given=value)

    def forget_with_all_on_it(self, urn: str) -> None:
        """Take the server ``urn``, which is gone, out of the state with all that was on it."""
        self._forget([urn], pending_operations=[])

    def forget(self, urns: Iterable[str]) -> None:
        """Take the resources ``urns``, which are another one's by now, out of the state."""
        self._forget(urns)

    def _forget(self, urns: Iterable[str], **instead: Any) -> None:
        exported = json.loads(self._run("stack", "export"))
        deployment = exported["deployment"]
        for urn in urns:
            deployment["resources"] = without(deployment.get("resources") or [], urn)
        deployment.update(instead)
        pruned = self._copy.with_suffix(".pruned")
        pruned.touch(mode=0o600)
        pruned.write_text(json.dumps(exported))
        self._run("stack", "import", "--file", str(pruned))
        pruned.unlink()

    def settle(self, gone: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Return the state, made true again where an update was interrupted or ``gone`` says it is not.

        Pulumi notes what it is about to do. What it was about to create when it
        was killed stays noted, with a warning at every later update, until a
        refresh is told to drop it; whether it exists is then found out by name
        (`preflight.remove_leftovers`).
        """
        deployment = self.deployment()
        if not deployment.get("pending_operations") and not gone(deployment):
            return deployment
        with self.progress.step(f"Comparing what {self.name} is said to have with what there is"):
            self._locked(
                lambda: self._stack.refresh(clear_pending_creates=True, color="never"),
                "see Pulumi's message above",
            )
        return self.deployment()

    def is_unfinished(self) -> bool:
        """Tell whether an update from here was cut short or failed, so that what it made may be unknown.

        Containers with the stack's label that its state does not know of are then
        its own. Otherwise they are those of another user's or backend's stack of
        the same name.
        """
        return self._unfinished.exists() or bool(self.deployment().get("pending_operations"))

    def unfinished_since(self) -> dt.datetime | None:
        """Return when the last update from here began, if it was cut short or failed, else ``None``."""
        try:
            return dt.datetime.fromtimestamp(self._unfinished.stat().st_mtime, dt.UTC)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def changes_noted(self) -> Iterator[None]:
        """Note on disk that an update is under way, until the block ends without an error.

        For want of the passphrase none begins: what was noted before then stays.
        """
        noted_before = self._unfinished.exists()
        with disk_full_explained(self._unfinished):
            self._unfinished.touch()
        try:
            yield
        except PassphraseError:
            if not noted_before:
                self._unfinished.unlink(missing_ok=True)
            raise
        self._unfinished.unlink(missing_ok=True)

    def up(self, only: Sequence[str] = (), settings_from: Path | None = None) -> Mapping[str, Any]:
        """Bring the stack up, or ``only`` the resources of these URNs and what they need; show what changes.

        ``settings_from`` is read instead of the stack's own file. Returns the state
        afterwards, as `deployment` does. Raises ``UpdateFailedError`` if that fails.
        """
        self._changing(
            lambda output, event: self._stack.up(
                on_output=output,
                on_event=event,
                suppress_outputs=True,
                color="never",
                target=list(only) or None,
                config_file=None if settings_from is None else str(settings_from),
            ),
            "see to what is said above, then run it again: what is done is kept, and it goes on from there",
        )
        # The copy is now of what runs, and would be gone on from without a change.
        return self.deployment()

    def preview(self, *, refresh: bool = False) -> list[automation.EngineEvent]:
        """Return the engine's events of a preview of `up`, which changes nothing.

        With ``refresh`` it is of what there is, instead of what the state says.
        Raises ``UpdateFailedError`` if that fails, as `up` would or for a reason of its own.
        """
        return self._looking(
            lambda note: self._stack.preview(on_event=note, color="never", refresh=refresh or None),
            "see to what is said above, then run it again: nothing was changed",
        )

    def refresh(self, *, dry_run: bool = False) -> list[automation.EngineEvent]:
        """Have the state say what there is, or with ``dry_run`` only find it out; return the engine's events.

        Raises ``UpdateFailedError`` if that fails, such as for a host that does not answer.
        """
        if dry_run:
            return self._looking(
                lambda note: self._stack.preview_refresh(on_event=note, color="never"),
                "see to what is said above, then run it again: nothing was changed",
            )
        events = self._looking(
            lambda note: self._stack.refresh(on_event=note, clear_pending_creates=True, color="never"),
            "see to what is said above, then run it again: what was found is kept",
        )
        self.deployment()
        return events

    def _looking(
        self, action: Callable[[Callable[[automation.EngineEvent], None]], object], mend: str
    ) -> list[automation.EngineEvent]:
        """Do ``action``, which is handed what notes the engine's events, and return these."""
        events: list[automation.EngineEvent] = []

        def look(event: Callable[[automation.EngineEvent], None]) -> None:
            events.clear()

            def note(each: automation.EngineEvent) -> None:
                events.append(each)
                event(each)

            action(note)

        self._changing(lambda _, event: look(event), mend)
        return events

    def outputs(self) -> dict[str, Any]:
        """Return the stack's outputs by name."""
        found = self._locked(self._stack.outputs, "see Pulumi's message; then run it again")
        return {name: output.value for name, output in found.items()}

    def remove_with_all_on_it(self, urn: str) -> None:
        """Remove the server ``urn`` and all that lives and dies with it, protected or not.

        Raises ``UpdateFailedError`` if that fails.
        """
        self._run("state", "unprotect", "--all", "--yes")
        self._destroy(target=[urn], target_dependents=True)
        self.deployment()

    def destroy(self, *, volumes: bool) -> None:
        """Remove what the stack made; protected volumes, and then the stack, only with ``volumes``."""
        if volumes:
            self._run("state", "unprotect", "--all", "--yes")
        self._destroy(exclude_protected=not volumes)
        if volumes:
            # Its file stays: it is the user's.
            self._run("stack", "rm", self.name, "--yes", "--preserve-config")
            self._copy.unlink(missing_ok=True)

    def _destroy(self, **options: Any) -> None:
        self._changing(
            lambda output, event: self._stack.destroy(
                on_output=output, on_event=event, suppress_outputs=True, color="never", **options
            ),
            "see to what is said above, then run it again: what is gone is noted",
        )

    def _run(
        self, *arguments: str, mend: str = "see Pulumi's message; then run it again", given: str | None = None
    ) -> str:
        """Run ``pulumi ARGUMENTS`` for the stack, ``given`` as its input, and return what it printed."""
        where = [] if "rm" in arguments else ["--stack", self.name]
        environment = dict(self._stack.workspace.env_vars)
        return self._locked(
            lambda: self._command.run([*arguments, *where], str(PROJECT_FOLDER), environment, given=given),
            mend,
        ).stdout

    def _changing(
        self,
        action: Callable[[Callable[[str], None], Callable[[automation.EngineEvent], None]], T],
        mend: str,
    ) -> T:
        """Do ``action`` with the means to show what it does; keep its errors for the end."""
        account = _Account(self.progress, self._warned)
        try:
            return self._locked(lambda: action(account.line, account.event), mend)
        except UpdateFailedError as error:
            if not account.errors:
                raise
            told = account.told()
            mend = STATE_DISK_FULL if says_disk_full(told) and _STATE_NOT_WRITTEN in told else mend
            raise UpdateFailedError(f"stack {self.name}: {told}", self._mend(told, mend)) from error

    def _locked(self, action: Callable[[], T], failure: str) -> T:
        """Do ``action``; wait for another update's lock, or take it over from a dead one."""
        deadline = time.monotonic() + _LOCK_WAIT
        damaged = 0
        while True:
            try:
                return action()
            except automation.ConcurrentUpdateError as error:
                self._wait_or_take_over(error, deadline)
            except automation.CommandError as error:
                if damaged < 2 and _DAMAGED.search(_message(error)) and _STATE_NOT_READ not in str(error):  # noqa: PLR2004
                    damaged += 1
                    # Somebody may be writing it just now: that takes no second.
                    time.sleep(1)
                    if damaged == 2:  # noqa: PLR2004
                        self.progress.say(f"Removing a lock of {self.name} that was not written to its end.")
                        self._stack.cancel()
                    continue
                full = says_disk_full(_message(error))
                raise self._not_begun(
                    f"stack {self.name}: {_message(error)}", STATE_DISK_FULL if full else failure
                ) from error

    def _not_begun(self, what: str, mend: str) -> UpdateFailedError:
        """Return the error for what Pulumi says, ``what``, before its engine began."""
        kind = PassphraseError if _NO_PASSPHRASE.search(what) else UpdateFailedError
        return kind(what, self._mend(what, mend))

    def _mend(self, what: str, otherwise: str) -> str:
        """Return how to mend ``what`` where that is about the passphrase, else ``otherwise``."""
        found = _NO_PASSPHRASE.search(what)
        if found is None:
            return otherwise
        if found["missing"]:
            return (
                f"export PULUMI_CONFIG_PASSPHRASE=...   (that of the stack {self.name}; for a new one yours"
                " to choose, the same ever after: it protects the secrets in the stack's file and state)"
            )
        given = self._environment.get("PULUMI_CONFIG_PASSPHRASE", os.environ.get("PULUMI_CONFIG_PASSPHRASE"))
        other = "the empty one" if given == "" else "the one that is exported"
        return (
            f"the stack {self.name} was made with another passphrase than {other}: export that one"
            " (PULUMI_CONFIG_PASSPHRASE=   with nothing after it, if it was made with the empty one)"
        )

    def _wait_or_take_over(self, error: automation.ConcurrentUpdateError, deadline: float) -> None:
        holders = [_Holder.of(found) for found in _LOCK_HOLDER.finditer(str(error))]
        # Cancelling removes every lock, so that none may be of a process that runs.
        if holders and all(holder.is_gone() for holder in holders):
            pids = ", ".join(str(holder.pid) for holder in holders)
            self.progress.say(f"An update of {self.name} was interrupted (pid {pids}); going on from there.")
            self._stack.cancel()
            return
        others = ", ".join(map(str, holders)) or "another update"
        if any(not holder.is_here() for holder in holders) or time.monotonic() > deadline:
            raise UpdateFailedError(
                f"the stack {self.name} is locked by {others}",
                f"wait for it to end; if it has, run: pulumi cancel --stack {self.name}",
            ) from error
        with self.progress.step(f"Waiting for another update of {self.name} ({others})"):
            time.sleep(_LOCK_POLL)


def without(resources: Sequence[Mapping[str, Any]], urn: str) -> list[dict[str, Any]]:
    """Return a deployment's ``resources`` without the server ``urn`` and what lived and died with it.

    These are the resources that are said to be deleted with it, and the provider
    that made them; the others lose what they say of having depended on them.
    """
    on_it = [resource for resource in resources if resource.get("deletedWith") == urn]
    # A resource names its provider as URN::ID.
    providers = {str(resource.get("provider", "")).rpartition("::")[0] for resource in on_it}
    gone = {urn, *providers, *(str(resource["urn"]) for resource in on_it)}
    kept = []
    for resource in resources:
        if resource["urn"] in gone:
            continue
        of_properties = resource.get("propertyDependencies") or {}
        kept.append(
            {
                **resource,
                "dependencies": [each for each in resource.get("dependencies") or [] if each not in gone],
                "propertyDependencies": {
                    name: [each for each in needed or [] if each not in gone]
                    for name, needed in of_properties.items()
                },
            }
        )
    return kept


class _Account:
    """What Pulumi says of an update: its steps, shown as they come, and its errors, kept."""

    def __init__(self, progress: Progress, warned: set[str] | None = None) -> None:
        """Show what comes; what is in ``warned`` was told, and is not once more."""
        self.errors: dict[str, None] = {}
        self._warned = set() if warned is None else warned
        self._printed: list[str] = []
        self._progress = progress
        self._repeats = False
        self._shown: set[str] = set()

    def line(self, line: str) -> None:
        # Pulumi repeats at the end what went wrong, with whatever the program printed meanwhile.
        if line.strip() in ("Diagnostics:", "Resources:"):
            self._repeats = line.strip() == "Diagnostics:"
        # Lines that start with @ are what a terminal shows as moving dots.
        quiet = not line.strip() or line.startswith("@") or "pulumi:pulumi:Stack" in line
        # What to do with what is left of a stack is told by who asked for it to go.
        # They make nothing themselves, and what they tell comes as an event.
        quiet = quiet or _COMPONENT in line
        quiet = quiet or "pulumi stack rm" in line or "resources in the stack have been deleted" in line
        text = _ERROR_IN_STEP.sub("", line.rstrip())
        if not self._repeats and not quiet and text not in self._shown:
            self._shown.add(text)
            self._progress.say(f"  {text}")

    def event(self, event: automation.EngineEvent) -> None:
        said = event.diagnostic_event
        if said is None or said.ephemeral:
            return
        text = _WRAPPED.sub("", _COLOR.sub("", said.message).strip()).strip()
        if said.severity == "info#err":
            self._printed.append(text)
        if said.severity == "info" and _COMPONENT in (said.urn or ""):
            # What the program tells of its wait for a server.
            self._progress.say(f"  {text}")
        if said.severity == "warning" and not _ON_PATH.search(text) and text not in self._warned:
            self._warned.add(text)
            self._progress.warn(text)
        if said.severity == "error":
            kind, _, name = (said.urn or "").rpartition("::")
            type_ = kind.rpartition("$")[2].rpartition(":")[2]
            self.errors.setdefault(f"{type_} {name}: {text}" if type_ not in ("", "Stack") else text)

    def told(self) -> str:
        """Return the errors; that there was one is not worth a line where there is another."""
        said_anyway = ("update failed", "preview failed")
        told = "\n".join([error for error in self.errors if error not in said_anyway] or self.errors)
        # The reason why the program ended is in what it printed; otherwise Pulumi ended it.
        by_itself = "program exited with" in told
        printed = indented(last_lines("\n".join(self._printed)))
        return f"{told}\n{printed}" if by_itself else told


@dataclass(frozen=True)
class _Holder:
    """The process that a lock was made by, as the lock tells."""

    user: str
    host: str
    pid: int
    since: dt.datetime

    @classmethod
    def of(cls, found: re.Match[str]) -> _Holder:
        return cls(found["user"], found["host"], int(found["pid"]), dt.datetime.fromisoformat(found["time"]))

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, pid {self.pid}, since {self.since:%Y-%m-%d %H:%M:%S}"

    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def is_gone(self) -> bool:
        """Tell whether it has ended, which can be told of this machine's only."""
        return self.is_here() and not pulumi_process.is_running(self.pid, since=self.since.timestamp())


def _message(error: automation.CommandError) -> str:
    """Return what Pulumi says of its error, without its account of its own call."""
    said = str(error).rpartition("\n stderr: ")[2].strip()
    _, found, told = said.rpartition("error: ")
    lines = [line.strip() for line in _WRAPPED.sub("", told).splitlines() if line.strip()]
    return "\n  ".join(dict.fromkeys(lines)) if found else json.dumps(str(error)[-400:])
