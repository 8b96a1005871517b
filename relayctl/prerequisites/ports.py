"""Tells whether a port of this machine is free, and who holds it if not."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import docker

Protocol = Literal["tcp", "udp"]

_KINDS: dict[Protocol, socket.SocketKind] = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - Docker publishes on these


@dataclass(frozen=True)
class Holder:
    """Who holds a port: a ``container`` by name, or a ``process`` with its ``pid``, or unknown."""

    port: int
    protocol: Protocol
    process: str = ""
    pid: int | None = None
    container: str = ""

    def __str__(self) -> str:
        """Return it as a sentence, such as ``port 443/tcp is taken by nginx (pid 812)``."""
        if self.container:
            by = f"the container {self.container}"
        elif self.pid is not None:
            by = f"{self.process} (pid {self.pid})"
        else:
            by = "another process (to see which: sudo ss -lptun)"
        return f"port {self.port}/{self.protocol} is taken by {by}"


def holder(
    port: int,
    protocol: Protocol,
    client: docker.DockerClient | None = None,
    *,
    own_containers: Collection[str] = (),
) -> Holder | None:
    """Return who holds ``port`` on any address of this machine, IPv4 or IPv6, or ``None`` if it is free.

    With ``client``, ports that containers publish count too, whether or not the
    engine holds a socket for them, and are told by the container's name; those
    of ``own_containers`` count as free. The engine must be this machine's.
    """
    container = _publisher(port, protocol, client) if client is not None else ""
    if container:
        return None if container in own_containers else Holder(port, protocol, container=container)
    listener = _listener(port, protocol)
    if listener is not None:
        return listener
    return None if _binds(port, protocol) else Holder(port, protocol)


def holders(
    wanted: Iterable[tuple[int, Protocol]],
    client: docker.DockerClient | None = None,
    *,
    own_containers: Collection[str] = (),
) -> list[Holder]:
    """Return the holders of those of the ``wanted`` ports that are taken, in their order."""
    found = (holder(port, protocol, client, own_containers=own_containers) for port, protocol in wanted)
    return [one for one in found if one is not None]


def first_free(
    candidates: Iterable[int],
    protocols: Collection[Protocol],
    client: docker.DockerClient | None = None,
    *,
    own_containers: Collection[str] = (),
) -> int | None:
    """Return the first of ``candidates`` that is free for all ``protocols``, or ``None`` if none is."""
    for port in candidates:
        if not holders([(port, each) for each in protocols], client, own_containers=own_containers):
            return port
    return None


def _publisher(port: int, protocol: Protocol, client: docker.DockerClient) -> str:
    # the plain list: the objects of the library ask for each container anew, and one may be gone by then
    for container in client.api.containers():
        for published in container.get("Ports") or []:
            if published.get("PublicPort") == port and published.get("Type") == protocol:
                return str(container["Names"][0]).removeprefix("/")
    return ""


def _listener(port: int, protocol: Protocol) -> Holder | None:
    found: Holder | None = None
    for connection in psutil.net_connections(kind=protocol):
        if not connection.laddr or connection.laddr.port != port:
            continue
        listens = connection.status == psutil.CONN_LISTEN
        # a UDP socket that is connected is somebody's client, and still holds the port
        if protocol == "tcp" and not listens:
            continue
        try:
            name = psutil.Process(connection.pid).name() if connection.pid else ""
        except psutil.Error:
            name = ""
        if name:
            return Holder(port, protocol, process=name, pid=connection.pid)
        found = Holder(port, protocol)
    return found


def _binds(port: int, protocol: Protocol) -> bool:
    """Tell whether the port can be had, as Docker would have it; sockets of others need not be listed."""
    for family, address in _ANY.items():
        try:
            with socket.socket(family, _KINDS[protocol]) as candidate:
                if family == socket.AF_INET6:
                    candidate.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if protocol == "tcp":
                    # as the engine's own does: connections that linger after closing are no hindrance
                    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                candidate.bind((address, port))
                if protocol == "tcp":
                    candidate.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            # no IPv6 here, or a low port that only root may bind: neither says that it is taken
    return True
