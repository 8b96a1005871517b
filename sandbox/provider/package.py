"""What a stand-in is made of: the plugin it stands for, its resource types, and its connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .behaviour import Behaviour, Validator
from .schema import Property, ResourceSchema


class Connection(Protocol):
    """A way to the other side, as one provider resource configures it; used by several threads at once."""

    cancelled: threading.Event
    """Set once the engine has asked to stop: what waits ends, now and later."""

    def check(self) -> None:
        """Raise `errors.OperationError` if the other side is to answer at once and does not."""

    def close(self) -> None:
        """Let go of what the connection holds."""


@dataclass(frozen=True)
class Creation:
    """What making a resource gave: its id, and properties that reading it back does not tell."""

    identifier: str
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResourceType:
    """
    One resource type: its arguments, what the real plugin does with them, and its life.

    Inputs and states are by wire name. All four operations raise `errors.OperationError`.
    """

    schema: ResourceSchema
    behaviour: Behaviour
    create: Callable[[Any, Mapping[str, Any]], Creation]
    """Takes connection and inputs. Raises `errors.PartlyCreatedError` if it is there all the same."""
    read: Callable[[Any, str, Mapping[str, Any]], dict[str, Any] | None]
    """Takes connection, id and prior state (empty for an import); None: the resource is gone."""
    update: Callable[[Any, str, Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
    """Takes connection, id, old and new state; returns what comes out otherwise than planned."""
    delete: Callable[[Any, str, Mapping[str, Any]], None]
    """Takes connection, id and state. A resource that is gone already is no error."""


@dataclass(frozen=True)
class Package:
    """A stand-in for one provider plugin."""

    name: str
    """The plugin's, such as ``docker``."""
    version: str
    """Version of the plugin it stands in for; the pinned SDK has the same."""
    provider_arguments: Mapping[str, Property]
    """Arguments of the provider resource, by wire name."""
    provider_refused: Mapping[str, str]
    """Arguments of the provider resource that are not carried, with the reason."""
    resources: Mapping[str, ResourceType]
    """Resource types by token."""
    provider_validators: Mapping[str, Validator] = field(default_factory=dict, kw_only=True)
    """Validators of arguments of the provider resource."""
    connect: Callable[[Mapping[str, Any]], Connection]
    """
    Takes the checked arguments of the provider resource; asks nothing yet. Raises `errors.RefusedError`
    for what is not served.
    """
    serves: str
    """What it is for and what it refuses, in a few words, for the announcement."""

    @property
    def real_plugin(self) -> str:
        """Command that brings the real plugin, as shown in messages."""
        return real_plugin(self.name, self.version)

    @property
    def announcement(self) -> str:
        """What the engine shows when the stand-in is configured."""
        return (
            f"this is the stand-in for the pulumi-{self.name} plugin: {self.serves}. "
            f"The real plugin comes with {self.real_plugin}."
        )


def real_plugin(name: str, version: str) -> str:
    """Return the command that brings a real plugin, as shown in messages."""
    return f"`pulumi plugin install resource {name} {version}`"
