"""Serves the API on loopback."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from sandbox.machines import Machines

from .actions import Actions
from .app import BASE, Application
from .cloud import Cloud, NoMachines
from .faults import Faults
from .state import StateError, load

LOOPBACK = "127.0.0.1"

REQUESTS_PER_HOUR = 3600
"""The real API's limit for a project (https://docs.hetzner.cloud/reference/cloud#description/rate-limiting)."""

TOKEN_FILE = "token"  # noqa: S105 - a file's name

_TOKEN_BYTES = 32
"""Makes 64 characters, which is what clients take for a token."""

_LAST_ACTIONS_SECONDS = 30.0

_END_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class ServedApi:
    """
    An API that answers.

    ``endpoint`` is what clients take, ``http://127.0.0.1:PORT/v1``; ``token`` has 64 characters; ``sandbox``
    is where faults and the like are asked for, ``http://127.0.0.1:PORT/sandbox``.
    """

    endpoint: str
    token: str
    sandbox: str
    port: int


class _RequestHandler(WSGIRequestHandler):
    """Keeps connections open, as the real API does."""

    protocol_version = "HTTP/1.1"
    # head and body of an answer are written apart; the second would wait for the first one's acknowledgement
    disable_nagle_algorithm = True

    def log_request(self, *_: Any) -> None:
        """Write nothing: requests are listed at ``GET /sandbox/requests``."""


@contextmanager
def serve(
    machines: Machines | None = None,
    *,
    folder: Path | None = None,
    port: int = 0,
    token: str | None = None,
    requests_per_hour: int = REQUESTS_PER_HOUR,
) -> Iterator[ServedApi]:
    """
    Serve the API on ``127.0.0.1`` while the context lasts.

    Without ``machines`` servers are only said to run; machines are closed by whoever made them. With a
    ``folder`` the state is kept there and gone on from, and so is the token where none is given. Servers that
    were on are powered on then, so ``machines`` have to be of the same folder as before. ``port`` 0 takes a
    free one. Raises `state.StateError` for a state that cannot be gone on from, and `OSError` for a port that
    is taken.
    """
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(_held(folder))
        used = NoMachines() if machines is None else machines
        project, faults = load(folder, used.ipv4_network, used.ipv6_network), Faults()
        cloud = Cloud(project, used, faults, Actions(project, faults))
        stack.callback(project.save)
        stack.callback(cloud.actions.end, _LAST_ACTIONS_SECONDS)
        token = token or _kept_token(folder)
        port = stack.enter_context(_answering(Application(cloud, token, requests_per_hour), port))
        _go_on(cloud)
        address = f"http://{LOOPBACK}:{port}"
        yield ServedApi(f"{address}{BASE}", token, f"{address}/sandbox", port)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from it. Raises `StateError` where another has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(f"{folder} is in use by an API that runs: stop that one first") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _answering(application: Application, port: int) -> Iterator[int]:
    """Answer requests in threads, and yield the port. Raises `OSError` for one that is taken."""
    # by itself Werkzeug ends the process when the port is taken
    with socket.create_server((LOOPBACK, port)) as listening:
        server = make_server(
            LOOPBACK,
            port,
            application,
            threaded=True,
            request_handler=_RequestHandler,
            fd=listening.fileno(),
        )
        port = listening.getsockname()[1]
    thread = threading.Thread(
        target=server.serve_forever, args=(_END_POLL_SECONDS,), name="hcloud-api", daemon=True
    )
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        thread.join()


def _kept_token(folder: Path | None) -> str:
    path = None if folder is None else folder / TOKEN_FILE
    if path is not None and path.exists():
        return path.read_text().strip()
    token = secrets.token_hex(_TOKEN_BYTES)
    if path is not None:
        path.touch(mode=0o600)
        path.write_text(token)
    return token


def _go_on(cloud: Cloud) -> None:
    """Bring servers of an earlier run to where they were, or were going."""
    with cloud.project.lock:
        for server in cloud.project.servers.values():
            if server.status in ("off", "stopping"):
                server.status = "off"
            else:
                cloud.actions.run(
                    cloud.deletion(server) if server.status == "deleting" else cloud.start(server)
                )
        cloud.project.save()
