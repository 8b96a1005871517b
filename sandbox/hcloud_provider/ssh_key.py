"""SSH keys (``internal/sshkey/resource.go`` upstream)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.provider.package import Creation

from .api import Api


def observed(key: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's key to properties."""
    return {
        "id": str(key["id"]),
        "name": key["name"],
        "publicKey": key["public_key"],
        "fingerprint": key["fingerprint"],
        "labels": key["labels"],
    }


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Upload a public key."""
    body = {
        "name": inputs["name"],
        "public_key": inputs["publicKey"],
        "labels": inputs.get("labels") or {},
    }
    return Creation(str(api.request("POST", "/ssh_keys", body)["ssh_key"]["id"]))


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    """Return the properties of a key, None if there is none."""
    found = api.get(f"/ssh_keys/{identifier}")
    return observed(found["ssh_key"]) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Change name and labels."""
    body = {name: new[name] for name in ("name", "labels") if new.get(name) != old.get(name)}
    return observed(api.request("PUT", f"/ssh_keys/{identifier}", body)["ssh_key"])


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:  # noqa: ARG001
    """Remove the key; servers made with it keep it."""
    api.remove(f"/ssh_keys/{identifier}")
