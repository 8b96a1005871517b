"""Where a stack's engine is, and what has to be there before Pulumi can go to it, by the kind of host."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import docker

from components.engine_over_ssh import connection_to
from relayctl import hetzner, preflight, volume_copies
from relayctl.prerequisites import docker_engine
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.relay_check import loopback_addresses
from relayctl.stack import RelayStack
from settings import PROJECT, HetznerHost, LocalHost, Settings, SshHost
from ssh.connection import Connection
from ssh.docker_socket import docker_socket
from ssh.keys import new_private_key, public_key
from ssh.readiness import HostNotReadyError, wait_until_ready

# Seconds that a server which is in the state has to answer before the update. One that boots still
# is waited for by the update itself.
_KNOWN_SERVER_SECONDS = 20.0
# Seconds for a call to an engine on another continent, whose image is being sent meanwhile.
_ENGINE_TIMEOUT = 120.0


class StackHost(Protocol):
    """Where the engine of a stack is."""

    goarch: str
    environment: Mapping[str, str]
    """What Pulumi needs in its environment to find the engine."""

    def prepare(self, opened: RelayStack, where: str, *, going_up: bool) -> Settings:
        """Make what the host needs before an update, and return the settings with their secrets."""

    def look(self, opened: RelayStack, where: str) -> Settings:
        """Return the settings with their secrets; unlike `prepare` make and change nothing."""

    def put_back(self, opened: RelayStack) -> None:
        """Put back what a rebuild took to this machine, before the update."""

    def forget(self, opened: RelayStack) -> None:
        """Remove what this machine had for reaching a host whose stack is gone."""

    def engine(self, opened: RelayStack) -> contextlib.AbstractContextManager[docker.DockerClient | None]:
        """Yield a client of the engine; ``None`` where there is no server yet, or it does not answer yet."""


def of(settings: Settings, progress: Progress) -> StackHost:
    """Return where the stack of ``settings`` has its engine. Raises as `docker_engine.ensure` does."""
    if isinstance(settings.host, LocalHost):
        return ThisMachine(settings, progress)
    return Server(settings, progress)


def addresses(settings: Settings, outputs: Mapping[str, Any]) -> list[str]:
    """Return the literal addresses that clients reach the relay of a stack with these ``outputs`` by.

    Without any among them they are this machine's loopback, or what DNS says of a
    server that you have. Raises ``PrerequisiteError`` if it says nothing.
    """
    host = settings.host
    told = [address for address in (outputs.get("ipv4"), outputs.get("ipv6")) if address]
    if not told and isinstance(host, LocalHost):
        return loopback_addresses(settings)
    if told or not isinstance(host, SshHost):
        return told
    try:
        found = socket.getaddrinfo(host.address, None, proto=socket.IPPROTO_TCP)
    except OSError as error:
        raise PrerequisiteError(
            f"host.address: {host.address} has no address ({error})", "mend DNS, or give host.ipv4"
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class ThisMachine:
    """The engine of the machine that this runs on."""

    def __init__(self, settings: Settings | None, progress: Progress) -> None:
        """Find the engine, or bring one; without ``settings`` it is the default one."""
        self._settings = settings
        docker_host = settings.host.docker if settings and isinstance(settings.host, LocalHost) else None
        if docker_host:
            os.environ["DOCKER_HOST"] = docker_host
        self.found = docker_engine.ensure(progress)
        if not self.found.host.startswith("unix://"):
            raise PrerequisiteError(
                f"the Docker Engine at {self.found.host} ({self.found.origin}) is not this machine's, and"
                " host.kind local is for this machine's only",
                f"leave {self.found.origin} unset, or have it name a socket such as"
                " unix:///var/run/docker.sock; for a server use host.kind: ssh",
            )
        self.goarch: str = self.found.goarch
        self.environment: Mapping[str, str] = {} if docker_host else {"DOCKER_HOST": self.found.host}

    def prepare(self, opened: RelayStack, where: str, *, going_up: bool) -> Settings:  # noqa: ARG002
        """Return the settings: they have no secrets."""
        assert self._settings is not None  # noqa: S101 - only what is taken down has none
        return self._settings

    def look(self, opened: RelayStack, where: str) -> Settings:
        """Return the settings: they have no secrets."""
        return self.prepare(opened, where, going_up=False)

    def put_back(self, opened: RelayStack) -> None:
        """Put nothing back: this machine is not rebuilt."""

    def forget(self, opened: RelayStack) -> None:
        """Remove nothing: this machine is reached without."""

    @contextlib.contextmanager
    def engine(self, opened: RelayStack) -> Iterator[docker.DockerClient | None]:  # noqa: ARG002
        """Yield a client of this machine's engine."""
        client = self.found.client()
        try:
            yield client
        finally:
            client.close()


