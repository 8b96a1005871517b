"""The Docker daemon: which one, how to reach it, and how its errors are told."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import docker
import docker.errors
import requests

from sandbox.provider.errors import CancelledError, OperationError, RefusedError
from sandbox.provider.package import real_plugin

from . import PLUGIN_VERSION

DEFAULT_HOST = "unix:///var/run/docker.sock"
"""Where the real plugin looks without ``host`` and ``DOCKER_HOST`` (pulumi-docker, provider/resources.go)."""

OPERATION_TIMEOUT = 20 * 60
"""Seconds that one request may take: the upstream provider's timeout of create, update and delete."""

REMOVAL_TIMEOUT = 30.0
"""Seconds to wait for a network or volume that is still in use (``networkRemoveRefreshTimeout`` upstream)."""

_POLL_SECONDS = 0.5


def resolve_host(configured: str | None) -> str:
    """
    Return the address of the daemon: ``host`` of the provider, else ``DOCKER_HOST``, else `DEFAULT_HOST`.

    Raises `RefusedError` for anything but a unix socket or TCP to a loopback address.
    """
    host = configured or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    parts = urlsplit(host)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return host
    if parts.scheme in ("tcp", "http") and _is_loopback(parts.hostname):
        return host
    raise RefusedError(
        f"the stand-in for the docker plugin serves this machine's Docker daemon only, not {host!r} "
        "(it takes unix:///PATH and tcp://127.0.0.1:PORT). Install the real plugin with "
        + real_plugin("docker", PLUGIN_VERSION)
    )


def _is_loopback(hostname: str | None) -> bool:
    if hostname is None:
        return False
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


class Daemon:
    """A connection to one daemon, safe to use from several threads at once."""

    def __init__(self, host: str) -> None:
        """Take the address; the connection is made when it is needed."""
        self.host = host
        self.cancelled = threading.Event()
        self._local = threading.local()

    def cancel(self) -> None:
        """End what waits in `wait_until`, now and later."""
        self.cancelled.set()

    def close(self) -> None:
        """Let go of nothing: each thread's client ends with it."""

    @property
    def api(self) -> docker.APIClient:
        """Docker's client of this thread (the library's sessions are not made for several at once)."""
        client = getattr(self._local, "api", None)
        if client is None:
            with explained("Unable to reach the Docker daemon", self.host):
                client = docker.APIClient(base_url=self.host, version="auto", timeout=OPERATION_TIMEOUT)
            self._local.api = client
        return client

    def ping(self) -> None:
        """Raise `OperationError` if the daemon does not answer."""
        with explained("Unable to reach the Docker daemon", self.host):
            self.api.ping()

    def wait_until(self, done: Callable[[], bool], seconds: float, doing: str) -> None:
        """
        Ask ``done`` twice a second until it says yes.

        Raises `OperationError` after ``seconds``, `CancelledError` when the engine asks to stop.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise OperationError(f"{doing}: not done after {seconds:g} seconds")
            if self.cancelled.wait(_POLL_SECONDS):
                raise CancelledError(f"{doing}: cancelled")


@contextmanager
def explained(doing: str, host: str | None = None) -> Iterator[None]:
    """Turn errors of Docker and of the connection into `OperationError`, with Docker's own words."""
    try:
        yield
    except docker.errors.APIError as error:
        raise OperationError(f"{doing}: Error response from daemon: {said(error)}") from error
    except docker.errors.BuildError as error:
        raise OperationError(f"{doing}: {error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        at = f" at {host}" if host else ""
        raise OperationError(
            f"{doing}: cannot talk to the Docker daemon{at}: {error}. Is it running?"
        ) from error


def said(error: docker.errors.APIError) -> str:
    """Return what the daemon said."""
    explanation = error.explanation
    if isinstance(explanation, bytes):
        return explanation.decode(errors="replace")
    return str(explanation or error)


def is_missing(error: docker.errors.APIError) -> bool:
    """Tell whether the daemon said that there is no such thing."""
    return bool(error.status_code == requests.codes.not_found)


def stream_errors(events: Iterator[dict[str, object]], doing: str) -> None:
    """Read a pull's or a build's events to the end. Raises `OperationError` at the first error among them."""
    log: list[str] = []
    for event in events:
        if "error" in event:
            shown = "".join(log[-20:]).strip()
            raise OperationError(f"{doing}: {event['error']}" + (f"\n{shown}" if shown else ""))
        text = event.get("stream") or event.get("status")
        if text:
            log.append(str(text) if "stream" in event else f"{text}\n")
