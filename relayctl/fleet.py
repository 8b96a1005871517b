"""The stacks that have a file here: which are chosen, in which order, and what no two may have in common."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from relayctl.prerequisites.errors import PrerequisiteError
from settings import Settings, SettingsError, read_stack_file
from settings.reader import stack_names

CANARY = ("canary", "true")
"""The label of stacks that are brought up before the others."""

SANDBOX = "sandbox-"
"""What the names of copies of regions begin with that `make sandbox-up` writes: their state is elsewhere."""


@dataclass(frozen=True)
class Member:
    """A stack with its settings, or with what is wrong with them."""

    stack: str
    settings: Settings | None = None
    error: SettingsError | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels in the stack's file; none where it cannot be read."""
        return {} if self.settings is None else self.settings.labels

    def of_region(self) -> dict[str, str | int | None]:
        """Return what tells the region to people and programs: each None where the file cannot be read."""
        settings = self.settings
        region = None if settings is None else settings.region
        return {
            "stack": self.stack,
            "id": None if region is None else region.id,
            "code": None if region is None else region.code,
            "domain": None if settings is None else settings.domain,
            "host": None if settings is None else settings.host.kind,
        }


@dataclass(frozen=True)
class Choice:
    """Which stacks: those named, by default all, of which each has all ``labels``."""

    stacks: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    all: bool = False

    def is_made(self) -> bool:
        """Tell whether somebody said which."""
        return bool(self.stacks or self.labels or self.all)


def members() -> list[Member]:
    """Return all stacks that have a file here, by name."""
    return [_member(stack) for stack in stack_names() if not stack.startswith(SANDBOX)]


def _member(stack: str) -> Member:
    try:
        return Member(stack, read_stack_file(stack))
    except SettingsError as error:
        return Member(stack, error=error)


def chosen(all_members: Sequence[Member], choice: Choice) -> list[Member]:
    """Return the members that ``choice`` is of, in the order in which they are named.

    Raises ``PrerequisiteError`` for a name that no stack has, and where there are none.
    """
    by_name = {member.stack: member for member in all_members}
    there = ", ".join(by_name) or "none"
    for stack in choice.stacks:
        if stack.startswith(SANDBOX):
            raise PrerequisiteError(
                f"{stack} is a copy for the sandbox, which no fleet has",
                f"make sandbox-up REGION={stack.removeprefix(SANDBOX)}   brings it up alone",
            )
        if stack not in by_name:
            near = difflib.get_close_matches(stack, by_name, n=1)
            raise PrerequisiteError(
                f"stacks/Pulumi.{stack}.yaml is not there",
                f"{near[0]} is" if near else f"name one of the stacks that are: {there}",
            )
    found = [by_name[stack] for stack in dict.fromkeys(choice.stacks or by_name)]
    found = [member for member in found if choice.labels.items() <= member.labels.items()]
    if not found:
        wanted = " ".join(f"{key}={value}" for key, value in choice.labels.items())
        given = sorted({f"{key}={value}" for each in all_members for key, value in each.labels.items()})
        raise PrerequisiteError(
            f"no stack{' of those named' if choice.stacks else ''} has the label {wanted}"
            if wanted
            else "there are no stacks: stacks/ has no file",
            f"the labels that there are: {', '.join(given) or 'none'}"
            if wanted
            else "copy stacks/template.yaml to stacks/Pulumi.NAME.yaml",
        )
    return found


def canaries_of(found: Sequence[Member], named: Sequence[str] = ()) -> list[str]:
    """Return the stacks among ``found`` that are brought up before the others: those named or labelled so.

    Raises ``PrerequisiteError`` if one is named that is not among them.
    """
    stacks = [member.stack for member in found]
    for stack in named:
        if stack not in stacks:
            raise PrerequisiteError(
                f"the canary {stack} is not among the chosen stacks: {', '.join(stacks)}",
                "choose it too, or name another canary",
            )
    key, value = CANARY
    return [member.stack for member in found if member.stack in named or member.labels.get(key) == value]


def check(all_members: Sequence[Member], found: Sequence[Member]) -> None:
    """Raise ``PrerequisiteError`` with all that is wrong with the settings of those ``found``.

    Also with what they have in common with another of ``all_members``: clients
    know a region by its id and its code, and its relay by its domain.
    """
    wrong = [str(member.error) for member in found if member.error is not None]
    wrong += _in_common(all_members, {member.stack for member in found})
    if wrong:
        raise PrerequisiteError(
            "\n  ".join(["the stacks cannot be brought up as their files are; nothing was changed", *wrong]),
            "see to each of these, then run it again",
        )


def _in_common(all_members: Sequence[Member], found: set[str]) -> Iterator[str]:
    stacks: dict[tuple[str, int | str], list[str]] = defaultdict(list)
    for member in all_members:
        if member.settings is None:
            continue
        region = member.settings.region
        for key, value in (("region.id", region.id), ("region.code", region.code)):
            stacks[key, value].append(member.stack)
        stacks["domain", member.settings.domain].append(member.stack)
    for (key, value), having in stacks.items():
        if len(having) > 1 and found.intersection(having):
            files = " and ".join(f"stacks/Pulumi.{stack}.yaml" for stack in having)
            yield f"{files} have the same {key}, {value}: give each its own, or delete a file without use"
