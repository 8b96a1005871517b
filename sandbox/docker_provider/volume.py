"""Volumes: arguments to Docker's API and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import docker.errors

from sandbox.provider.package import Creation

from .daemon import REMOVAL_TIMEOUT, Daemon, is_missing, said
from .network import label_blocks, labels_of


def create_arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate inputs to the arguments of ``docker.APIClient.create_volume``."""
    return {
        "name": inputs["name"],
        "driver": inputs.get("driver") or None,
        "driver_opts": inputs.get("driverOpts") or None,
        "labels": labels_of(inputs.get("labels")) or None,
    }


def observed(inspection: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what ``docker volume inspect`` says to properties."""
    return {
        "id": inspection["Name"],
        "name": inspection["Name"],
        "labels": label_blocks(inspection.get("Labels")),
        "driver": inspection["Driver"],
        "driverOpts": inspection.get("Options") or {},
        "mountpoint": inspection["Mountpoint"],
    }


def create(daemon: Daemon, inputs: Mapping[str, Any]) -> Creation:
    """Create a volume or take over the one of that name, which is its id."""
    with daemon.explained("Unable to create volume"):
        return Creation(str(daemon.api.create_volume(**create_arguments(inputs))["Name"]))


def read(daemon: Daemon, identifier: str) -> dict[str, Any] | None:
    """Return the properties of a volume, None if there is none."""
    with daemon.explained("Unable to inspect volume"):
        try:
            return observed(daemon.api.inspect_volume(identifier))
        except docker.errors.NotFound:
            return None


def delete(daemon: Daemon, identifier: str) -> None:
    """Remove a volume and what it holds; waits while containers still use it."""
    doing = "Unable to remove volume"

    def removed() -> bool:
        try:
            daemon.api.remove_volume(identifier, force=True)
        except docker.errors.APIError as error:
            if is_missing(error):
                return True
            if "volume is in use" in said(error):
                return False
            raise
        return True

    with daemon.explained(doing):
        daemon.wait_until(removed, REMOVAL_TIMEOUT, f"{doing} {identifier}, which is in use")
