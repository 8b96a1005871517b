"""Check: are a resource's arguments right, and what are their defaults."""

from __future__ import annotations

import difflib
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .behaviour import Behaviour
from .package import Package
from .schema import Property, ValueType
from .values import DEFAULTS, UNKNOWN, child, is_empty

_RANDOM_CHARACTERS = 7
"""Length of the random end of a made-up name (``SetAutonaming`` in a plugin's provider/resources.go)."""

_CALLED = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "map": "a map",
    "object": "an object",
}


_BOOLEAN_WORDS = {"true": True, "false": False}

_INTEGER_WORD = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong: at which property path, and what."""

    path: str
    reason: str


@dataclass
class _Walk:
    """One check of one resource; gathers what is wrong."""

    package: Package
    resource_name: str
    behaviour: Behaviour | None
    failures: list[Failure] = field(default_factory=list)

    def fail(self, path: str, reason: str) -> None:
        self.failures.append(Failure(path, f"{reason}. Examine values at '{self.resource_name}.{path}'."))

    def properties(
        self, values: Mapping[str, Any], properties: Mapping[str, Property], path: str, pattern: str
    ) -> dict[str, Any]:
        """Check the fields of an object; return them converted, nulls dropped."""
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name == DEFAULTS or value is None:
                continue
            where = child(path, name)
            if name not in properties:
                similar = difflib.get_close_matches(name, properties, n=1)
                hint = f" (did you mean '{similar[0]}'?)" if similar else ""
                self.fail(where, f"Invalid or unknown key{hint}")
                continue
            field_pattern = f"{pattern}.{name}" if pattern else name
            reason = self.behaviour.refused.get(field_pattern) if self.behaviour else None
            if reason is not None and not is_empty(value):
                self.fail(
                    where,
                    f"The stand-in for the {self.package.name} plugin does not carry '{field_pattern}': "
                    f"{reason}. Use the real plugin ({self.package.real_plugin}) or leave the argument out",
                )
                continue
            checked[name] = self.value(value, properties[name].type, where, field_pattern)
        for name, each in properties.items():
            if each.required and name not in checked and values.get(name) is None:
                where = child(path, name)
                self.fail(where, f"Missing required argument '{where}'")
        return checked

    def value(self, value: Any, wanted: ValueType, path: str, pattern: str) -> Any:
        if value == UNKNOWN:
            return value
        match wanted.kind:
            case "array":
                if isinstance(value, list):
                    assert wanted.element is not None  # noqa: S101 - arrays always have one
                    return [
                        self.value(each, wanted.element, child(path, index), pattern)
                        for index, each in enumerate(value)
                    ]
            case "map":
                if isinstance(value, dict):
                    assert wanted.element is not None  # noqa: S101 - maps always have one
                    return {
                        key: self.value(each, wanted.element, child(path, key), pattern)
                        for key, each in value.items()
                        if key != DEFAULTS and each is not None
                    }
            case "object":
                if isinstance(value, dict):
                    return self.properties(value, wanted.properties, path, pattern)
            case _:
                converted = self._converted(value, wanted)
                if converted is not None:
                    wrong = self._validate(converted, pattern)
                    if wrong:
                        self.fail(path, wrong)
                    return converted
        self.fail(path, f"Expected {_CALLED[wanted.kind]}, got {_shown(value)}")
        return value

    def _converted(self, value: Any, wanted: ValueType) -> Any:
        if self.behaviour and self.behaviour.framework and wanted.kind == "boolean":
            # the plugin framework takes no words for it
            return value if isinstance(value, bool) else None
        return _scalar(value, wanted.kind)

    def _validate(self, value: Any, pattern: str) -> str | None:
        validator = self.behaviour.validators.get(pattern) if self.behaviour else None
        return validator(value) if validator else None


def _shown(value: Any) -> str:
    """Name the type only: the value may be a secret."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "a map"


