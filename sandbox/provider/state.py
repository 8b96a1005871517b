"""
State (outputs) of resources: what is kept of the program's inputs, and inputs read back.

Follows what the Terraform bridge (https://github.com/pulumi/pulumi-terraform-bridge,
pkg/tfbridge/schema.go) makes of the upstream provider's state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .behaviour import Behaviour
from .schema import Property, ResourceSchema, ValueType
from .values import DEFAULTS, UNKNOWN, is_empty, without_defaults

_TIMEOUTS_KEY = "e2bfb730-ecaa-11e6-8f88-34363bc7c4c0"
"""Key of the timeouts in a Terraform state (terraform-plugin-sdk, helper/schema/resource_timeout.go)."""


def meta(behaviour: Behaviour) -> str:
    """Return what the real plugin keeps under ``__meta``; a state without it would seem an old one to it."""
    known: dict[str, Any] = {}
    if behaviour.timeouts:
        known[_TIMEOUTS_KEY] = {name: each * 1_000_000_000 for name, each in behaviour.timeouts.items()}
    if behaviour.schema_version:
        known["schema_version"] = str(behaviour.schema_version)
    return json.dumps(known, separators=(",", ":"), sort_keys=True)


def kept(value: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> Any:
    """Return what the state keeps of a value of the program; ``pattern`` is its path without places."""
    if not behaviour.state_functions or value is None or value == UNKNOWN:
        return value
    if wanted.kind == "array" and isinstance(value, list) and wanted.element is not None:
        return [kept(each, wanted.element, behaviour, pattern) for each in value]
    if wanted.kind == "object" and isinstance(value, dict):
        return {
            name: kept(each, wanted.properties[name].type, behaviour, f"{pattern}.{name}")
            if name in wanted.properties
            else each
            for name, each in value.items()
        }
    function = behaviour.state_functions.get(pattern)
    return function(value) if function is not None else value


def _filled(value: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> Any:
    """Fill in the fields of objects that upstream would hold as zeros."""
    if wanted.kind == "array" and isinstance(value, list) and wanted.element is not None:
        return [_filled(each, wanted.element, behaviour, pattern) for each in value]
    if wanted.kind == "object" and isinstance(value, dict):
        return {
            name: _field(value.get(name), each.type, behaviour, f"{pattern}.{name}")
            for name, each in wanted.properties.items()
        }
    if wanted.kind == "map" and isinstance(value, dict):
        return {key: each for key, each in value.items() if key != DEFAULTS}
    return value


def _field(value: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> Any:
    if value is None:
        default = behaviour.defaults.get(pattern)
        if default is not None:
            return default
        return {"string": "", "array": []}.get(wanted.kind)
    return _filled(value, wanted, behaviour, pattern)


def _absent(wanted: ValueType, default: Any) -> Any:
    """Return what the state holds for an argument that the program left out."""
    if default is not None:
        return default
    blocks = wanted.kind == "array" and wanted.element is not None and wanted.element.kind == "object"
    return [] if blocks else None


def _with_unknown(element: Any, name: str, unknown: Any) -> Any:
    """Fill in a field that will be filled, unless the whole element is not known yet."""
    if isinstance(element, dict) and element.get(name) is None:
        return {**element, name: unknown}
    return element


def planned(
    inputs: Mapping[str, Any], schema: ResourceSchema, behaviour: Behaviour, *, computed: Any = None
) -> dict[str, Any]:
    """
    Return the state that the inputs alone make.

    ``computed`` stands where a value is filled in: `UNKNOWN` in a preview, else None.
    """
    state: dict[str, Any] = {}
    for name, each in schema.arguments.items():
        if inputs.get(name) is not None:
            value = kept(inputs[name], each.type, behaviour, name)
            whole = behaviour.framework
            state[name] = without_defaults(value) if whole else _filled(value, each.type, behaviour, name)
        elif name in behaviour.computed:
            state[name] = computed
        else:
            default = behaviour.defaults.get(name)
            state[name] = default if behaviour.framework else _absent(each.type, default)
    for name in schema.outputs:
        if name not in schema.arguments:
            state[name] = computed
    if computed is not None:
        for path in behaviour.computed_nested:
            name, inner = path.split(".")
            if isinstance(state[name], list):
                state[name] = [_with_unknown(each, inner, computed) for each in state[name]]
    return tidy(state, behaviour)


def tidy(state: Mapping[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    """Leave out what is null, which a state of the plugin framework does not write."""
    return {name: value for name, value in state.items() if value is not None or not behaviour.framework}


def created(
    inputs: Mapping[str, Any], observed: Mapping[str, Any], schema: ResourceSchema, behaviour: Behaviour
) -> dict[str, Any]:
    """
    Return the state of a resource just created.

    What was read back goes over what was planned, but sets stay as planned: Terraform's SDK
    holds on to them (``normalizeNullValues``, helper/schema/grpc_provider.go). That is why elements
    that are written differently there show only after a refresh.
    """
    state = planned(inputs, schema, behaviour)
    for name, value in observed.items():
        argument = schema.arguments.get(name)
        keeps = (
            argument is not None
            and not behaviour.framework
            and not is_empty(inputs.get(name))
            and _holds_set(name, argument.type, behaviour)
        )
        if not keeps:
            state[name] = value
    for name in behaviour.computed:
        if (
            state.get(name) is None
            and schema.arguments[name].type.kind == "array"
            and not behaviour.framework
        ):
            state[name] = []  # null would make the real plugin, should it take the state over, replace
    return tidy(state, behaviour)


def _holds_set(pattern: str, wanted: ValueType, behaviour: Behaviour) -> bool:
    if pattern in behaviour.sets:
        return True
    return wanted.kind == "object" and any(
        _holds_set(f"{pattern}.{name}", each.type, behaviour) for name, each in wanted.properties.items()
    )


def updated(
    old_state: Mapping[str, Any],
    inputs: Mapping[str, Any],
    schema: ResourceSchema,
    behaviour: Behaviour,
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the state after an update in place; nothing is read back, computed values are the old ones."""
    state = planned(inputs, schema, behaviour)
    filled_in = behaviour.computed | behaviour.kept_when_unset | (set(schema.outputs) - set(schema.arguments))
    unchanged = {
        name
        for name in filled_in
        if is_empty(inputs.get(name))
        and not isinstance(inputs.get(name), bool)
        and not (name in behaviour.empty_is_change and inputs.get(name) is not None)
    }
    unchanged |= {path.split(".")[0].split("[")[0] for path in ignored}
    for name in unchanged:
        if name in old_state:
            state[name] = old_state[name]
    return state


