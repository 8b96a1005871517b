"""
Arguments of the docker resources, derived from the installed ``pulumi_docker`` package.

Names as they go over the wire, types and which are required all come from the SDK's argument
classes, so that the schema follows the pinned SDK. What the SDK does not know (which changes
replace, defaults, allowed values) is in `behaviour`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import pulumi_docker
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
    raise TypeError(f"the pulumi_docker package has an argument of a type this schema cannot carry: {hint!r}")


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


def _resource(token: str, resource_class: type, arguments_class: Any) -> ResourceSchema:
    return ResourceSchema(
        token=token,
        arguments=properties_of(arguments_class),
        outputs={
            name: _value_type(hint) for name, hint in pulumi_types.resource_types(resource_class).items()
        },
    )


@cache
def resource_schemas() -> Mapping[str, ResourceSchema]:
    """Schemas of the resource types that are carried, by type token."""
    schemas = (
        _resource("docker:index/network:Network", pulumi_docker.Network, pulumi_docker.NetworkArgs),
        _resource("docker:index/volume:Volume", pulumi_docker.Volume, pulumi_docker.VolumeArgs),
        _resource(
            "docker:index/remoteImage:RemoteImage", pulumi_docker.RemoteImage, pulumi_docker.RemoteImageArgs
        ),
        _resource("docker:index/container:Container", pulumi_docker.Container, pulumi_docker.ContainerArgs),
    )
    return {schema.token: schema for schema in schemas}


@cache
def provider_arguments() -> Mapping[str, Property]:
    """Return the arguments of the provider resource itself, by wire name."""
    return properties_of(pulumi_docker.ProviderArgs)


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


def package_schema(version: str) -> dict[str, Any]:
    """Return what is carried as a Pulumi package schema (https://www.pulumi.com/docs/iac/extending-pulumi/schema/)."""
    return {
        "name": "docker",
        "version": version,
        "resources": {
            token: {
                "inputProperties": {name: _type_spec(each.type) for name, each in schema.arguments.items()},
                "requiredInputs": sorted(name for name, each in schema.arguments.items() if each.required),
                "properties": {name: _type_spec(each) for name, each in schema.outputs.items()},
            }
            for token, schema in resource_schemas().items()
        },
    }