def _scalar(value: Any, kind: str) -> Any:
    """
    Convert as the real plugin does (``"80"`` to 80, ``5`` to ``"5"``), but never with a loss.

    Returns None where there is no such conversion.
    """
    is_boolean = isinstance(value, bool)
    if kind == "boolean":
        return value if is_boolean else _BOOLEAN_WORDS.get(str(value))
    if kind == "string":
        text = str(value).lower() if is_boolean else str(value)
        return text if isinstance(value, str | int | float) else None
    if isinstance(value, str) and _INTEGER_WORD.fullmatch(value):
        return int(value)
    fits = isinstance(value, int | float) if kind == "number" else isinstance(value, int)
    return value if fits and not is_boolean else None


def _with_defaults(
    values: dict[str, Any], wanted: ValueType, behaviour: Behaviour, pattern: str
) -> dict[str, Any]:
    """Fill in the defaults at every depth and list those that are not zero, as the real plugin does."""
    filled: dict[str, Any] = {}
    for name, value in values.items():
        inner = wanted.properties[name].type
        where = f"{pattern}.{name}" if pattern else name
        filled[name] = _descend(value, inner, behaviour, where)
    defaulted = []
    for name in wanted.properties:
        default = behaviour.defaults.get(f"{pattern}.{name}" if pattern else name)
        if name not in filled and not is_empty(default) and not behaviour.framework:
            filled[name] = default
            defaulted.append(name)
    filled[DEFAULTS] = sorted(defaulted)
    return filled


def _descend(value: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> Any:
    if wanted.kind == "array" and isinstance(value, list) and wanted.element is not None:
        return [_descend(each, wanted.element, behaviour, pattern) for each in value]
    if wanted.kind == "object" and isinstance(value, dict):
        return _with_defaults(value, wanted, behaviour, pattern)
    return value


def made_up_name(resource_name: str, random_seed: bytes, proposed: str | None = None) -> str:
    """
    Make the name of a resource that was given none: ``NAME-1a2b3c4``, or what the engine proposes.

    The engine's seed makes preview and update agree; without a seed the end is random.
    """
    if proposed:
        return proposed
    ending = hashlib.sha256((random_seed or secrets.token_bytes()) + resource_name.encode()).hexdigest()[
        :_RANDOM_CHARACTERS
    ]
    return f"{resource_name}-{ending}"


def check(
    arguments: Mapping[str, Any],
    package: Package,
    token: str,
    *,
    resource_name: str,
    make_name: Callable[[], str],
) -> tuple[dict[str, Any], list[Failure]]:
    """
    Check the arguments of a resource of type ``token``; ``make_name`` gives the name of one that has none.

    Returns the inputs, converted and with defaults and a `DEFAULTS` list at every depth, and what
    is wrong with them; with failures the inputs are those given.
    """
    schema, behaviour = package.resources[token].schema, package.resources[token].behaviour
    walk = _Walk(package, resource_name, behaviour)
    checked = walk.properties(arguments, schema.arguments, "", "")
    for first, second in behaviour.conflicts:
        if first in checked and second in checked:
            walk.fail(first, f"'{first}' cannot go together with '{second}'")
    for rule in behaviour.rules:
        if (wrong := rule(checked)) is not None:
            walk.fail(*wrong)
    if walk.failures:
        return dict(arguments), walk.failures
    inputs = _with_defaults(checked, ValueType("object", properties=schema.arguments), behaviour, "")
    if behaviour.autonamed and "name" not in inputs:
        inputs["name"] = make_name()
        inputs[DEFAULTS] = sorted([*inputs[DEFAULTS], "name"])
    return inputs, []


def check_provider(arguments: Mapping[str, Any], package: Package, *, resource_name: str) -> list[Failure]:
    """Check the arguments of the provider resource, with lists decoded. ``version`` is the engine's own."""
    walk = _Walk(package, resource_name, None)
    given = {name: value for name, value in arguments.items() if name not in ("version", "pluginDownloadURL")}
    checked = walk.properties(given, package.provider_arguments, "", "")
    for name, value in checked.items():
        validator = package.provider_validators.get(name)
        if validator is not None and value != UNKNOWN and (wrong := validator(value)):
            walk.fail(name, wrong)
        if name in package.provider_refused and not is_empty(value):
            walk.fail(
                name,
                f"The stand-in for the {package.name} plugin does not carry '{name}': "
                f"{package.provider_refused[name]}. Install the real plugin with {package.real_plugin}",
            )
    return walk.failures
