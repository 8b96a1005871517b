"""The docker package: its resource types, what they do with Docker, and the connection to a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.provider.behaviour import Behaviour
from sandbox.provider.package import Creation, Package, ResourceType
from sandbox.provider.schema import ResourceSchema

from . import PLUGIN_VERSION, container, image, network, volume
from .behaviour import PROVIDER_REFUSED, behaviours
from .daemon import Daemon, resolve_host
from .schema import provider_arguments, resource_schemas


def _connect(arguments: Mapping[str, Any]) -> Daemon:
    """Choose the daemon. Raises `RefusedError` for addresses that are not served."""
    return Daemon(
        resolve_host(arguments.get("host")),
        arguments.get("sshOpts") or [],
        checked=not arguments.get("disableDockerDaemonCheck"),
    )


def _resource_types() -> Mapping[str, ResourceType]:
    def described(token: str) -> tuple[ResourceSchema, Behaviour]:
        return resource_schemas()[token], behaviours()[token]

    types = (
        ResourceType(
            *described("docker:index/network:Network"),
            create=network.create,
            read=lambda daemon, identifier, _: network.read(daemon, identifier),
            update=lambda *_: {},
            delete=lambda daemon, identifier, _: network.delete(daemon, identifier),
        ),
        ResourceType(
            *described("docker:index/volume:Volume"),
            create=volume.create,
            read=lambda daemon, identifier, _: volume.read(daemon, identifier),
            update=lambda *_: {},
            delete=lambda daemon, identifier, _: volume.delete(daemon, identifier),
        ),
        ResourceType(
            *described("docker:index/remoteImage:RemoteImage"),
            create=lambda daemon, inputs: Creation(image.create(daemon, inputs)["id"]),
            # upstream has no importer for images and goes by the name in the state alone
            read=lambda daemon, _, prior: image.read(daemon, str(prior.get("name") or "")),
            update=lambda daemon, _, __, new: image.again(daemon, new),
            delete=lambda daemon, _, state: image.delete(daemon, state),
        ),
        ResourceType(
            *described("docker:index/container:Container"),
            create=container.create,
            read=container.read,
            update=container.update,
            delete=container.delete,
        ),
    )
    return {each.schema.token: each for each in types}


PACKAGE = Package(
    name="docker",
    version=PLUGIN_VERSION,
    provider_arguments=provider_arguments(),
    provider_refused=PROVIDER_REFUSED,
    resources=_resource_types(),
    connect=_connect,
    serves="it serves Docker daemons on this machine and behind ssh://",
)
