"""What a request asks: fields of its body, each checked, with every complaint told at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from flask import request

from .errors import ApiError, invalid_input

LABEL_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?")
LABEL_PREFIX = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
"""Both from https://docs.hetzner.cloud/reference/cloud#description/labels."""

HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
)
"""A host name of RFC 1123, as names of servers have to be."""

LONGEST_NAME = 128
"""Characters; documented for firewalls, and taken for every kind."""


class Body:
    """
    The fields of a request's JSON body.

    Reading a field that cannot be taken gives a harmless value and keeps the complaint; `check` then raises
    them all as one ``invalid_input``. Fields that are not read are ignored, as the API does.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        """Read the current request, or take ``fields``. Raises ``json_error`` where it is no JSON."""
        self._fields = _json_object() if fields is None else fields
        self._problems: dict[str, list[str]] = {}

    def has(self, name: str) -> bool:
        """Tell whether the field is there and not null."""
        return self._fields.get(name) is not None

    def reject(self, name: str, problem: str) -> None:
        """Keep a complaint about a field."""
        self._problems.setdefault(name, []).append(problem)

    def check(self) -> None:
        """Raise all complaints as one ``invalid_input``, if there are any."""
        if self._problems:
            raise invalid_input(self._problems)

    def value(self, name: str, kind: type | tuple[type, ...], noun: str, *, required: bool = False) -> Any:
        """Return the field, or None if it is not there; complain if it is of another kind."""
        value = self._fields.get(name)
        if value is None:
            if required:
                self.reject(name, "missing data for required field")
            return None
        # JSON's true is no number, though Python's is
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.reject(name, f"must be {noun}")
            return None
        return value

    def string(
        self,
        name: str,
        *,
        required: bool = False,
        allowed: Collection[str] | None = None,
        longest: int | None = None,
    ) -> str:
        """Return a text, empty if it is not there; ``longest`` is in characters."""
        text: str = self.value(name, str, "a string", required=required) or ""
        if required and self.has(name) and not text:
            self.reject(name, "must not be empty")
        if text and allowed is not None and text not in allowed:
            self.reject(name, f"must be one of {', '.join(allowed)}")
        if longest is not None and len(text) > longest:
            self.reject(name, f"must not be longer than {longest} characters")
        return text

    def name(self, *, required: bool = True) -> str:
        """Return the name of a resource."""
        return self.string("name", required=required, longest=LONGEST_NAME)

    def host_name(self, *, required: bool = True) -> str:
        """Return the name of a server, which is a host name."""
        name = self.string("name", required=required)
        if name and not HOST_NAME.fullmatch(name):
            self.reject("name", "must be a valid hostname as per RFC 1123")
        return name

    def integer(self, name: str, *, required: bool = False) -> int | None:
        """Return a number, or None if it is not there."""
        number: int | None = self.value(name, int, "an integer", required=required)
        return number

    def boolean(self, name: str, *, default: bool = False, required: bool = False) -> bool:
        """Return a truth value."""
        value: bool | None = self.value(name, bool, "a boolean", required=required)
        return default if value is None else value

    def identity(self, name: str, *, required: bool = False) -> str:
        """Return an ID or a name as text, empty if it is not there."""
        value = self.value(name, (int, str), "an ID or a name", required=required)
        return "" if value is None else str(value)

    def integers(self, name: str) -> list[int]:
        """Return a list of IDs, empty if it is not there."""
        numbers = self.value(name, list, "a list") or []
        if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            return list(numbers)
        self.reject(name, "must be a list of integers")
        return []

    def objects(self, name: str, *, required: bool = False) -> list[dict[str, Any]]:
        """Return a list of objects, empty if it is not there."""
        entries = self.value(name, list, "a list", required=required) or []
        if all(isinstance(entry, dict) for entry in entries):
            return list(entries)
        self.reject(name, "must be a list of objects")
        return []

    def fields(self, name: str) -> Body:
        """Return a field that is an object, without fields if it is not there."""
        return Body(self.value(name, dict, "an object") or {})

    def labels(self) -> dict[str, str]:
        """Return the labels, empty if there are none."""
        labels = self.value("labels", dict, "an object") or {}
        for key, value in labels.items():
            if not _is_label_key(key):
                self.reject("labels", f"label key '{key}' is not correctly formatted")
            if not isinstance(value, str) or (value and not LABEL_NAME.fullmatch(value)):
                self.reject("labels", f"label value of key '{key}' is not correctly formatted")
        return dict(labels)


def _json_object() -> Mapping[str, Any]:
    if not request.get_data():
        return {}
    fields = request.get_json(force=True, silent=True)
    if not isinstance(fields, dict):
        raise ApiError(HTTPStatus.BAD_REQUEST, "json_error", "Invalid JSON input in your request")
    return fields


def _is_label_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and (not LABEL_PREFIX.fullmatch(prefix) or prefix == "hetzner.cloud"):
        return False
    return LABEL_NAME.fullmatch(name) is not None
