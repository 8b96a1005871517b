"""What would make an update fail on this engine, said before the update begins."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import docker
import docker.errors
from docker.models.containers import Container
from docker.models.networks import Network

from relayctl.prerequisites import ports
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from settings import Settings

STACK_LABEL = "derp-relays.stack"


@dataclass(frozen=True)
class Known:
    """What the stack's state knows of on the engine: ids, and for volumes names."""

    containers: frozenset[str]
    networks: frozenset[str]
    volumes: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    @classmethod
    def from_deployment(cls, deployment: Mapping[str, object] | None) -> Known:
        """Read the ids out of an exported deployment, which is ``None`` for a new stack."""
        resources = (deployment or {}).get("resources") or []
        assert isinstance(resources, list)  # noqa: S101 - the format of the state file

        def ids(type_: str) -> frozenset[str]:
            return frozenset(str(r["id"]) for r in resources if r.get("type") == type_ and r.get("id"))

        return cls(
            ids("docker:index/container:Container"),
            ids("docker:index/network:Network"),
            ids("docker:index/volume:Volume"),
            frozenset(
                str(r["outputs"]["imageId"])
                for r in resources
                if r.get("type") == "docker:index/remoteImage:RemoteImage"
                and r.get("outputs", {}).get("imageId")
            ),
        )

    @classmethod
    def of_engine(cls, stack: str, client: docker.DockerClient) -> Known:
        """Return the ids of all that carries the label of ``stack``, whatever its state knows of."""
        wanted = {"label": f"{STACK_LABEL}={stack}"}
        return cls(
            frozenset(str(each["Id"]) for each in client.api.containers(all=True, filters=wanted)),
            frozenset(str(each["Id"]) for each in client.api.networks(filters=wanted)),
        )

    def all_there(self, client: docker.DockerClient) -> bool:
        """Tell whether the engine has them all, and containers run: an update that was cut short, an
        engine that crashed or a person may have stopped or removed some, which the state does not know.

        An image that no container has at the moment goes by any ``docker image prune``.
        """
        running = {each["Id"] for each in client.api.containers(quiet=True)}
        networks = {each["Id"] for each in client.api.networks()}
        images = {each["Id"] for each in client.api.images()}
        return self.containers <= running and self.networks <= networks and self.images <= images


def images_by_reference(client: docker.DockerClient) -> dict[str, str]:
    """Return the ids of the engine's images, by name and tag."""
    return {tag: str(each["Id"]) for each in client.api.images() for tag in each["RepoTags"] or ()}


def remove_leftovers(stack: str, known: Known, client: docker.DockerClient, progress: Progress) -> None:
    """Remove what an interrupted update of ``stack`` made and its state does not know of.

    To be called only where there was one (`RelayStack.is_unfinished`): another
    user's stack of the same name has the same label. Only containers and networks
    that carry it: they hold no data, and the update makes them anew.
    """
    wanted = {"label": f"{STACK_LABEL}={stack}"}
    for container in client.containers.list(all=True, filters=wanted):
        if container.id not in known.containers:
            progress.say(f"Removing the container {container.name}, which an interrupted update left.")
            container.remove(force=True)
    for network in client.networks.list(filters=wanted):
        if network.id not in known.networks:
            progress.say(f"Removing the network {network.name}, which an interrupted update left.")
            network.remove()


def adopted_volumes(stack: str, settings: Settings, known: Known, client: docker.DockerClient) -> list[str]:
    """Return the volumes that `up` would make, but that are there already and not known to be the stack's.

    Docker gives one that exists to who asks for it: what is in it is used, and
    `down` with volumes removes it.
    """
    there = {volume.name for volume in client.volumes.list()}
    wanted = set(settings.volumes.names(stack).values())
    return sorted((wanted & there) - known.volumes)


def check(settings: Settings, known: Known, client: docker.DockerClient, where: str) -> None:
    """Raise ``PrerequisiteError`` with everything that stands in the update's way.

    ``where`` is the stack file. Taken are names and ports that somebody else has.
    """
    found = problems(settings, known, client)
    if found:
        raise PrerequisiteError(
            f"{where} does not fit this machine; nothing was changed\n"
            + "\n".join(f"  {what}:\n    {mend}" for what, mend in found),
            "do what stands under each, then run it again",
        )


def problems(settings: Settings, known: Known, client: docker.DockerClient) -> list[tuple[str, str]]:
    """Return what stands in the way of containers that are not ``known``, and how to mend each."""
    return [
        *_names(settings, known, client),
        *_network_for_metrics(settings, known, client),
        *_ports(settings, known, client),
    ]


