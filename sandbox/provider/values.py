"""
Property values between protobuf and Python.

A value is None, a bool, an int, a float, a str, a list or a dict. Values that are not known yet
(in a preview) are the string `UNKNOWN`, as on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2
from pulumi.runtime import rpc

UNKNOWN: str = rpc.UNKNOWN
"""Stands for a value that is not known yet."""

DEFAULTS = "__defaults"
"""Key under which inputs list the names that Check filled in, as the real plugin does."""

_PLAIN_KEY = re.compile(r"^[A-Za-z_$][\w$]*$")


class NotAPlainValueError(ValueError):
    """An asset, an archive or a resource came where a plain value is wanted."""


def from_value(value: struct_pb2.Value) -> Any:
    """
    Turn a protobuf value into Python: whole numbers become ints, secrets lose their wrapping.

    Raises `NotAPlainValueError` for assets, archives and resource references.
    """
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "list_value":
            return [from_value(each) for each in value.list_value.values]
        case "struct_value":
            return _from_tagged(value.struct_value)
        case "bool_value" | "string_value" as kind:
            return getattr(value, kind)
        case _:
            return None


def _from_tagged(struct: struct_pb2.Struct) -> Any:
    """Turn a struct into a dict, or into what its signature says it stands for."""
    fields = struct.fields
    if rpc._special_sig_key not in fields:  # noqa: SLF001 - the SDK gives the signatures no public names
        return from_struct(struct)
    signature = fields[rpc._special_sig_key].string_value  # noqa: SLF001
    if signature == rpc._special_secret_sig:  # noqa: SLF001
        return from_value(fields["value"])
    if signature == rpc._special_output_value_sig:  # noqa: SLF001
        return from_value(fields["value"]) if "value" in fields else UNKNOWN
    raise NotAPlainValueError("its resources take no assets, archives or resources as arguments")


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Turn a protobuf struct into a dict. Raises as `from_value` does."""
    return {key: from_value(value) for key, value in struct.fields.items()}


def to_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Turn a dict of values into a protobuf struct."""
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


def is_empty(value: Any) -> bool:
    """Tell whether a value is null or its type's zero, which upstream cannot tell from each other."""
    if isinstance(value, dict):
        return all(key == DEFAULTS for key in value)
    return value is None or value in ("", [], 0) or value is False


def without_defaults(value: Any) -> Any:
    """Drop the `DEFAULTS` lists at every depth."""
    if isinstance(value, dict):
        return {key: without_defaults(each) for key, each in value.items() if key != DEFAULTS}
    if isinstance(value, list):
        return [without_defaults(each) for each in value]
    return value


def has_unknown(value: Any) -> bool:
    """Tell whether there is an unknown value at any depth."""
    if isinstance(value, dict):
        return any(has_unknown(each) for each in value.values())
    if isinstance(value, list):
        return any(has_unknown(each) for each in value)
    return isinstance(value, str) and value == UNKNOWN


def child(path: str, key: str | int) -> str:
    """Write the property path of an element or a field: ``ports[0].ip``, ``logOpts["max-size"]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.match(key):
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        return f'{path}["{escaped}"]'
    return f"{path}.{key}" if path else key
