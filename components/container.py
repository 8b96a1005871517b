"""What both containers have in common: image, volumes, ports, limits, logs and health checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pulumi
import pulumi_docker as docker

from components.host import Host, lives_on, on_host
from components.network import RelayNetwork
from images import BuiltImage, built_image
from settings import Caddy, Derper, Volumes

# Seconds that a container has to end by itself, before Docker kills it.
GRACE_SECONDS = 30

# Arguments whose change the Docker provider reports as done without doing it
# (terraform-provider-docker issue 988): they replace the container instead.
SILENT_ARGUMENTS = ["healthcheck", "init", "tmpfs"]


def container_image(
    program: Literal["derper", "caddy"], settings: Derper | Caddy, host: Host, parent: pulumi.Resource
) -> docker.RemoteImage:
    """Declare the image: pulled by its reference, or built from the program's Go module.

    It stays on the host when it is replaced or destroyed, so that going back
    needs no registry.
    """
    if settings.builds:
        return image_built_of(built_image(program, host.goarch, settings.build_version), host, parent)
    return docker.RemoteImage(
        program,
        name=settings.image,
        keep_locally=True,
        triggers=_triggers(host),
        opts=on_host(host, parent),
    )


def image_built_of(image: BuiltImage, host: Host, parent: pulumi.Resource) -> docker.RemoteImage:
    """Declare an image that is built where Pulumi runs, from a folder that `make setup` fills."""
    if not image.context.is_dir():
        pulumi.log.warn(
            f"{image.context}, which {image.name} is built from, is not there; unless"
            " the host has the image already, `make setup` must fill it first.",
            parent,
        )
    return docker.RemoteImage(
        # Not that of an image that is pulled: what is ignored of this one would be missing after a change.
        f"{image.program}-built",
        name=image.name,
        build=docker.RemoteImageBuildArgs(context=str(image.context), use_legacy_builder=True),
        keep_locally=True,
        triggers=_triggers(host),
        # The name changes with the content; the folder's path is each machine's own.
        opts=on_host(host, parent, ignore_changes=["build"]),
    )


def _triggers(host: Host) -> Mapping[str, pulumi.Input[str]] | None:
    """Return what replaces an image with its server, on which it has the same name (`lives_on`)."""
    return None if host.server is None else {"server": host.server.id}


def data_volume(name: str, settings: Volumes, host: Host, parent: pulumi.Resource) -> docker.Volume:
    """Declare a volume for data that must outlive its container.

    It has no labels: a change of a label would replace the volume, and lose
    what is in it.
    """
    return docker.Volume(
        name,
        name=lives_on(host, settings.names(pulumi.get_stack())[name]),
        opts=on_host(host, parent, protect=settings.protect),
    )


def container_options(
    host: Host, parent: pulumi.Resource, ports: list[docker.ContainerPortArgs], trial: pulumi.Resource
) -> pulumi.ResourceOptions:
    """Return the options of a container that publishes ``ports``, and waits for the ``trial`` of its image.

    The engine tells a port's IPv4 and IPv6 addresses in any order, and the
    provider takes another order for a change that replaces the container. So
    ports are not compared; the trigger stands in for them.
    """
    told = sorted(f"{port.ip} {port.external} {port.internal}/{port.protocol}" for port in ports)
    return on_host(
        host,
        parent,
        replace_on_changes=SILENT_ARGUMENTS,
        ignore_changes=["ports"],
        replacement_trigger=", ".join(told),
        # Two containers cannot hold one name, nor one port.
        delete_before_replace=True,
        depends_on=[trial],
    )


def published(
    port: int, inside: int, protocol: Literal["tcp", "udp"], network: RelayNetwork
) -> list[docker.ContainerPortArgs]:
    """Publish ``inside`` as ``port`` of the host, over IPv4 and, where the network has it, IPv6.

    The provider takes no address to mean 0.0.0.0, so that IPv6 has to be said.
    On a network without IPv6 it is not: the answers would carry the wrong address.
    """
    addresses = ["0.0.0.0", "::"] if network.ipv6 else ["0.0.0.0"]  # noqa: S104 - a relay is for everyone
    return [
        docker.ContainerPortArgs(internal=inside, external=port, ip=ip, protocol=protocol) for ip in addresses
    ]


def common_arguments(  # noqa: PLR0913 - in what they differ
    settings: Derper | Caddy,
    host: Host,
    network: RelayNetwork,
    healthcheck: list[str],
    *,
    wait: bool,
    metrics_address: str | None,
) -> dict[str, Any]:
    """Return the arguments that both containers have, each in one place.

    ``healthcheck`` is the image's own command, without Docker's leading
    ``CMD``; the settings may name another, or none. ``wait`` has the update wait
    for it. ``metrics_address`` is its own on the network for metrics, if there is one.
    """
    arguments: dict[str, Any] = {
        "name": lives_on(host, settings.container_name),
        "restart": "unless-stopped",
        "networks_advanced": network.joined(metrics_address),
        # By it, what an interrupted update left is told from what somebody else made.
        "labels": [docker.ContainerLabelArgs(label="derp-relays.stack", value=pulumi.get_stack())],
        # Without it the provider kills at once; stop_timeout is for `docker stop`.
        "destroy_grace_seconds": GRACE_SECONDS,
        "stop_timeout": GRACE_SECONDS,
    }
    if settings.logs == "rotated":
        arguments |= {"log_driver": "local", "log_opts": {"max-size": "20m", "max-file": "5"}}
    if settings.memory:
        # -1, unlimited swap, is what every engine reads back as it was written.
        arguments |= {"memory": settings.memory, "memory_swap": -1}
    command = healthcheck if settings.healthcheck is None else settings.healthcheck
    if command:
        arguments |= {
            "healthcheck": docker.ContainerHealthcheckArgs(
                tests=["CMD", *command], interval="10s", timeout="5s", start_period="10s", retries=3
            ),
            **({"wait": True, "wait_timeout": 120} if wait else {}),
        }
    return arguments


def environment(settings: Derper | Caddy, variables: Mapping[str, str]) -> list[str]:
    """Return ``variables`` as Docker takes them, with Go's memory limit where there is one."""
    limit = {"GOMEMLIMIT": f"{settings.memory * 9 // 10}MiB"} if settings.memory else {}
    return [f"{name}={value}" for name, value in {**variables, **limit}.items()]
