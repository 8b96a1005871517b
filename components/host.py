"""Where Docker runs. A host gives the others a provider, its addresses and its architecture."""

from __future__ import annotations

from typing import Any, Protocol

import pulumi
import pulumi_docker as docker


class Host(Protocol):
    """What the other components need of a host, whatever its kind.

    ``provider`` is bound to the host's Docker Engine. ``server`` is the
    resource that all Docker resources live and die with, or ``None`` where the
    machine is not ours to make. ``ipv4`` and ``ipv6`` are what clients reach it by.
    """

    @property
    def provider(self) -> docker.Provider: ...  # noqa: D102
    @property
    def server(self) -> pulumi.CustomResource | None: ...  # noqa: D102
    @property
    def ipv4(self) -> pulumi.Input[str | None]: ...  # noqa: D102
    @property
    def ipv6(self) -> pulumi.Input[str | None]: ...  # noqa: D102
    @property
    def goarch(self) -> str: ...  # noqa: D102


def on_host(host: Host, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
    """Return the options of a Docker resource on ``host``, with further ``options`` of its own.

    What is on a server that goes is gone with it, and is not asked for once more. That a server which is
    replaced has all of it replaced is up to `lives_on`.
    """
    return pulumi.ResourceOptions(parent=parent, provider=host.provider, deleted_with=host.server, **options)


def lives_on(host: Host, name: str) -> pulumi.Input[str]:
    """Return the ``name`` of a Docker resource on ``host``, known once its server is.

    A provider whose address changes does not replace what it made, and neither
    does ``deleted_with``: a server that is replaced would stay empty while its
    containers count as unchanged, and volumes that are protected would go with
    the old one (pulumi-docker issue 125). Pulumi replaces what has an argument of
    the server's that cannot change in place, and a name is one: before anything
    is removed, and unless one of them is protected.
    """
    return name if host.server is None else host.server.id.apply(lambda _: name)
