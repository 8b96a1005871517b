"""Record sets of DNS zones (``internal/zonerrset/resource.go`` upstream)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.provider.errors import OperationError, PartlyCreatedError
from sandbox.provider.package import Creation

from .api import Api


def record_body(record: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a record of the program to the API's."""
    return {name: record[name] for name in ("value", "comment") if record.get(name)}


def observed(zone: str, rrset: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's record set to properties; ``zone`` is as the program names it."""
    return {
        "id": rrset["id"],
        "zone": zone,
        "name": rrset["name"],
        "type": rrset["type"],
        "ttl": rrset["ttl"],
        "labels": rrset["labels"],
        "changeProtection": rrset["protection"]["change"],
        "records": [record_body(each) for each in rrset["records"]],
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Make a record set. Raises `PartlyCreatedError` if it is there, but not protected as asked."""
    path = f"/zones/{inputs['zone']}/rrsets"
    body: dict[str, Any] = {
        "name": inputs["name"],
        "type": inputs["type"],
        "labels": inputs.get("labels") or {},
        "records": [record_body(each) for each in inputs["records"]],
    }
    if inputs.get("ttl") is not None:
        body["ttl"] = inputs["ttl"]
    answer = api.request("POST", path, body)
    identifier = answer["rrset"]["id"]
    try:
        if inputs.get("changeProtection") is not None:
            protection = {"change": inputs["changeProtection"]}
            api.act(f"{path}/{identifier}/actions/change_protection", protection)
        api.settle(answer.get("action"))
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier)


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the properties of a record set, None if there is none; an import gives ``ZONE/NAME/TYPE``."""
    zone = prior.get("zone")
    if not zone:
        zone, _, identifier = identifier.partition("/")
    found = api.get(f"/zones/{zone}/rrsets/{identifier}")
    return observed(zone, found["rrset"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change time to live, records, labels and protection; protection goes first, or comes last."""
    path = f"/zones/{new['zone']}/rrsets/{identifier}"
    protected = bool(new.get("changeProtection"))
    change = {"change": protected} if protected != bool(old.get("changeProtection")) else None
    if change and not protected:
        api.act(f"{path}/actions/change_protection", change)
    if new.get("ttl") != old.get("ttl"):
        api.act(f"{path}/actions/change_ttl", {"ttl": new.get("ttl")})
    if new["records"] != old.get("records"):
        api.act(f"{path}/actions/set_records", {"records": [record_body(each) for each in new["records"]]})
    labels = {"labels": new["labels"]} if new.get("labels") != old.get("labels") else {}
    rrset = api.request("PUT", path, labels)["rrset"]
    if change and protected:
        api.act(f"{path}/actions/change_protection", change)
        rrset["protection"]["change"] = True
    return observed(new["zone"], rrset)


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:
    """Remove the record set."""
    api.remove(f"/zones/{state['zone']}/rrsets/{identifier}")
