"""Bringing up one region after the other: canaries first, and none after one whose relay fails its check."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import hashlib
import json
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from delivery import content_of
from relayctl import children
from relayctl.children import Child
from relayctl.command import INTERRUPTED, RELAY_NOT_RIGHT
from relayctl.fleet import Member
from relayctl.prerequisites import cache
from relayctl.prerequisites.progress import Progress
from relayctl.stack import run_folder, state_copy
from relayctl.whole_file import write_whole
from settings import PROJECT
from settings.base import PROJECT_FOLDER
from settings.reader import stack_file

# What the program is, beside the settings: what it declares, and what its images are built from.
_PROGRAM = ("__main__.py", "components", "delivery", "images", "render", "settings", "ssh", "tools/go")
# What `up` itself puts into a stack's file.
_MADE = {f"{PROJECT}:sshHostKey", f"{PROJECT}:sshDeployKey"}
_FORMAT = 1


class Outcome(enum.Enum):
    """What became of a region."""

    WAITING = "not begun"
    RUNNING = "not ended"
    DONE = "done"
    CHECK_FAILED = "check failed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Part:
    """A region's part in a rollout.

    ``inputs`` is a digest of its file, of what that names, and of the program;
    ``seconds`` how long it took; ``before`` what was wrong with its relay before
    the update, if anything was.
    """

    stack: str
    canary: bool = False
    outcome: Outcome = Outcome.WAITING
    inputs: str = ""
    seconds: float = 0
    error: str = ""
    log: str = ""
    before: str = ""


@dataclass(frozen=True)
class Record:
    """A rollout as it stands: its parts in their order, kept on disk so that it can be gone on with."""

    parts: tuple[Part, ...]
    keep_sessions: bool = False
    begun: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def save(self) -> None:
        """Write it whole. Raises ``PrerequisiteError`` if that cannot be done."""
        parts = [{**asdict(part), "outcome": part.outcome.value} for part in self.parts]
        told = {"format": _FORMAT, **asdict(self), "parts": parts}
        record_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(record_file(), json.dumps(told, indent=1))

    @classmethod
    def load(cls) -> Record | None:
        """Return the last rollout's record; ``None`` where there is none that can be read."""
        try:
            told: Mapping[str, Any] = json.loads(record_file().read_text())
            if told["format"] != _FORMAT:
                return None
            parts = tuple(Part(**{**part, "outcome": Outcome(part["outcome"])}) for part in told["parts"])
            return cls(parts, told["keep_sessions"], told["begun"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def with_part(self, stack: str, **values: Any) -> Record:
        """Return it with other ``values`` in the part of ``stack``."""
        return replace(
            self,
            parts=tuple(replace(part, **values) if part.stack == stack else part for part in self.parts),
        )

    def part(self, stack: str) -> Part:
        """Return the part of ``stack``, which has one."""
        return next(part for part in self.parts if part.stack == stack)

    def resumed(self, inputs: Mapping[str, str]) -> Record:
        """Return it with all to be done that is not, or whose ``inputs``, by stack, are others by now."""
        return replace(
            self,
            parts=tuple(
                part
                if part.outcome is Outcome.DONE and part.inputs == inputs.get(part.stack)
                else Part(part.stack, part.canary)
                for part in self.parts
            ),
        )

    def left(self) -> list[Part]:
        """Return the parts that are not done."""
        return [part for part in self.parts if part.outcome is not Outcome.DONE]

    def is_stopped(self) -> bool:
        """Tell whether no further region may begin.

        So it is where a relay runs that fails its check, as the next one's would,
        and where a canary failed in whatever way.
        """
        bad = (Outcome.CHECK_FAILED, Outcome.FAILED, Outcome.INTERRUPTED)
        return any(
            part.outcome is Outcome.CHECK_FAILED or (part.canary and part.outcome in bad)
            for part in self.parts
        )


def record_file() -> Path:
    """Return the path of the last rollout's record, another one for each Pulumi backend."""
    return run_folder() / "fleet" / state_copy("rollout").name


def log_file(stack: str, command: str) -> Path:
    """Return the path of what the last ``command`` of a fleet wrote for ``stack``."""
    return run_folder() / "fleet" / f"{stack}-{command}.log"


@contextlib.contextmanager
def only_one(progress: Progress) -> Iterator[None]:
    """Be the only run from here that changes regions; wait for another one."""
    with cache.locked(run_folder() / "fleet" / ".the fleet.lock", progress):
        yield


def inputs_of(found: Iterable[Member]) -> dict[str, str]:
    """Return a digest of all that the region of each of ``found`` is made from, by stack.

    That is its file without the keys that `up` puts there, the contents of
    folders and certificate files that it names, and the program. Raises
    ``SettingsError`` if one of these is not there.
    """
    program = _program_digest()
    digests = {}
    for member in found:
        assert member.settings is not None  # noqa: S101 - checked before
        config = yaml.safe_load(stack_file(member.stack).read_text())["config"]
        given = {key: value for key, value in config.items() if key not in _MADE}
        served = content_of(member.settings, member.stack).digest
        told = json.dumps([given, served, program], sort_keys=True, default=str)
        digests[member.stack] = hashlib.sha256(told.encode()).hexdigest()
    return digests


def _program_digest() -> str:
    digest = hashlib.sha256()
    for name in _PROGRAM:
        top = PROJECT_FOLDER / name
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(PROJECT_FOLDER)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def new_record(found: Sequence[Member], canaries: Sequence[str], *, keep_sessions: bool) -> Record:
    """Return the record of a rollout that has not begun: canaries first, else in the order given."""
    stacks = [member.stack for member in found]
    order = [*(stack for stack in stacks if stack in canaries), *(s for s in stacks if s not in canaries)]
    return Record(tuple(Part(stack, stack in canaries) for stack in order), keep_sessions)


class Rollout:
    """A rollout under way; ``record`` is what has become of it so far, on disk as well."""

    def __init__(
        self,
        record: Record,
        inputs: Mapping[str, str],
        *,
        parallel: int,
        console: Console,
    ) -> None:
        """Take what is to be done, with the digests of each stack's inputs, and how many regions at once."""
        self.record = record
        self._inputs = inputs
        self._parallel = parallel
        self._console = console

    def run(self) -> None:
        """Bring up what is left: canaries one by one, then the others, until `Record.is_stopped`.

        Raises ``KeyboardInterrupt`` if asked to end, once all that ran have ended.
        """
        left = self.record.left()
        for part in left:
            if part.canary:
                self._bring_up([part], parallel=1)
        self._bring_up([part for part in left if not part.canary], parallel=self._parallel)

    def _bring_up(self, parts: Sequence[Part], *, parallel: int) -> None:
        options = ["--keep-sessions"] if self.record.keep_sessions else []
        children.run(
            [Child(part.stack, ["up", part.stack, *options], log_file(part.stack, "up")) for part in parts],
            parallel=parallel,
            console=self._console,
            may_begin=lambda: not self.record.is_stopped(),
            begun=self._begun,
            ended=self._ended,
        )

    def _begun(self, child: Child) -> None:
        self._note(
            child.stack,
            outcome=Outcome.RUNNING,
            inputs=self._inputs[child.stack],
            log=str(child.log.relative_to(PROJECT_FOLDER)),
        )

    def _ended(self, child: Child) -> None:
        outcome = _OUTCOMES.get(child.code or 0, Outcome.FAILED)
        error = "" if outcome is Outcome.DONE else child.error()
        self._note(child.stack, outcome=outcome, seconds=round(child.seconds, 1), error=error)

    def _note(self, stack: str, **values: Any) -> None:
        self.record = self.record.with_part(stack, **values)
        self.record.save()


_OUTCOMES = {
    0: Outcome.DONE,
    RELAY_NOT_RIGHT: Outcome.CHECK_FAILED,
    INTERRUPTED: Outcome.INTERRUPTED,
    -signal.SIGTERM: Outcome.INTERRUPTED,
}
