"""What a real plugin does with the arguments of a resource, beyond what its SDK tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .schema import Property

Validator = Callable[[Any], str | None]
"""Takes a known value, returns what is wrong with it or None."""

Rule = Callable[[Mapping[str, Any]], tuple[str, str] | None]
"""Takes checked arguments as a whole, returns a property path and what is wrong there, or None."""


@dataclass(frozen=True)
class Behaviour:
    """
    How one resource type treats its arguments.

    A dotted path such as ``ports.ip`` means that field of each element.
    """

    updates_in_place: frozenset[str]
    """Arguments whose change does not replace the resource; all others do."""
    computed: frozenset[str]
    """Arguments that are filled in where the program leaves them out: leaving one out is no change."""
    sets: frozenset[str]
    """Paths of arrays whose order means nothing."""
    defaults: Mapping[str, Any]
    """Values filled in by Check, by path."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Paths that are in the SDK but not carried, with the reason."""
    validators: Mapping[str, Validator] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    autonamed: bool = True
    """Whether a missing name is made up from the resource's name in the program."""
    delete_before_replace: bool = False
    schema_version: int = 0
    """Version of the real plugin's state: it is kept in the state, for the real plugin to take it over."""
    timeouts: Mapping[str, int] = field(default_factory=dict)
    """Default timeouts, in seconds by operation, that the real plugin keeps in the state."""
    computed_nested: frozenset[str] = frozenset()
    """Paths of fields inside arrays that are filled in where the program leaves them out."""
    kept_when_unset: frozenset[str] = frozenset()
    """Arguments whose removal is no change either (``DiffSuppressFunc`` upstream)."""
    read_back: frozenset[str] = frozenset()
    """Properties that are null in the state only where creation failed half-way; that is then a change."""
    state_functions: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """By path: what the state keeps in place of the program's text (``StateFunc`` upstream)."""
    empty_is_change: frozenset[str] = frozenset()
    """Computed lists of which an empty one in the program is a change, not only a left-out argument."""
    framework: bool = False
    """
    Whether it is written in Terraform's plugin framework, and not in its SDK.

    Then null is not the same as zero, Check fills in no defaults, a diff names no more than the
    top-level properties, and a replaced resource goes last whatever its name.
    """
    unknown_on_update: frozenset[str] = frozenset()
    """Computed properties of a framework resource of which any update makes a preview say unknown."""
    compared_as: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    """By list argument: takes the old and the new list, returns what the old one is compared with."""


def matches(pattern: str) -> Validator:
    """Return the validator of texts in which the regular expression is found."""
    compiled = re.compile(pattern)

    def check(value: Any) -> str | None:
        return None if compiled.search(value) else f"'{value}' doesn't match the pattern '{pattern}'"

    return check


def at_least(minimum: int) -> Validator:
    """Return the validator of numbers from ``minimum`` on."""

    def check(value: Any) -> str | None:
        return f"'{value}' cannot be lower than {minimum}" if value < minimum else None

    return check


def path_exists(path: str, properties: Mapping[str, Property]) -> bool:
    """Tell whether the dotted ``path`` names an argument, or a field of one."""
    name, _, rest = path.partition(".")
    if name not in properties:
        return False
    if not rest:
        return True
    value = properties[name].type
    while value.element is not None:
        value = value.element
    return path_exists(rest, value.properties)