class Server:
    """The engine of a server that is reached by SSH: one that exists, or one that the update makes."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        """Take the settings as the stack's file has them, without secrets."""
        host = settings.host
        assert isinstance(host, SshHost | HetznerHost)  # noqa: S101 - chosen by kind
        self._host = host
        self._settings = settings
        self._progress = progress
        self.goarch: str = host.architecture
        self.environment: Mapping[str, str] = {}

    def prepare(self, opened: RelayStack, where: str, *, going_up: bool) -> Settings:
        """Make the SSH keys that are missing and keep them as secrets; ask Hetzner whether all can be had.

        What an update that was killed or failed made there, unbeknown to the state, is
        removed. A server that was deleted behind Pulumi's back is taken out of the
        state, with all that was on it, so that the update makes it anew. Raises
        ``PrerequisiteError`` with what stands in the way.
        """
        config = opened.config_values()
        missing = [key for key in self._keys() if not config.get(f"{PROJECT}:{key}")]
        if not isinstance(self._host, HetznerHost):
            self._make_keys(opened, missing)
            self._settings = opened.settings(where)
            return self._settings
        api = hetzner.client(os.environ.get("HCLOUD_TOKEN") or config.get("hcloud:token"))
        deployment = opened.deployment()
        since = opened.unfinished_since()
        sites = [name for site in self._settings.sites for name in site.names] if going_up else []
        hetzner.remove_leftovers(api, opened.name, deployment, since, self._progress, wanted=sites)
        server = hetzner.server_of(deployment)
        found = hetzner.find(api, server) if server is not None else None
        if found is not None and going_up:
            if missing:
                # Others would be made, which the server knows nothing of.
                raise PrerequisiteError(
                    f"{where} has lost {' and '.join(missing)}, by which the server {found.name} is reached",
                    "bring the lines back from the file's history (git log -p) or a copy of it. If there is"
                    " none, delete the server in the Hetzner Console, and with it the certificates and keys"
                    " that are on it; then run this again",
                )
            hetzner.switch_on(found, self._progress)
        if server is not None and found is None:
            self._progress.warn(
                f"The server {server['outputs'].get('name', server['id'])} is gone: it was deleted"
                " elsewhere. What was on it goes out of the state."
            )
            opened.forget_with_all_on_it(str(server["urn"]))
            deployment = opened.deployment()
        self._make_keys(opened, missing)
        self._settings = opened.settings(where)
        if going_up:
            if taken_over := hetzner.records_of_sites(deployment, self._settings):
                opened.forget(taken_over)
                deployment = opened.deployment()
            hetzner.check(api, opened.name, self._settings, deployment, where)
        return self._settings

    def look(self, opened: RelayStack, where: str) -> Settings:
        """Return the settings with their secrets, and change nothing.

        Raises ``PrerequisiteError`` where the keys for reaching the server are missing.
        """
        config = opened.config_values()
        missing = [key for key in self._keys() if not config.get(f"{PROJECT}:{key}")]
        if missing:
            raise PrerequisiteError(
                f"{where} has no {' and '.join(missing)}, by which the server is reached",
                "bring the lines back from the file's history (git log -p) or a copy of it",
            )
        self._settings = opened.settings(where)
        return self._settings

    def _keys(self) -> list[str]:
        """Return the settings with the SSH keys that are made where they are missing."""
        if isinstance(self._host, HetznerHost):
            return ["sshHostKey", "sshDeployKey"]
        return [] if self._host.deploy_key is not None else ["sshDeployKey"]

    def _make_keys(self, opened: RelayStack, missing: Sequence[str]) -> None:
        for key in missing:
            comment = f"derp-relays {opened.name} {key} {getpass.getuser()}@{socket.gethostname()}"
            made = new_private_key(comment)
            opened.set_secret(f"{PROJECT}:{key}", made)
            self._progress.say(f"Made {key}; it is kept as a secret in the stack's file.")
            if isinstance(self._host, SshHost):
                raise PrerequisiteError(
                    f"the server does not know the key that was just made for the stack {opened.name}",
                    f"add this line to ~/.ssh/authorized_keys of {self._host.user} on"
                    f" {self._host.address}, then run it again:\n"
                    f"{public_key(made)} derp-relays-{opened.name}",
                )

    def connection(self, opened: RelayStack) -> Connection | None:
        """Return the connection to the server, with its files; ``None`` where there is no server yet."""
        if isinstance(self._host, SshHost):
            return connection_to(opened.name, self._settings, self._host.address)
        server = hetzner.server_of(opened.deployment())
        address = (server or {}).get("outputs", {}).get("ipv4Address")
        return connection_to(opened.name, self._settings, address) if address else None

    def remove(self, opened: RelayStack, *, copy_volumes: bool) -> None:
        """Remove a server of Hetzner's with all on it; copy its volumes to this machine before, if asked for.

        Its addresses stay. The next update makes it anew and puts the copies back
        (`put_back`). Raises ``PrerequisiteError`` if there is no server, or it cannot be read.
        """
        server, connection = hetzner.server_of(opened.deployment()), self.connection(opened)
        if server is None or connection is None:
            raise PrerequisiteError(
                f"{opened.name} has no server yet", f"make up STACK={opened.name}   makes one"
            )
        volumes = preflight.Known.from_deployment(opened.deployment()).volumes
        # A server that never came so far has none, and copies of those before it may be waiting.
        if volumes and copy_volumes:
            volume_copies.save(connection, volumes, self._progress)
        opened.remove_with_all_on_it(str(server["urn"]))

    def put_back(self, opened: RelayStack) -> None:
        """Make the server of a rebuild and fill its volumes, so that no container starts without them.

        Nothing happens where there are no copies of volumes.
        """
        copies = volume_copies.folder(opened.name)
        if not copies.exists():
            return
        if preflight.Known.from_deployment(opened.deployment()).volumes:
            # The rebuild ended before anything was removed: what is on the server is newer.
            shutil.rmtree(copies)
            return
        with opened.changes_noted():
            opened.up(only=[hetzner.server_urn(opened.name)])
        connection = self.connection(opened)
        assert connection is not None  # noqa: S101 - it was just made
        try:
            wait_until_ready(connection, cloud_init=True, say=self._progress.say)
        except HostNotReadyError as error:
            raise PrerequisiteError(error.what, error.mend) from error
        volume_copies.restore(connection, self._progress)

    def forget(self, opened: RelayStack) -> None:
        """Remove the SSH files of the stack, whose keys the stack's file has, and copies of its volumes."""
        shutil.rmtree(Connection(opened.name, "", "").folder, ignore_errors=True)
        shutil.rmtree(volume_copies.folder(opened.name), ignore_errors=True)

    @contextlib.contextmanager
    def engine(self, opened: RelayStack) -> Iterator[docker.DockerClient | None]:
        """Yield a client of the server's engine, over one SSH connection.

        Raises ``PrerequisiteError`` if a server that exists cannot be used.
        """
        connection = self.connection(opened)
        if connection is None:
            yield None
            return
        try:
            wait_until_ready(
                connection, cloud_init=False, seconds=_KNOWN_SERVER_SECONDS, say=self._progress.say
            )
        except HostNotReadyError as error:
            if isinstance(self._host, SshHost):
                raise PrerequisiteError(error.what, error.mend) from error
            yield None
            return
        with docker_socket(connection.command()) as found:
            client = docker.DockerClient(base_url=found.address, timeout=_ENGINE_TIMEOUT)
            try:
                yield client
            finally:
                client.close()
