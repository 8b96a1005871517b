"""What an update would change, and whether relay sessions outlive it, as the engine's preview tells."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from pulumi.automation import EngineEvent, OpType, StepEventMetadata
from rich.text import Text

Operation = Literal["delete", "replace", "update", "create"]
State = Literal["old", "new"]

# What a preview has in place of a value that is known after the update alone:
# https://github.com/pulumi/pulumi/blob/v3.250.0/sdk/go/common/resource/plugin/rpc.go
_UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

_STACK = "pulumi:pulumi:Stack"
_COMPONENT = "derp-relays:components:"
_CONTAINER = "docker:index/container:Container"
_IMAGE = "docker:index/remoteImage:RemoteImage"
_NETWORK = "docker:index/network:Network"
_VOLUME = "docker:index/volume:Volume"
_ENGINE = "pulumi:providers:docker"
_CONFIGURATION = "pulumi-python:dynamic/caddy:Configuration"
_SERVER = "hcloud:index/server:Server"
_ADDRESS = "hcloud:index/primaryIp:PrimaryIp"

# A session goes through the containers of both.
_RELAY = ("derper", "caddy")
_STATES: tuple[State, State] = ("old", "new")
# What sessions need to stay as it is: causes before what follows from them.
_CARRIES_SESSIONS = (_SERVER, _ADDRESS, _NETWORK, _VOLUME, _CONTAINER)
# Changes in place for which Hetzner's provider switches the server off:
# https://github.com/hetznercloud/terraform-provider-hcloud/blob/v1.66.1/internal/server/resource.go
_SWITCHES_OFF = {"serverType", "publicNets"}
# An argument of Caddy's configuration: how long sessions outlive it, as caddy.streamCloseDelay has it.
_DELAY = "streamCloseDelay"
# Properties that have another name for people.
_WORDS = {"envs": "environment", "ipamConfigs": "subnet", "networksAdvanced": "network"}

# By type, and for some by type and logical name.
_NAMES = {
    f"{_CONTAINER}::derper": "derper's container",
    f"{_CONTAINER}::caddy": "Caddy's container",
    f"{_IMAGE}::derper": "derper's image",
    f"{_IMAGE}::caddy": "Caddy's image",
    f"{_IMAGE}::derper-built": "derper's image",
    f"{_IMAGE}::caddy-built": "Caddy's image",
    f"{_IMAGE}::deliver-built": "the image that delivers Caddy's configuration",
    "pulumi-python:dynamic/docker:ImageTrial::derper": "the trial of derper's image",
    "pulumi-python:dynamic/docker:ImageTrial::caddy": "the trial of Caddy's image",
    _NETWORK: "the network",
    f"{_NETWORK}::metrics": "the network for metrics",
    _VOLUME: "the volume {name}",
    _CONFIGURATION: "Caddy's configuration",
    _ENGINE: "the connection to Docker",
    _SERVER: "the server",
    _ADDRESS: "the {name} address",
    _STACK: "the stack's outputs",
    "hcloud:index/firewall:Firewall": "the firewall",
    "hcloud:index/rdns:Rdns": "reverse DNS {name}",
    "hcloud:index/sshKey:SshKey": "the SSH key at Hetzner",
    "hcloud:index/zoneRrset:ZoneRrset": "the DNS record {name}",
    "pulumi-python:dynamic/hetzner:SiteRecords": "the DNS records of sites",
    "pulumi:providers:hcloud": "the connection to Hetzner",
    "pulumi:providers:pulumi-python": "the provider of what is written in Python ({name})",
}

_ORDER: Sequence[Operation] = ("delete", "replace", "update", "create")
_DONE: Mapping[Operation, str] = {
    "delete": "removed",
    "replace": "replaced",
    "update": "changed",
    "create": "made",
}
_STYLES: Mapping[Operation, str] = {"delete": "red", "replace": "yellow", "update": "cyan", "create": "green"}
# Sites, reasons, or resources with the same change, to name before the rest is counted.
_NAMED = 3


class Sessions(enum.Enum):
    """What becomes of the sessions that clients have with the relay."""

    END = "end"
    UNKNOWN = "unknown"
    KEPT = "kept"
    NONE_YET = "none yet"


@dataclass(frozen=True)
class Change:
    """One resource that an update would change.

    ``name`` is for people. ``properties`` has the names, never the values, of
    what it is changed or replaced for, and what comes of that; for Caddy's
    configuration the names of sites. ``type`` is Pulumi's.
    """

    operation: Operation
    name: str
    properties: tuple[str, ...] = ()
    type: str = field(default="", compare=False)

    def what(self) -> tuple[Operation, str, tuple[str, ...]]:
        """Return all but whose it is."""
        return self.operation, self.type, self.properties

    def as_json(self) -> dict[str, Any]:
        """Return the change as JSON has it, for `from_json`."""
        return {
            "operation": self.operation,
            "name": self.name,
            "properties": list(self.properties),
            "type": self.type,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Change:
        """Return the change that `as_json` was of."""
        return cls(told["operation"], told["name"], tuple(told["properties"]), told["type"])

    def sentence(self) -> str:
        """Return the change in words, without a full stop."""
        told = f" ({', '.join(self.properties)})" if self.properties else ""
        return f"{self.name} is {_DONE[self.operation]}{told}"


@dataclass(frozen=True)
class Plan:
    """What an update would change, what matters most first, and what becomes of sessions.

    ``reasons`` tell why sessions end, or may end; ``server_is_away`` whether the
    whole server is meanwhile. ``lasting`` is how long sessions that are kept
    outlive the reload of Caddy's configuration, as ``caddy.streamCloseDelay``
    has it; None without a reload.
    """

    changes: tuple[Change, ...] = ()
    sessions: Sessions = Sessions.KEPT
    reasons: tuple[str, ...] = ()
    server_is_away: bool = False
    lasting: str | None = None

    @classmethod
    def of(cls, events: Iterable[EngineEvent], images: Mapping[str, str] | None = None) -> Plan:
        """Return the plan that a preview's ``events`` make up. No value that may be secret is in it.

        ``images`` has the ids of the images that the host has, by reference. An
        image that is there under its new name already can be compared before.
        """
        told = _resources(events)
        resources = dict(told)
        for container in _RELAY:
            if _gets_the_same_image(told, container, images or {}):
                del resources[_CONTAINER, container]
        effects = sorted(_effects(resources), key=_Effect.rank)
        changes = tuple(each.change for each in effects)
        relay = [told.get((_CONTAINER, name)) for name in _RELAY]
        if not all(container is not None and container.is_there() for container in relay):
            return cls(changes, Sessions.NONE_YET)
        sessions = effects[0].sessions if effects else Sessions.KEPT
        causes = [each for each in effects if each.sessions is sessions and each.reason]
        server_is_away = bool(causes) and causes[0].resource.type == _SERVER
        reloads = [each.resource for each in effects if each.resource.type == _CONFIGURATION]
        return cls(
            changes,
            sessions,
            # With the server goes all that is on it.
            tuple(each.reason for each in (causes[:1] if server_is_away else causes)),
            server_is_away,
            reloads[0].given("old", _DELAY) if reloads and sessions is Sessions.KEPT else None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON has it, for `from_json`."""
        return {
            "changes": [change.as_json() for change in self.changes],
            "sessions": self.sessions.value,
            "reasons": list(self.reasons),
            "serverIsAway": self.server_is_away,
            "lasting": self.lasting,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Plan:
        """Return the plan that `as_json` was of."""
        return cls(
            tuple(map(Change.from_json, told["changes"])),
            Sessions(told["sessions"]),
            tuple(told["reasons"]),
            told["serverIsAway"],
            told["lasting"],
        )

    def told(self) -> Text:
        """Return the plan for people: a line for each change, or for many alike, and one for the sessions."""
        if not self.changes:
            return Text("Nothing to change.")
        text = Text()
        for (operation, _, properties), found in groupby(self.changes, Change.what):
            alike = [change.name for change in found]
            if len(alike) > _NAMED:
                alike = [f"{alike[0]} and {len(alike) - 1} more like it"]
            told = f": {', '.join(properties)}" if properties else ""
            for name in alike:
                text.append(f"  {operation:<8}", style=_STYLES[operation])
                text.append(f"{name}{told}\n")
        return text.append(self._outcome(), style="bold")

    def _outcome(self) -> str:
        reasons = "; ".join(_named(self.reasons))
        match self.sessions:
            case Sessions.END:
                back = "once the server is back" if self.server_is_away else "within seconds"
                return f"Relay sessions will end: {reasons}. Clients come back by themselves {back}."
            case Sessions.UNKNOWN:
                return f"Relay sessions may end: {reasons}."
            case Sessions.NONE_YET:
                return "Relay sessions: none, since the relay does not run yet"
            case Sessions.KEPT:
                lasting = f", up to {self.lasting} (caddy.streamCloseDelay)" if self.lasting else ""
                return f"Relay sessions: kept{lasting}"


def differences(events: Iterable[EngineEvent]) -> tuple[Change, ...]:
    """Return what a refresh found that the state says otherwise: ``delete`` is gone, ``update`` differs.

    A refresh tells what it found at the end of each resource alone.
    """
    found = []
    for event in events:
        step = event.res_outputs_event and event.res_outputs_event.metadata
        if step and step.op in (OpType.UPDATE, OpType.DELETE):
            change = _Resource(step.type, step.urn.rpartition("::")[2], [step]).change()
            if change is not None:
                found.append(change)
    return tuple(sorted(found, key=lambda change: (_ORDER.index(change.operation), change.name)))


@dataclass
class _Resource:
    """A resource by its steps: a replacement has two or three, any other change one."""

    type: str
    name: str
    steps: list[StepEventMetadata] = field(default_factory=list)
    registered: StepEventMetadata | None = None
    """What is known at its end; for the stack, whose outputs come last, with these."""

    def operation(self) -> Operation | None:
        if self._has(OpType.REPLACE, OpType.CREATE_REPLACEMENT):
            return "replace"
        if self._has(OpType.DELETE, OpType.DELETE_REPLACED):
            return "delete"
        if self._has(OpType.CREATE, OpType.IMPORT):
            return "create"
        return "update" if self._has(OpType.UPDATE) or self._changed_without_a_step() else None

    def _has(self, *operations: OpType) -> bool:
        return any(step.op in operations for step in self.steps)

    def is_left_over(self) -> bool:
        """Tell whether only the old one goes: its replacement was interrupted once the new one was made."""
        return self.operation() == "delete" and not self._has(OpType.DELETE)

    def is_there(self) -> bool:
        """Tell whether it is there before the update; of a container, whether it runs."""
        if self.operation() == "replace":
            # A replacement that was interrupted may have removed it.
            return self._has(OpType.DELETE_REPLACED)
        # An update starts a container that it finds stopped.
        return self.operation() != "create" and "mustRun" not in self.changed()

    def change(self) -> Change | None:
        operation = self.operation()
        exports_alone = self.type == _STACK and operation != "update"
        if operation is None or exports_alone or self.type.startswith(_COMPONENT):
            return None
        by_type = _NAMES.get(self.type, f"{self.type.rpartition(':')[2]} {{name}}").format(name=self.name)
        name = _NAMES.get(f"{self.type}::{self.name}", by_type)
        if self.is_left_over():
            return Change(operation, f"{name} of before an update that was interrupted", type=self.type)
        return Change(operation, name, tuple(self._properties(operation)), self.type)

    def _properties(self, operation: Operation) -> Iterator[str]:
        if self.type == _CONFIGURATION:
            yield from self._sites()
        elif operation == "replace":
            yield from map(_word, self.replaced_for() or self._differing())
        elif operation == "update":
            yield from map(_word, self.changed())
        if self.type == _VOLUME and operation in ("replace", "delete"):
            yield "its data is lost"

    def replaced_for(self) -> list[str]:
        return _properties(key for step in self.steps for key in step.keys or ())

    def _differing(self) -> list[str]:
        """Return what differs where a trigger replaces: the engine then names nothing."""
        old, new = self._inputs("old"), self._inputs("new")
        return _properties(name for name in {*old, *new} if old.get(name) != new.get(name))

    def changed(self) -> list[str]:
        found = _properties(key for step in self.steps for key in step.diffs or ())
        # Of some resources Pulumi also names what is only not known before the update.
        given = {*self._inputs("old"), *self._inputs("new")}
        return [name for name in found if name in given] or found or self._changed_without_a_step()

    def _changed_without_a_step(self) -> list[str]:
        """Return what changes of a resource that counts as the same: the stack's outputs, and protection."""
        if self.type == _STACK:
            return self._outputs_changed()
        same = [(step.old, step.new) for step in self.steps if step.op == OpType.SAME]
        flipped = any(old and new and bool(old.protect) != bool(new.protect) for old, new in same)
        return ["protection"] if flipped else []

    def _outputs_changed(self) -> list[str]:
        if self.registered is None:
            return []
        states = (self.registered.old, self.registered.new)
        old, new = ((state and state.outputs) or {} for state in states)
        return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]

    def cannot_be_compared(self) -> bool:
        """Tell whether an update is only assumed, since its provider is not known before."""
        # Without a difference Pulumi also goes on waiting for what was not well when it was made.
        waits = any(step.old and step.old.init_errors for step in self.steps)
        return not self.changed() and not waits

    def is_replaced_for_the_unknown(self) -> bool:
        """Tell whether it is replaced only for values that may turn out to be as they were."""
        wanted = [step.new.inputs or {} for step in self.steps if step.new]
        replaced_for = self.replaced_for()
        unknown = all(_has_unknown(inputs.get(name)) for inputs in wanted for name in replaced_for)
        return bool(replaced_for) and unknown

    def given(self, which: State, name: str) -> str | None:
        """Return the argument ``name`` as it was or is to be, if it was given, or is."""
        value = self._inputs(which).get(name)
        return None if value is None else str(value)

    def _sites(self) -> Iterator[str]:
        # Not known before the update, they would be no mapping.
        before, after = (self._inputs(which).get("sites") for which in _STATES)
        if not isinstance(after, Mapping):
            return
        old = before if isinstance(before, Mapping) else {}
        # Pulumi adds names of its own, such as __defaults.
        new = {name: digest for name, digest in after.items() if not name.startswith("__")}
        for how, names in (
            ("added", new.keys() - old.keys()),
            ("changed", {name for name in new.keys() & old.keys() if new[name] != old[name]}),
            ("removed", {name for name in old.keys() - new.keys() if not name.startswith("__")}),
        ):
            if names:
                count = "1 site" if len(names) == 1 else f"{len(names)} sites"
                yield f"{count} {how} ({', '.join(_named(sorted(names)))})"

    def _inputs(self, which: State) -> Mapping[str, Any]:
        states = [getattr(step, which) for step in self.steps]
        return next((state.inputs or {} for state in states if state), {})


