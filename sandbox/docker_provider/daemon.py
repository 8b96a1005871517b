"""The Docker daemon: which one, how to reach it, and how its errors are told."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from urllib.parse import SplitResult, unquote, urlsplit

import docker
import docker.errors
import requests

from sandbox.provider.errors import CancelledError, OperationError, RefusedError
from sandbox.provider.package import real_plugin
from ssh.docker_socket import DockerSocket, docker_socket

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

    Raises `RefusedError` for anything but a unix socket, TCP to a loopback address, and SSH.
    """
    host = configured or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    parts = urlsplit(host)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return host
    if parts.scheme in ("tcp", "http") and _is_loopback(parts.hostname):
        return host
    if parts.scheme == "ssh":
        ssh_command(host, [])
        return host
    raise RefusedError(
        "the stand-in for the docker plugin reaches Docker daemons at unix:///PATH, tcp://127.0.0.1:PORT and "
        f"ssh://USER@HOST, not {host!r}. Install the real plugin with {real_plugin('docker', PLUGIN_VERSION)}"
    )


def ssh_command(host: str, options: Sequence[str]) -> list[str]:
    """
    Return the ssh command, up to the server's name, that ``host`` and the provider's ``sshOpts`` make.

    It is the real plugin's (https://github.com/docker/cli/blob/v28.5.2/cli/connhelper/connhelper.go).
    Raises `RefusedError` for an address that it would not take, and for one with the path of a socket.
    """
    parts = urlsplit(host)
    wrong = _wrong_ssh_address(parts)
    if wrong or parts.hostname is None:
        # not the address, which may hold a password
        raise RefusedError(f"SSH host connection is not valid: {wrong}")
    command = ["ssh"]
    if parts.username:
        command += ["-l", unquote(parts.username)]
    if parts.port is not None:
        command += ["-p", str(parts.port)]
    command += options
    if "ConnectTimeout" not in "".join(options):
        command += ["-o", "ConnectTimeout=30"]
    if "-T" not in options:
        command.append("-T")
    # urlsplit writes host names in small letters, which names and addresses do not mind
    return [*command, "--", parts.hostname]


def _wrong_ssh_address(parts: SplitResult) -> str | None:
    if parts.password is not None:
        return "plain-text password is not supported"
    if not parts.hostname:
        return "hostname is empty"
    if parts.query or parts.fragment:
        return "query parameters and fragments are not allowed"
    if parts.path.strip("/"):
        return "the stand-in takes no path of a socket"
    try:
        parts.port  # noqa: B018 - it is read to see whether it is one
    except ValueError as error:
        return str(error)
    return None


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

    def __init__(self, host: str, ssh_options: Sequence[str] = (), *, checked: bool = True) -> None:
        """
        Take the address, ssh's options for one behind SSH, and whether `check` does anything.

        The connection is made when it is needed, so that a server that is gone fails what needs it only.
        """
        self.host = host
        self.cancelled = threading.Event()
        self._ssh_options = ssh_options
        self._checked = checked
        self._local = threading.local()
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._socket: DockerSocket | None = None

    def check(self) -> None:
        """
        Raise `OperationError` if a daemon on this machine does not answer.

        One behind SSH is asked by the first resource only, as with the real plugin
        (``configureDockerClient`` in pulumi-docker, provider/image.go).
        """
        if self._checked and not self.is_remote:
            with self.explained("Unable to reach the Docker daemon"):
                self.api.ping()

    def close(self) -> None:
        """End the ssh processes; calls under way fail."""
        with self._lock:
            self._held.close()

    @property
    def is_remote(self) -> bool:
        """Whether the daemon is reached over SSH."""
        return urlsplit(self.host).scheme == "ssh"

    @property
    def api(self) -> docker.APIClient:
        """Docker's client of this thread (the library's sessions are not made for several at once)."""
        client = getattr(self._local, "api", None)
        if client is None:
            with self.explained("Unable to reach the Docker daemon"):
                client = docker.APIClient(base_url=self._address(), version="auto", timeout=OPERATION_TIMEOUT)
            self._local.api = client
        return client

    def _address(self) -> str:
        """Return an address that Docker's library can use: a socket in front of ssh, for one behind it."""
        if not self.is_remote:
            return self.host
        with self._lock:
            if self._socket is None:
                command = ssh_command(self.host, self._ssh_options)
                self._socket = self._held.enter_context(docker_socket(command))
            return self._socket.address

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
    def explained(self, doing: str) -> Iterator[None]:
        """Turn errors of Docker and of the connection into `OperationError`, with Docker's or ssh's words."""
        try:
            yield
        except docker.errors.APIError as error:
            raise OperationError(f"{doing}: Error response from daemon: {said(error)}") from error
        except docker.errors.BuildError as error:
            raise OperationError(f"{doing}: {error}") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            ssh = self._socket.said if self._socket is not None else ""
            reason = f"ssh: {ssh}" if ssh else f"{error}. Is it running?"
            raise OperationError(
                f"{doing}: cannot talk to the Docker daemon at {self.host}: {reason}"
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
