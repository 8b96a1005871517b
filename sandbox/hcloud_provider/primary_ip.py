"""Primary IPs (``internal/primaryip/resource.go`` upstream)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from sandbox.provider.errors import OperationError, PartlyCreatedError
from sandbox.provider.package import Creation

from .api import RETRIES, Api, ApiError


def observed(address: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's primary IP to properties."""
    network = address["ip"] if address["type"] == "ipv6" else None
    return {
        "id": str(address["id"]),
        "name": address["name"],
        "type": address["type"],
        # of an IPv6 network the API gives the prefix as well
        "ipAddress": address["ip"].split("/")[0],
        "ipNetwork": network,
        "location": address["location"]["name"],
        "datacenter": (address.get("datacenter") or {}).get("name"),
        "assigneeId": address["assignee_id"] or 0,
        "assigneeType": address["assignee_type"],
        "autoDelete": address["auto_delete"],
        "deleteProtection": address["protection"]["delete"],
        "labels": address["labels"],
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Take an address. Raises `PartlyCreatedError` if it is there, but not assigned or protected as asked."""
    body = {
        "name": inputs["name"],
        "type": inputs["type"],
        "auto_delete": bool(inputs.get("autoDelete")),
        "labels": inputs.get("labels") or {},
    }
    if inputs.get("location") is not None:
        body["location"] = inputs["location"]
    else:
        body |= {"assignee_id": inputs["assigneeId"], "assignee_type": inputs["assigneeType"]}
    answer = api.request("POST", "/primary_ips", body)
    identifier = str(answer["primary_ip"]["id"])
    try:
        api.settle(answer.get("action"))
        if inputs.get("deleteProtection"):
            api.act(f"/primary_ips/{identifier}/actions/change_protection", {"delete": True})
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier)


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    """Return the properties of a primary IP, None if there is none."""
    found = api.get(f"/primary_ips/{identifier}")
    return observed(found["primary_ip"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change protection, assignee, name, labels and whether it goes with its server."""
    path = f"/primary_ips/{identifier}"
    if bool(new.get("deleteProtection")) != bool(old.get("deleteProtection")):
        api.act(f"{path}/actions/change_protection", {"delete": bool(new.get("deleteProtection"))})
    if any(new.get(name) != old.get(name) for name in ("assigneeId", "assigneeType")):
        if old.get("assigneeId"):
            api.act(f"{path}/actions/unassign")
        if new.get("assigneeId"):
            body = {"assignee_id": new["assigneeId"], "assignee_type": new.get("assigneeType")}
            api.act(f"{path}/actions/assign", body)
    names = {"name": "name", "labels": "labels", "autoDelete": "auto_delete"}
    changed = {wire: new[name] for name, wire in names.items() if new.get(name) != old.get(name)}
    return observed(api.request("PUT", path, changed)["primary_ip"])


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:
    """Give the address back; a server that still has it is switched off for that, and on again."""
    path = f"/primary_ips/{identifier}"
    if state.get("assigneeId"):
        if state.get("assigneeType") == "server":
            _unassign_from_server(api, int(identifier), state["assigneeId"])
        else:
            with contextlib.suppress(ApiError):
                api.act(f"{path}/actions/unassign")

    api.persist(
        lambda: api.remove(path), 2 * RETRIES, lambda error: getattr(error, "code", "") != "protected"
    )


def _unassign_from_server(api: Api, identifier: int, server: int) -> None:
    found = api.get(f"/servers/{server}")
    if found is None:
        return
    network = found["server"]["public_net"]
    if not any(each and each.get("id") == identifier for each in (network["ipv4"], network["ipv6"])):
        return
    for path in (
        f"/servers/{server}/actions/poweroff",
        f"/primary_ips/{identifier}/actions/unassign",
        f"/servers/{server}/actions/poweron",
    ):
        # it may have been unassigned meanwhile; an action that fails is told all the same
        with contextlib.suppress(ApiError):
            api.act(path)
