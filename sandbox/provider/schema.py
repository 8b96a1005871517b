"""
Arguments and outputs of resources, derived from the installed SDK of their provider.

Names as they go over the wire, types and which are required all come from the SDK's argument
classes, so that the schema follows the pinned SDK. What the SDK does not know (which changes
replace, defaults, allowed values) is in `behaviour`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pulumi import _types as pulumi_types

Kind = Literal["string", "integer", "number", "boolean", "array", "map", "object"]

_SCALARS: dict[Any, Kind] = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class ValueType:
    """A type: a scalar, an ``array`` or ``map`` of `element`, or an ``object`` with `properties`."""

    kind: Kind
    element: ValueType | None = None
    properties: Mapping[str, Property] = field(default_factory=dict)


@dataclass(frozen=True)
class Property:
    """One argument: its type, and whether the SDK asks for it."""

    type: ValueType
    required: bool


@dataclass(frozen=True)
class ResourceSchema:
    """Arguments and outputs of one resource type, by wire name."""

    token: str
    arguments: Mapping[str, Property]
    outputs: Mapping[str, ValueType]


def _value_type(hint: Any) -> ValueType:
    if hint in _SCALARS:
        return ValueType(_SCALARS[hint])
    origin = typing.get_origin(hint)
    arguments = [each for each in typing.get_args(hint) if each is not type(None)]
    if origin is typing.Union:
        # Input[T] is Union[T, Awaitable[T], Output[T]]: the plain type comes first
        return _value_type(arguments[0])
    if origin in (Sequence, list):
        return ValueType("array", element=_value_type(arguments[0]))
    if origin in (Mapping, dict):
        return ValueType("map", element=_value_type(arguments[-1]))
    if inspect.isclass(hint) and pulumi_types.is_input_type(hint):
        return ValueType("object", properties=properties_of(hint))
    if inspect.isclass(hint) and pulumi_types.is_output_type(hint):
        outputs = pulumi_types.output_type_types(hint)
        return ValueType(
            "object",
            properties={name: Property(_value_type(each), required=False) for name, each in outputs.items()},
        )
    raise TypeError(f"the SDK has an argument of a type this schema cannot carry: {hint!r}")


def properties_of(arguments_class: Any) -> Mapping[str, Property]:
    """
    Properties of an SDK argument class (such as ``pulumi_docker.ContainerArgs``) by wire name.

    Raises `TypeError` where a hint is of no known form.
    """
    required = {
        name
        for name, parameter in inspect.signature(arguments_class.__init__).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    python_names = {
        wire: python for python, wire in pulumi_types.input_type_py_to_pulumi_names(arguments_class).items()
    }
    return {
        wire: Property(_value_type(hint), required=python_names[wire] in required)
        for wire, hint in pulumi_types.input_type_types(arguments_class).items()
    }


def resource_schema(token: str, resource_class: type, arguments_class: Any) -> ResourceSchema:
    """
    Return the schema of an SDK's resource class (``pulumi_docker.Container``) and its argument class.

    Raises `TypeError` where a hint is of no known form.
    """
    return ResourceSchema(
        token=token,
        arguments=properties_of(arguments_class),
        outputs={
            name: _value_type(hint) for name, hint in pulumi_types.resource_types(resource_class).items()
        },
    )


def _type_spec(value: ValueType) -> dict[str, Any]:
    match value.kind:
        case "array":
            assert value.element is not None  # noqa: S101 - arrays always have one
            return {"type": "array", "items": _type_spec(value.element)}
        case "map":
            assert value.element is not None  # noqa: S101 - maps always have one
            return {"type": "object", "additionalProperties": _type_spec(value.element)}
        case "object":
            return {"type": "object", "additionalProperties": {"$ref": "pulumi.json#/Any"}}
        case _:
            return {"type": value.kind}


def package_schema(name: str, version: str, resources: Iterable[ResourceSchema]) -> dict[str, Any]:
    """Return what is carried as a Pulumi package schema (https://www.pulumi.com/docs/iac/extending-pulumi/schema/)."""
    return {
        "name": name,
        "version": version,
        "resources": {
            schema.token: {
                "inputProperties": {name: _type_spec(each.type) for name, each in schema.arguments.items()},
                "requiredInputs": sorted(name for name, each in schema.arguments.items() if each.required),
                "properties": {name: _type_spec(each) for name, each in schema.outputs.items()},
            }
            for schema in resources
        },
    }