def _resources(events: Iterable[EngineEvent]) -> dict[tuple[str, str], _Resource]:
    """Return the resources that ``events`` tell of, by type and logical name."""
    found: dict[tuple[str, str], _Resource] = {}
    for event in events:
        told = event.resource_pre_event or event.res_outputs_event
        if told is None:
            continue
        step = told.metadata
        if step.op == OpType.REFRESH:
            # What changes is told from what was found on.
            continue
        name = step.urn.rpartition("::")[2]
        resource = found.setdefault((step.type, name), _Resource(step.type, name))
        if event.resource_pre_event is None:
            resource.registered = step
        else:
            resource.steps.append(step)
    return found


@dataclass(frozen=True)
class _Effect:
    """A change, and what it does to the sessions that there are, and why."""

    resource: _Resource
    change: Change
    sessions: Sessions
    reason: str

    def rank(self) -> tuple[int, int, int, str]:
        """Return what sorts changes: first what ends sessions, and causes before what follows from them."""
        type_ = self.resource.type
        carries = _CARRIES_SESSIONS.index(type_) if type_ in _CARRIES_SESSIONS else len(_CARRIES_SESSIONS)
        ending = list(Sessions).index(self.sessions)
        by_cause = carries if self.reason else 0
        return ending, by_cause, _ORDER.index(self.change.operation), self.change.name


