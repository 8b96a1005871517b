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
    def server(self) -> pulumi.Resource | None: ...  # noqa: D102
    @property
    def ipv4(self) -> pulumi.Input[str | None]: ...  # noqa: D102
    @property
    def ipv6(self) -> pulumi.Input[str | None]: ...  # noqa: D102
    @property
    def goarch(self) -> str: ...  # noqa: D102


def on_host(host: Host, parent: pulumi.Resource, **options: Any) -> pulumi.ResourceOptions:
    """Return the options of a Docker resource on ``host``, with further ``options`` of its own.

    A provider whose address changes does not replace what it made: without
    ``deleted_with`` a rebuilt server would stay empty while its containers
    count as unchanged (pulumi-docker issue 125).
    """
    return pulumi.ResourceOptions(parent=parent, provider=host.provider, deleted_with=host.server, **options)
