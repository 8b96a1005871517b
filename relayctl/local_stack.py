"""The stack file of this machine, written the first time it is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import docker
import docker.errors
import yaml
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relayctl.preflight import STACK_LABEL
from relayctl.prerequisites import ports, registry
from relayctl.prerequisites.docker_engine import DockerEngine
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.relay_check import has_ipv6
from relayctl.stack import state_copy
from settings.model import CADDY_IMAGE, Caddy, Derper, Network
from settings.reader import PROJECT, stack_file

NAME = "local"

_HEADER = """\
# The relay of this machine, as `make up` found it possible. It is yours to edit;
# git ignores it. Pulumi.yaml and docs/settings.md list what else there is to set.
"""

# One that neither the examples in stacks/ nor those in README.md have: no two stacks of a fleet may.
_REGION_ID = 998
# HTTP and HTTPS ports: the usual ones, else those that are usual for trying things.
_PORT_PAIRS = ((80, 443), (8080, 8443), (18080, 18443), (28080, 28443), (38080, 38443))
_STUN_PORTS = (3478, 13478, 23478, 33478)
# For a machine where another stack, or somebody else, has the default names.
_OWN_NAMES: dict[str, dict[str, object]] = {
    "derper": {"containerName": "derper-local"},
    "caddy": {"containerName": "caddy-local"},
    "network": {"name": "shared_bridge_local"},
}

# How Pulumi makes the key of a passphrase, and what it encrypts to know it again:
# https://github.com/pulumi/pulumi/blob/v3.250.0/sdk/go/common/resource/config/crypt.go
# https://github.com/pulumi/pulumi/blob/v3.250.0/pkg/secrets/passphrase/manager.go
_KEY_ROUNDS = 1_000_000
_KEY_BYTES = 32
_ENCRYPTED = b"pulumi"


def passphrase() -> str:
    """Return the passphrase that the local stack was made with: the exported one if it is that, else none.

    It has no secrets, and the empty passphrase; what is exported is for other
    stacks then.
    """
    exported = _exported()
    salt = _salt() if exported else None
    return exported if salt is not None and _fits(exported, salt) else ""


def _exported() -> str:
    """Return the passphrase that Pulumi would take: an empty variable too goes before the file."""
    if "PULUMI_CONFIG_PASSPHRASE" in os.environ:
        return os.environ["PULUMI_CONFIG_PASSPHRASE"]
    path = os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE")
    try:
        return Path(path).read_text().strip() if path else ""
    except (OSError, UnicodeDecodeError):
        # The stacks that need it tell so.
        return ""


def _salt() -> str | None:
    """Return what Pulumi noted of the passphrase in the stack's file, else in the copy of its state."""
    try:
        salt = yaml.safe_load(stack_file(NAME).read_text()).get("encryptionsalt")
        if salt is None:
            deployment = json.loads(state_copy(NAME).read_text())["deployment"]
            salt = deployment["secrets_providers"]["state"]["salt"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        # What is wrong with the stack's file is told by who reads it for its settings.
        return None
    return str(salt)


def _fits(phrase: str, noted: str) -> bool:
    """Tell whether ``noted`` (v1:SALT:v1:NONCE:CIPHERTEXT, all in base64) is of the passphrase."""
    try:
        _, salt, _, nonce, encrypted = noted.split(":")
        key = hashlib.pbkdf2_hmac(
            "sha256", phrase.encode(), base64.b64decode(salt), _KEY_ROUNDS, dklen=_KEY_BYTES
        )
        told = AESGCM(key).decrypt(base64.b64decode(nonce), base64.b64decode(encrypted), None)
    except (ValueError, InvalidTag):
        return False
    return told == _ENCRYPTED


def write_if_missing(engine: DockerEngine, progress: Progress) -> None:
    """Write ``stacks/Pulumi.local.yaml`` unless it is there, with ports and names that are free.

    Caddy's image is the pinned one where a registry gives it, else built.
    Raises ``PrerequisiteError`` if no ports are free.
    """
    path = stack_file(NAME)
    if path.exists():
        return
    client = engine.client()
    http_port, https_port = _web_ports(client)
    stun_port = ports.first_free(_STUN_PORTS, ["udp"], client)
    if stun_port is None:
        taken = ports.holder(_STUN_PORTS[0], "udp", client)
        raise PrerequisiteError(f"no port is free for STUN: {taken}", f"free one of {_STUN_PORTS}/udp")
    caddy: dict[str, object] = {"httpPort": http_port, "httpsPort": https_port}
    if not _pulled(CADDY_IMAGE, engine, progress):
        caddy["image"] = "build"
    if engine.ipv6_publishing is False:
        progress.warn(f"IPv6 is left out: {engine.ipv6_reason}")
    ipv6 = engine.ipv6_publishing is not False
    host = {"kind": "local", "ipv4": "127.0.0.1"} | ({"ipv6": "::1"} if ipv6 and has_ipv6() else {})
    values: dict[str, Any] = {
        "domain": "derp.localhost",
        "region": {"id": _REGION_ID, "code": "local", "name": "This machine"},
        "host": host,
        "derper": {"stunPort": stun_port},
        "caddy": caddy,
        "certificate": {"source": "internal"},
    }
    if not ipv6:
        values["network"] = {"ipv6": False}
    others = _of_other_stacks(client)
    if others:
        for key, names in _OWN_NAMES.items():
            values[key] = {**values.get(key, {}), **names}
        progress.say(f"The local stack gets names of its own: there are {', '.join(others)} already.")
    config: dict[str, object] = {"pulumi:disable-default-providers": ["docker", "hcloud"]}
    config |= {f"{PROJECT}:{key}": value for key, value in values.items()}
    text = _HEADER + yaml.safe_dump({"config": config}, sort_keys=False)
    unfinished = path.with_suffix(".new")
    unfinished.write_text(text)
    unfinished.replace(path)
    progress.say(
        f"Wrote stacks/{path.name}: HTTP on {http_port}, HTTPS on {https_port}, STUN on {stun_port}/udp,"
        f" Caddy {'built from its module' if 'image' in caddy else 'from its pinned image'}."
    )


def _of_other_stacks(client: docker.DockerClient) -> list[str]:
    """Return what has a default name and is not the local stack's, a phrase each."""
    containers = {Derper().container_name, Caddy().container_name}
    found = []
    for container in client.containers.list(all=True):
        if container.labels.get(STACK_LABEL) == NAME:
            continue
        if container.name in containers:
            found.append(f"the container {container.name}")
    for network in client.networks.list(names=[Network().name]):
        labels = network.attrs.get("Labels") or {}
        if network.name == Network().name and labels.get(STACK_LABEL) != NAME:
            found.append(f"the network {network.name}")
    return found


def _web_ports(client: docker.DockerClient) -> tuple[int, int]:
    for http_port, https_port in _PORT_PAIRS:
        wanted: list[tuple[int, ports.Protocol]] = [
            (http_port, "tcp"),
            (https_port, "tcp"),
            (https_port, "udp"),
        ]
        if not ports.holders(wanted, client):
            return http_port, https_port
    taken = ports.holders([(port, "tcp") for pair in _PORT_PAIRS for port in pair], client)
    raise PrerequisiteError(
        "no two ports are free for HTTP and HTTPS: " + "; ".join(map(str, taken)),
        "free two of them, or write stacks/Pulumi.local.yaml with others (docs/settings.md)",
    )


def _pulled(reference: str, engine: DockerEngine, progress: Progress) -> bool:
    """Return whether the engine has the image by now; pull it if it has not."""
    client = engine.client(timeout=600)
    try:
        client.images.get(reference)
    except docker.errors.ImageNotFound:
        pass
    else:
        return True
    answer = registry.answers(reference)
    if not answer:
        progress.say(f"No image registry answers ({answer.host}: {answer.reason}).")
        return False
    try:
        with progress.step(f"Pulling {reference}"):
            client.images.pull(reference)
    except docker.errors.APIError as error:
        progress.warn(f"{answer.host} does not give {reference}: {error.explanation or error}")
        return False
    return True