def _effects(resources: Mapping[tuple[str, str], _Resource]) -> Iterator[_Effect]:
    for resource in resources.values():
        change = resource.change()
        if change is not None:
            told = _consequences(resource, change, resources)
            yield _Effect(resource, change, *next(told, (Sessions.KEPT, "")))


def _gets_the_same_image(
    resources: Mapping[tuple[str, str], _Resource], container: str, images: Mapping[str, str]
) -> bool:
    """Tell whether all that ``container`` is replaced for is an image that is the one that it has."""
    found = resources.get((_CONTAINER, container))
    if found is None or not found.is_replaced_for_the_unknown() or found.replaced_for() != ["image"]:
        return False
    named = (resources.get((_IMAGE, name)) for name in (container, f"{container}-built"))
    wanted = {image.given("new", "name") for image in named if image and image.operation() != "delete"}
    there = {images.get(str(name)) for name in wanted - {None}}
    return None not in there and there == {found.given("old", "image")}


def _gets_another_image(resources: Mapping[tuple[str, str], _Resource], container: str) -> bool:
    """Tell whether ``container`` gets an image with a name that is another image's.

    Two names may have one digest. One that is built and one that is pulled are two resources.
    """
    found = (resources.get((_IMAGE, name)) for name in (container, f"{container}-built"))
    images = [image for image in found if image is not None]
    old, new = ({image.given(which, "name") for image in images} - {None} for which in _STATES)
    digests = [{str(name).partition("@")[2] for name in names} for names in (old, new)]
    return bool(new) and old.isdisjoint(new) and (digests[0].isdisjoint(digests[1]) or "" in digests[1])


