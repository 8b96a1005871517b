"""The Docker Engine that a stack's provider is bound to, for what no resource of the provider can do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import docker

from ssh.connection import Connection
from ssh.docker_socket import docker_socket

# Seconds for one call. A folder that is sent takes as long as it takes; the engine then has to unpack it.
_TIMEOUT = 600


@contextlib.contextmanager
def engine_at(stack: str, docker_host: str | None) -> Iterator[docker.DockerClient]:
    """Yield a client of the engine at ``docker_host``, such as ``ssh://root@203.0.113.7`` or ``unix:///PATH``.

    ``None`` is ``DOCKER_HOST``, else Docker's own socket, as for the provider. An
    engine behind SSH is reached with the files of ``stack`` (`Connection.write`).
    Raises ``docker.errors.DockerException``.
    """
    address = docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    with contextlib.ExitStack() as opened:
        if address.startswith("ssh://"):
            url = urlsplit(address)
            connection = Connection(stack, url.username or "root", url.hostname or "", url.port or 22)
            address = opened.enter_context(docker_socket(connection.command())).address
        client = docker.DockerClient(base_url=address, timeout=_TIMEOUT)
        opened.callback(client.close)
        yield client
