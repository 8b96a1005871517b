"""SSH keys: ``/ssh_keys``."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from http import HTTPStatus
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flask import Blueprint

from .cloud import Cloud
from .errors import not_unique
from .inputs import Body
from .listing import listed
from .state import SshKey, check_name, found, now

NOUN = "SSH key"


class SshKeys:
    """The routes of SSH keys."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the keys of a project."""
        self._project = cloud.project

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("ssh_keys", __name__)
        routes.get("/ssh_keys")(self.list_keys)
        routes.post("/ssh_keys")(self.create)
        routes.get("/ssh_keys/<identity>")(self.get)
        routes.put("/ssh_keys/<identity>")(self.update)
        routes.delete("/ssh_keys/<identity>")(self.delete)
        return routes

    def list_keys(self) -> dict[str, Any]:
        """List the keys."""
        keys = [dataclasses.asdict(key) for key in self._project.ssh_keys.values()]
        return listed("ssh_keys", keys, ("name", "fingerprint"))

    def create(self) -> tuple[dict[str, Any], int]:
        """Take a public key, which no other key of the project may be the same as."""
        body = Body()
        name, labels = body.name(), body.labels()
        public_key = body.string("public_key", required=True).strip()
        fingerprint = _fingerprint(public_key)
        if public_key and not fingerprint:
            body.reject("public_key", "is not a valid SSH public key")
        body.check()
        if any(key.fingerprint == fingerprint for key in self._project.ssh_keys.values()):
            raise not_unique(NOUN, "public_key")
        check_name(self._project.ssh_keys, name, NOUN)
        key = SshKey(self._project.new_id(), name, public_key, fingerprint, labels, now())
        self._project.ssh_keys[key.id] = key
        return {"ssh_key": dataclasses.asdict(key)}, HTTPStatus.CREATED

    def get(self, identity: str) -> dict[str, Any]:
        """Return one key."""
        return {"ssh_key": dataclasses.asdict(found(self._project.ssh_keys, identity, NOUN))}

    def update(self, identity: str) -> dict[str, Any]:
        """Change name and labels."""
        key = found(self._project.ssh_keys, identity, NOUN)
        body = Body()
        name = body.name(required=False) or key.name
        labels = body.labels() if body.has("labels") else key.labels
        body.check()
        check_name(self._project.ssh_keys, name, NOUN, key.id)
        key.name, key.labels = name, labels
        return {"ssh_key": dataclasses.asdict(key)}

    def delete(self, identity: str) -> tuple[str, int]:
        """Remove a key; servers that were made with it keep it."""
        del self._project.ssh_keys[found(self._project.ssh_keys, identity, NOUN).id]
        return "", HTTPStatus.NO_CONTENT


def _fingerprint(public_key: str) -> str:
    """Return the fingerprint as ``ssh-keygen -E md5`` has it, empty for what is no public key."""
    try:
        load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        return ""
    digest = hashlib.md5(base64.b64decode(public_key.split()[1]), usedforsecurity=False).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