def _consequences(
    resource: _Resource, change: Change, resources: Mapping[tuple[str, str], _Resource]
) -> Iterator[tuple[Sessions, str]]:
    """Yield what ``change`` of one of the ``resources`` does to sessions, and why, unless it keeps them."""
    type_, operation = resource.type, change.operation
    if type_ == _SERVER and operation == "update" and not _SWITCHES_OFF.isdisjoint(change.properties):
        told = ", ".join(change.properties)
        yield Sessions.END, f"the server is switched off meanwhile ({told})"
    if type_ == _CONFIGURATION and resource.given("old", _DELAY) == "0":
        yield Sessions.END, "Caddy's configuration is reloaded, and caddy.streamCloseDelay was 0"
    if type_ == _ENGINE and "host" in resource.changed():
        yield Sessions.UNKNOWN, "Docker is reached at another address"
    if type_ not in _CARRIES_SESSIONS or resource.is_left_over():
        return
    if operation == "update" and resource.cannot_be_compared():
        yield Sessions.UNKNOWN, f"{change.name} cannot be compared before the update"
    if operation in ("replace", "delete"):
        uncertain = type_ == _CONTAINER and resource.is_replaced_for_the_unknown()
        if uncertain and not _gets_another_image(resources, resource.name):
            yield Sessions.UNKNOWN, f"{change.sentence()}, unless it turns out to be the same"
        else:
            yield Sessions.END, change.sentence()


def _properties(paths: Iterable[str]) -> list[str]:
    """Return the properties that ``paths``, such as ``envs[0]``, lead into; Pulumi's own are left out."""
    names = {re.split(r"[.\[]", path)[0] for path in paths}
    return sorted(name for name in names if name and not name.startswith("__"))


def _word(name: str) -> str:
    return _WORDS.get(name, name)


def _named(told: Sequence[str]) -> list[str]:
    rest = len(told) - _NAMED
    return [*told[:_NAMED], f"{rest} more"] if rest > 0 else list(told)


def _has_unknown(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_unknown(each) for each in value.values())
    if isinstance(value, list):
        return any(_has_unknown(each) for each in value)
    return bool(value == _UNKNOWN)