def _names(settings: Settings, known: Known, client: docker.DockerClient) -> Iterator[tuple[str, str]]:
    for key, name in (
        ("derper", settings.derper.container_name),
        ("caddy", settings.caddy.container_name),
    ):
        other = _container(client, name)
        if other is None or other.id in known.containers:
            continue
        whose = f"which is not this stack's ({other.image_reference})"
        remedy = f"remove it (docker rm -f {name})"
        if other.stack:
            whose = f"which the stack {other.stack} made, here or for another user, clone or Pulumi backend"
            remedy = f"take that stack down where it was brought up (make down STACK={other.stack})"
        yield (
            f"there is a container {name} already, {whose}",
            f"to have both, set {key}.containerName to another name; else {remedy}",
        )
    # The engine's own filter takes a part of a name for the whole.
    networks = client.networks.list(names=[settings.network.name])
    same_name = [network for network in networks if network.name == settings.network.name]
    if settings.network.external and not same_name:
        yield (
            f"there is no network {settings.network.name}, and network.external says that there is",
            (
                f"make it (docker network create --ipv6 --subnet fd12:3456:789a:1::/64"
                f" {settings.network.name}), or set network.external: false"
            ),
        )
    if not settings.network.external and any(network.id not in known.networks for network in same_name):
        yield (
            f"there is a network {settings.network.name} already, which is not this stack's",
            "set network.external: true to join it, or network.name to another name",
        )


@dataclass(frozen=True)
class _Named:
    id: str
    image_reference: str
    stack: str


def _container(client: docker.DockerClient, name: str) -> _Named | None:
    try:
        found: Container = client.containers.get(name)
    except docker.errors.NotFound:
        return None
    config = found.attrs["Config"]
    return _Named(str(found.id), str(config["Image"]), str((config["Labels"] or {}).get(STACK_LABEL, "")))


def _ports(settings: Settings, known: Known, client: docker.DockerClient) -> Iterator[tuple[str, str]]:
    own = {str(c.name) for c in client.containers.list(all=True) if c.id in known.containers}
    wanted: list[tuple[str, int, ports.Protocol]] = [
        ("caddy.httpPort", settings.caddy.http_port, "tcp"),
        ("caddy.httpsPort", settings.caddy.https_port, "tcp"),
        ("caddy.httpsPort", settings.caddy.https_port, "udp"),
        ("derper.stunPort", settings.derper.stun_port, "udp"),
    ]
    for key, port, protocol in wanted:
        holder = ports.holder(port, protocol, client, own_containers=own)
        if holder is not None:
            yield str(holder), f"end that, or set {key} to another port"


def _network_for_metrics(
    settings: Settings, known: Known, client: docker.DockerClient
) -> Iterator[tuple[str, str]]:
    """Find other networks that have the subnet for metrics, or the name that was given for it."""
    metrics = settings.metrics
    if metrics is None:
        return
    subnet = ipaddress.ip_network(metrics.subnet)
    for network in client.networks.list():
        shared = network.name == settings.network.name
        if network.id in known.networks and not shared:
            continue
        if network.name == metrics.network:
            yield (
                f"there is a network {network.name} already, which is not this stack's",
                "leave metrics.network out, or give another name",
            )
        elif any(ipaddress.ip_network(each).overlaps(subnet) for each in _subnets(network) if each):
            yield (
                f"the network {network.name} has addresses of metrics.subnet ({metrics.subnet})",
                "set metrics.subnet to one that nothing else uses",
            )


def _subnets(network: Network) -> set[str | None]:
    return {config.get("Subnet") for config in network.attrs["IPAM"]["Config"] or []}


def networks_that_would_go(
    stack: str, settings: Settings, known: Known, client: docker.DockerClient
) -> frozenset[str]:
    """Return the ids of the stack's networks that an update would remove or replace."""
    wanted, metrics = settings.network, settings.metrics
    going = set()
    for network in client.networks.list(ids=list(known.networks)) if known.networks else []:
        subnets = _subnets(network)
        if metrics is not None and network.name == metrics.name(stack) and metrics.subnet in subnets:
            continue
        kept = network.name == wanted.name and not wanted.external
        if not kept or (wanted.subnet(stack) in subnets) != wanted.ipv6:
            going.add(str(network.id))
    return frozenset(going)


def check_networks_are_free(networks: Collection[str], client: docker.DockerClient) -> None:
    """Raise ``PrerequisiteError`` if containers of others are on ``networks``, which are to go.

    Docker removes no network that is in use, and would say so only after the
    relay's own containers are gone.
    """
    problems = []
    for network_id in networks:
        try:
            attrs = client.networks.get(network_id).attrs
        except docker.errors.NotFound:
            continue
        for container_id, endpoint in (attrs["Containers"] or {}).items():
            labels = client.containers.get(container_id).labels
            if STACK_LABEL not in labels:
                problems.append(f"docker network disconnect {attrs['Name']} {endpoint['Name']}")
    if problems:
        raise PrerequisiteError(
            "the stack's network has to go, and containers of others are on it; nothing was changed",
            "\n    ".join([*problems, "then run it again, and connect them to the new network"]),
        )