def refreshed_inputs(
    inputs: Mapping[str, Any], state: Mapping[str, Any], schema: ResourceSchema, behaviour: Behaviour
) -> dict[str, Any]:
    """Return the inputs as a refresh would write them: those the program gave, with the values there are."""
    return _refreshed_object(inputs, state, schema.arguments, behaviour, "")[0]


def _refreshed_object(
    inputs: Mapping[str, Any],
    state: Mapping[str, Any],
    properties: Mapping[str, Property],
    behaviour: Behaviour,
    pattern: str,
) -> tuple[dict[str, Any], bool]:
    result: dict[str, Any] = {}
    defaulted = list(inputs.get(DEFAULTS, []))
    same = True
    for name, old in inputs.items():
        if name == DEFAULTS or name not in properties or name not in state:
            same = same and name == DEFAULTS
            continue
        where = f"{pattern}.{name}" if pattern else name
        if kept(old, properties[name].type, behaviour, where) == state[name]:
            result[name] = old
            continue
        result[name], unchanged = _refreshed(old, state[name], properties[name].type, behaviour, where)
        if not unchanged:
            same = False
            if name in defaulted:
                defaulted.remove(name)
    if DEFAULTS in inputs:
        result[DEFAULTS] = sorted(each for each in defaulted if each in result)
    return result, same


def _refreshed(old: Any, new: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> tuple[Any, bool]:
    if isinstance(old, list) and isinstance(new, list) and wanted.element is not None:
        element = wanted.element
        unordered = pattern in behaviour.sets
        if unordered and element.kind == "object":
            pairs = _matched(old, new)
        elif unordered:
            pairs = _matched_scalars(old, new)
        else:
            pairs = dict(zip(range(len(old)), range(len(new)), strict=False))
        items = [
            _refreshed(old[index], new[pairs[index]], element, behaviour, pattern)
            for index in range(len(old))
            if index in pairs
        ]
        return [item for item, _ in items], len(items) == len(old) and all(same for _, same in items)
    if isinstance(old, dict) and isinstance(new, dict):
        if wanted.kind == "object":
            return _refreshed_object(old, new, wanted.properties, behaviour, pattern)
        found = {key: new[key] for key in old if key in new}
        return found, found == old
    return new, old == new


def _matched(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[int, int]:
    """Pair up the elements of two sets of objects, most alike first (``matchSetElements`` in the bridge)."""
    scores = []
    for old_index, old_element in enumerate(old):
        for new_index, new_element in enumerate(new):
            shared = [key for key in old_element if key in new_element]
            equal = [key for key in shared if old_element[key] == new_element[key]]
            scores.append((-len(shared) - 2 * len(equal), old_index, new_index))
    pairs: dict[int, int] = {}
    for _, old_index, new_index in sorted(scores):
        if old_index not in pairs and new_index not in pairs.values():
            pairs[old_index] = new_index
    return pairs


def _matched_scalars(old: list[Any], new: list[Any]) -> dict[int, int]:
    """Pair up equal elements of two sets, then the rest in order."""
    pairs: dict[int, int] = {}
    for old_index, element in enumerate(old):
        for new_index, candidate in enumerate(new):
            if candidate == element and new_index not in pairs.values():
                pairs[old_index] = new_index
                break
    rest = [index for index in range(len(new)) if index not in pairs.values()]
    for old_index in range(len(old)):
        if old_index not in pairs and rest:
            pairs[old_index] = rest.pop(0)
    return pairs


def imported_inputs(state: Mapping[str, Any], schema: ResourceSchema, behaviour: Behaviour) -> dict[str, Any]:
    """Return the inputs that an import finds: every argument that is neither zero nor its default."""
    return _imported_object(state, schema.arguments, behaviour, "")


def _imported_object(
    state: Mapping[str, Any], properties: Mapping[str, Property], behaviour: Behaviour, pattern: str
) -> dict[str, Any]:
    found: dict[str, Any] = {DEFAULTS: []}
    for name, each in properties.items():
        where = f"{pattern}.{name}" if pattern else name
        value = state.get(name)
        if not each.required and (is_empty(value) or value == behaviour.defaults.get(where)):
            continue
        found[name] = _imported(value, each.type, behaviour, where)
    return found


def _imported(value: Any, wanted: ValueType, behaviour: Behaviour, pattern: str) -> Any:
    if isinstance(value, list) and wanted.element is not None:
        return [_imported(each, wanted.element, behaviour, pattern) for each in value]
    if isinstance(value, dict) and wanted.kind == "object":
        return _imported_object(value, wanted.properties, behaviour, pattern)
    return value


def known_before_create(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a preview's new resource: its id is not known either."""
    return {**state, "id": UNKNOWN}
