"""Firewalls (``internal/firewall/resource.go`` upstream)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from sandbox.provider.errors import OperationError
from sandbox.provider.package import Creation

from .api import RETRIES, Api, ApiError


def normalized_network(text: str) -> str:
    """
    Write an address or a network as the API does: small letters, shortest form, with a prefix length.

    What is neither comes back as it is (``normalizeIP`` in internal/firewall/validation.go upstream).
    """
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        return text


def wrong_network(text: str) -> str | None:
    """Return what is wrong with the network of a rule, None if nothing is."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return f"invalid CIDR address: {text}"
    if interface.ip == interface.network.network_address:
        return None
    return f"{interface} is not the start of the cidr block {interface.network}"


def rule_body(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a rule of the program to the API's."""
    body = {"direction": rule["direction"], "protocol": rule["protocol"]}
    for name in ("port", "description"):
        if rule.get(name):
            body[name] = rule[name]
    for name, wire in (("sourceIps", "source_ips"), ("destinationIps", "destination_ips")):
        if rule.get(name):
            body[wire] = [normalized_network(each) for each in rule[name]]
    return body


def rule_block(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's rule to the state's."""
    return {
        "direction": rule["direction"],
        "protocol": rule["protocol"],
        "port": rule.get("port") or "",
        "description": rule.get("description") or "",
        "sourceIps": rule.get("source_ips") or [],
        "destinationIps": rule.get("destination_ips") or [],
    }


def observed(firewall: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's firewall to properties."""
    applied = []
    for each in firewall["applied_to"]:
        if each["type"] == "server":
            applied.append({"labelSelector": "", "server": each["server"]["id"]})
        else:
            applied.append({"labelSelector": each["label_selector"]["selector"], "server": 0})
    return {
        "id": str(firewall["id"]),
        "name": firewall["name"],
        "labels": firewall["labels"],
        "rules": [rule_block(each) for each in firewall["rules"]],
        "applyTos": applied,
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Make a firewall; servers are put behind it by their own ``firewallIds``."""
    body: dict[str, Any] = {"name": inputs["name"]}
    if inputs.get("rules"):
        body["rules"] = [rule_body(each) for each in inputs["rules"]]
    if inputs.get("labels"):
        body["labels"] = inputs["labels"]
    answer = api.request("POST", "/firewalls", body)
    api.settle(*answer["actions"])
    return Creation(str(answer["firewall"]["id"]))


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    """Return the properties of a firewall, None if there is none."""
    found = api.get(f"/firewalls/{identifier}")
    return observed(found["firewall"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, rules and labels. That all rules go is not sent, as upstream: a refresh shows them."""
    path = f"/firewalls/{identifier}"
    api.request("GET", path)
    if new["name"] != old.get("name"):
        api.request("PUT", path, {"name": new["name"]})
    rules = [rule_body(each) for each in new.get("rules") or []]
    if rules and new.get("rules") != old.get("rules"):
        api.act(f"{path}/actions/set_rules", {"rules": rules})
    if new.get("labels") is not None and new["labels"] != old.get("labels"):
        api.request("PUT", path, {"labels": new["labels"]})
    return observed(api.request("GET", path)["firewall"])


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:  # noqa: ARG001
    """
    Take the firewall from what it is applied to and remove it.

    Raises `OperationError` for one that is gone already: there the real plugin dies, and only a
    refresh helps.
    """
    path = f"/firewalls/{identifier}"
    found = api.get(path)
    if found is None:
        raise OperationError(f"firewall with ID '{identifier}' not found; refresh the stack to forget it")
    applied = found["firewall"]["applied_to"]
    if applied:
        try:
            api.act(f"{path}/actions/remove_from_resources", {"remove_from": applied})
        except ApiError as error:
            if error.code not in ("firewall_resource_not_found", "not_found"):
                raise

    api.persist(
        lambda: api.remove(path),
        2 * RETRIES,
        lambda error: getattr(error, "code", "") in ("conflict", "resource_in_use"),
    )
