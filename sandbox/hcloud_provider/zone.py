"""DNS zones (``internal/zone/resource.go`` upstream)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.provider.errors import OperationError, PartlyCreatedError
from sandbox.provider.package import Creation

from .api import Api

DEFAULT_TTL = 3600
"""Of a zone (``internal/zone/resource.go`` upstream)."""


def observed(zone: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's zone to properties."""
    return {
        "id": str(zone["id"]),
        "name": zone["name"],
        "mode": zone["mode"],
        "ttl": zone["ttl"],
        "labels": zone["labels"],
        "deleteProtection": zone["protection"]["delete"],
        "primaryNameservers": zone.get("primary_nameservers") or [],
        "authoritativeNameservers": {"assigneds": zone["authoritative_nameservers"]["assigned"]},
        "registrar": zone["registrar"],
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Make a primary zone. Raises `PartlyCreatedError` if it is there, but not protected as asked."""
    body: dict[str, Any] = {
        "name": inputs["name"],
        "mode": inputs["mode"],
        "labels": inputs.get("labels") or {},
        "ttl": inputs.get("ttl") or DEFAULT_TTL,
    }
    answer = api.request("POST", "/zones", body)
    identifier = str(answer["zone"]["id"])
    try:
        api.settle(answer.get("action"))
        if inputs.get("deleteProtection") is not None:
            protection = {"delete": inputs["deleteProtection"]}
            api.act(f"/zones/{identifier}/actions/change_protection", protection)
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier)


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    """Return the properties of a zone, None if there is none; an import may name it."""
    found = api.get(f"/zones/{identifier}")
    return observed(found["zone"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change default time to live, protection and labels."""
    path = f"/zones/{identifier}"
    if new.get("ttl") != old.get("ttl"):
        api.act(f"{path}/actions/change_ttl", {"ttl": new.get("ttl") or DEFAULT_TTL})
    if bool(new.get("deleteProtection")) != bool(old.get("deleteProtection")):
        api.act(f"{path}/actions/change_protection", {"delete": bool(new.get("deleteProtection"))})
    changed = {"labels": new["labels"]} if new.get("labels") != old.get("labels") else {}
    return observed(api.request("PUT", path, changed)["zone"])


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:  # noqa: ARG001
    """Remove the zone with all its records."""
    api.remove(f"/zones/{identifier}")
