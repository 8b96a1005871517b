"""Diff: what changes between a resource's state and its new inputs, and which changes replace it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .behaviour import Behaviour
from .schema import ResourceSchema, ValueType
from .state import kept
from .values import DEFAULTS, child, has_unknown, is_empty, without_defaults


class Change(Enum):
    """What happens to one property."""

    ADD = "ADD"
    DELETE = "DELETE"
    UPDATE = "UPDATE"


@dataclass(frozen=True)
class Difference:
    """Changes by property path, and those of the paths whose change replaces the resource."""

    changes: Mapping[str, Change]
    replacing: frozenset[str]
    delete_before_replace: bool
    stable: tuple[str, ...]

    @property
    def changed_properties(self) -> list[str]:
        """Names of the top-level properties that change."""
        return sorted({top_level(path) for path in self.changes})

    @property
    def replaced_properties(self) -> list[str]:
        """Names of the top-level properties whose change replaces the resource."""
        return sorted({top_level(path) for path in self.replacing})


def top_level(path: str) -> str:
    """Return the property that a path begins with."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def diff(
    state: Mapping[str, Any],
    inputs: Mapping[str, Any],
    schema: ResourceSchema,
    behaviour: Behaviour,
    ignored: Iterable[str] = (),
) -> Difference:
    """
    Compare a resource's state with new (checked) inputs.

    An argument that is left out is no change where it is then filled in (`Behaviour.computed`);
    null and zero are the same, as upstream cannot tell them apart.
    """
    comparison = _Comparison(behaviour)
    changes: dict[str, Change] = {}
    for name, argument in schema.arguments.items():
        old, new = state.get(name), without_defaults(inputs.get(name))
        if new is None and behaviour.framework:
            new = behaviour.defaults.get(name)
        new = kept(new, argument.type, behaviour, name)
        left_out = new is None if name in behaviour.empty_is_change else is_empty(new) and not _is_scalar(new)
        if left_out and name in behaviour.computed | behaviour.kept_when_unset:
            # null here means that creation failed before anything was read back
            if old is None and name in behaviour.read_back:
                changes[name] = Change.ADD
            continue
        compared_as = behaviour.compared_as.get(name)
        if compared_as and isinstance(old, list) and isinstance(new, list) and not has_unknown(new):
            new = compared_as(old, new)
        changes |= comparison.values(old, new, argument.type, name)
    for name in sorted(behaviour.read_back):
        if name not in schema.arguments and state.get(name) is None:
            changes[name] = Change.ADD
    counted = {path: change for path, change in changes.items() if not _is_ignored(path, ignored)}
    if counted:
        unknown = {name for name in behaviour.unknown_on_update if inputs.get(name) is None}
        counted |= dict.fromkeys(sorted(unknown), Change.UPDATE)
    replacing = frozenset(
        path for path in counted if top_level(path) in schema.arguments and _replaces(path, behaviour)
    )
    return Difference(
        changes=counted,
        replacing=replacing,
        delete_before_replace=bool(replacing) and _goes_first(inputs, behaviour),
        stable=tuple(
            sorted(
                name
                for name in schema.arguments
                if name not in behaviour.updates_in_place
                and name not in {top_level(path) for path in replacing}
            )
        ),
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _goes_first(inputs: Mapping[str, Any], behaviour: Behaviour) -> bool:
    """
    Tell whether the old resource must go before its replacement can be made.

    So it is with a name that the program gives (``nameRequiresDeleteBeforeReplace`` in the bridge),
    as two of that name cannot be.
    """
    if behaviour.delete_before_replace:
        return True
    return (
        not behaviour.framework
        and behaviour.autonamed
        and "name" in inputs
        and "name" not in inputs.get(DEFAULTS, ["name"])
    )


def _replaces(path: str, behaviour: Behaviour) -> bool:
    return top_level(path) not in behaviour.updates_in_place | behaviour.unknown_on_update


def _is_ignored(path: str, ignored: Iterable[str]) -> bool:
    for each in ignored:
        pattern = re.escape(each.replace('"]', "]").replace('["', "[")).replace(r"\*", "[^.\\[\\]]+")
        if each == "*" or re.match(rf"{pattern}($|[.\[])", path.replace('"', "")):
            return True
    return False


@dataclass(frozen=True)
class _Comparison:
    """Compares values of one resource type; all methods return changes by path."""

    behaviour: Behaviour

    def values(self, old: Any, new: Any, wanted: ValueType, path: str) -> dict[str, Change]:
        if has_unknown(new):
            return {path: Change.ADD if old is None else Change.UPDATE}
        if is_empty(old) and is_empty(new):
            return {}
        if wanted.kind == "map" and isinstance(old, dict | None):
            return _compare_maps(old, new or {}, path)
        if is_empty(new) and not _is_scalar(new):
            return {path: Change.DELETE}
        if old is None or (is_empty(old) and isinstance(old, list | dict)):
            return {path: Change.ADD}
        return self._present(old, new, wanted, path)

    def _present(self, old: Any, new: Any, wanted: ValueType, path: str) -> dict[str, Change]:
        """Compare two values that are both there."""
        if wanted.element is not None and isinstance(old, list) and isinstance(new, list):
            compare = self._sets if _pattern(path) in self.behaviour.sets else self._lists
            return compare(old, new, wanted.element, path)
        if wanted.kind == "object" and isinstance(old, dict) and isinstance(new, dict):
            changes: dict[str, Change] = {}
            for name, each in wanted.properties.items():
                where = child(path, name)
                if new.get(name) is not None or _pattern(where) not in self.behaviour.computed_nested:
                    changes |= self.values(old.get(name), new.get(name), each.type, where)
            return changes
        return {} if old == new else {path: Change.UPDATE}

    def _lists(self, old: list[Any], new: list[Any], element: ValueType, path: str) -> dict[str, Change]:
        return self._by_place(dict(enumerate(old)), dict(enumerate(new)), element, path)

    def _sets(self, old: list[Any], new: list[Any], element: ValueType, path: str) -> dict[str, Change]:
        """Leave out what both sets hold, compare the rest by place."""
        gone = dict(enumerate(old))
        come: dict[int, Any] = {}
        for index, each in enumerate(new):
            twins = (
                at for at, other in gone.items() if not self.values(other, each, element, child(path, at))
            )
            twin = next(twins, None)
            if twin is None:
                come[index] = each
            else:
                del gone[twin]
        return self._by_place(gone, come, element, path)

    def _by_place(
        self, old: Mapping[int, Any], new: Mapping[int, Any], element: ValueType, path: str
    ) -> dict[str, Change]:
        changes: dict[str, Change] = {}
        for index in sorted({*old, *new}):
            where = child(path, index)
            if index not in new:
                changes[where] = Change.DELETE
            elif index not in old:
                changes[where] = Change.ADD
            else:
                changes |= self.values(old[index], new[index], element, where)
        return changes


def _pattern(path: str) -> str:
    """Leave the places in arrays out of a path: ``ports[0].ip`` becomes ``ports.ip``."""
    return re.sub(r"\[\d+\]", "", path)


def _compare_maps(old: Mapping[str, Any] | None, new: Mapping[str, Any], path: str) -> dict[str, Change]:
    if old is None:
        return {path: Change.ADD}
    changes = {}
    for key in sorted({*old, *new} - {DEFAULTS}):
        if key not in new:
            changes[child(path, key)] = Change.DELETE
        elif key not in old:
            changes[child(path, key)] = Change.ADD
        elif old[key] != new[key]:
            changes[child(path, key)] = Change.UPDATE
    return changes
