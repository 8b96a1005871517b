"""Placement groups (``internal/placementgroup/resource.go`` upstream)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.provider.errors import OperationError, PartlyCreatedError
from sandbox.provider.package import Creation

from .api import Api


def observed(group: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's placement group to properties."""
    return {
        "id": str(group["id"]),
        "name": group["name"],
        "type": group["type"],
        "labels": group["labels"],
        "servers": group["servers"],
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Make a placement group."""
    body = {"name": inputs["name"], "type": inputs["type"], "labels": inputs.get("labels") or {}}
    answer = api.request("POST", "/placement_groups", body)
    identifier = str(answer["placement_group"]["id"])
    try:
        api.settle(answer.get("action"))
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier)


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    """Return the properties of a placement group, None if there is none."""
    found = api.get(f"/placement_groups/{identifier}")
    return observed(found["placement_group"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change name and labels."""
    path = f"/placement_groups/{identifier}"
    for name, absent in (("name", ""), ("labels", {})):
        if (new.get(name) or absent) != (old.get(name) or absent):
            api.request("PUT", path, {name: new.get(name) or absent})
    return observed(api.request("GET", path)["placement_group"])


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:  # noqa: ARG001
    """Remove the group. Like upstream this takes a group that is gone already for an error."""
    api.request("DELETE", f"/placement_groups/{identifier}")
