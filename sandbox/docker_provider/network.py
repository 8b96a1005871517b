"""Networks: arguments to Docker's API and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import docker.errors

from sandbox.provider.package import Creation

from .daemon import REMOVAL_TIMEOUT, Daemon, is_missing, said


def labels_of(blocks: list[dict[str, Any]] | None) -> dict[str, str]:
    """Turn ``[{label, value}]`` into Docker's map."""
    return {block["label"]: block["value"] for block in blocks or []}


def label_blocks(labels: Mapping[str, str] | None) -> list[dict[str, str]]:
    """Turn Docker's map of labels into ``[{label, value}]``."""
    return [{"label": label, "value": value} for label, value in sorted((labels or {}).items())]


def create_arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate inputs to the arguments of ``docker.APIClient.create_network``."""
    ipam: dict[str, Any] = {}
    if inputs.get("ipamDriver"):
        ipam["Driver"] = inputs["ipamDriver"]
    if inputs.get("ipamConfigs"):
        ipam["Config"] = [
            {
                "Subnet": each.get("subnet") or "",
                "IPRange": each.get("ipRange") or "",
                "Gateway": each.get("gateway") or "",
                "AuxiliaryAddresses": each.get("auxAddress") or {},
            }
            for each in inputs["ipamConfigs"]
        ]
    if inputs.get("ipamOptions"):
        ipam["Options"] = inputs["ipamOptions"]
    return {
        "name": inputs["name"],
        "driver": inputs.get("driver") or None,
        "options": inputs.get("options") or None,
        "ipam": ipam or None,
        "check_duplicate": True,
        "internal": bool(inputs.get("internal")),
        "labels": labels_of(inputs.get("labels")) or None,
        "enable_ipv6": bool(inputs.get("ipv6")),
        "attachable": inputs.get("attachable"),
        "ingress": inputs.get("ingress"),
    }


def observed(inspection: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what ``docker network inspect`` says to properties."""
    ipam = inspection.get("IPAM") or {}
    return {
        "id": inspection["Id"],
        "name": inspection["Name"],
        "labels": label_blocks(inspection.get("Labels")),
        "driver": inspection["Driver"],
        "internal": inspection["Internal"],
        "attachable": inspection["Attachable"],
        "ingress": inspection["Ingress"],
        "ipv6": inspection["EnableIPv6"],
        "ipamDriver": ipam.get("Driver"),
        "ipamOptions": ipam.get("Options") or {},
        "ipamConfigs": [
            {
                "auxAddress": each.get("AuxiliaryAddresses") or {},
                "gateway": each.get("Gateway") or "",
                "ipRange": each.get("IPRange") or "",
                "subnet": each.get("Subnet") or "",
            }
            for each in ipam.get("Config") or []
        ],
        "options": inspection.get("Options") or {},
        "scope": inspection["Scope"],
    }


def create(daemon: Daemon, inputs: Mapping[str, Any]) -> Creation:
    """Create a network."""
    with daemon.explained("Unable to create network"):
        return Creation(str(daemon.api.create_network(**create_arguments(inputs))["Id"]))


def read(daemon: Daemon, identifier: str) -> dict[str, Any] | None:
    """Return the properties of a network, None if there is none."""
    with daemon.explained("Unable to inspect network"):
        try:
            return observed(daemon.api.inspect_network(identifier))
        except docker.errors.NotFound:
            return None


def delete(daemon: Daemon, identifier: str) -> None:
    """Remove a network; waits while containers still hang on it."""
    doing = "Unable to remove network"

    def removed() -> bool:
        try:
            daemon.api.remove_network(identifier)
        except docker.errors.APIError as error:
            if is_missing(error):
                return True
            if "has active endpoints" in said(error):
                return False
            raise
        return True

    with daemon.explained(doing):
        daemon.wait_until(removed, REMOVAL_TIMEOUT, f"{doing} {identifier}, which has active endpoints")
