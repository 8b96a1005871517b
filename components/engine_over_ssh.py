"""The Docker provider of a host that is reached by SSH, bound once its engine answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pulumi
import pulumi_docker as docker

from settings import HetznerHost, Settings, SshHost
from ssh.connection import Connection
from ssh.keys import public_key
from ssh.readiness import HostNotReadyError, wait_until_ready


def connection_to(stack: str, settings: Settings, address: str) -> Connection:
    """Return the connection to the host of ``stack`` at ``address``; write the files that it needs.

    A server that exists is logged in to with the key that ``host.deployKey`` names,
    if it names one. One that the stack made knows the stack's own key, and another
    one only if that was named before it was made. The settings are those that the
    program reads: with the secrets.
    """
    host = settings.host
    assert isinstance(host, SshHost | HetznerHost)  # noqa: S101 - the other kind needs no connection
    made = settings.ssh_deploy_key
    own = None if made is None else made.get_secret_value()
    if isinstance(host, SshHost):
        connection = Connection(stack, host.user, address, host.port)
        connection.write(host.host_key, None if host.deploy_key else own, host.deploy_key)
    else:
        assert settings.ssh_host_key is not None  # noqa: S101 - the reader refuses a stack without
        connection = Connection(stack, "root", address)
        connection.write(public_key(settings.ssh_host_key.get_secret_value()), own, None)
    return connection


def engine_over_ssh(
    name: str,
    settings: Settings,
    address: pulumi.Input[str],
    parent: pulumi.Resource,
) -> docker.Provider:
    """Declare the provider of the engine at ``address``, which is waited for.

    The wait is part of ``up`` alone: a preview connects to nothing. A server that
    is made has to have been through cloud-init. The update fails with the host's
    own words if that takes too long, or the engine is for another architecture.
    """
    host = settings.host
    assert isinstance(host, SshHost | HetznerHost)  # noqa: S101 - the other kind needs no connection
    stack = pulumi.get_stack()

    async def ready(found: str) -> str:
        connection = connection_to(stack, settings, found)
        if not pulumi.runtime.is_dry_run():
            # its own thread: other resources go on meanwhile
            await asyncio.to_thread(wait, connection, asyncio.get_running_loop())
        return connection.docker_host

    def wait(found: Connection, loop: asyncio.AbstractEventLoop) -> None:
        def tell(log: Callable[[str, pulumi.Resource], None], text: str) -> None:
            # Pulumi's log is for the thread of the program's event loop alone.
            loop.call_soon_threadsafe(log, text, parent)

        # One to the server that had the address before would be gone on with.
        found.close()
        try:
            engine = wait_until_ready(
                found,
                cloud_init=host.kind == "hetzner",
                say=lambda text: tell(pulumi.log.info, text),
            )
        except HostNotReadyError as error:
            raise pulumi.RunError(str(error)) from None
        for warning in engine.warnings:
            tell(pulumi.log.warn, warning)
        if engine.goarch != host.architecture:
            raise pulumi.RunError(
                f"the host is {engine.goarch}, and images would be built for {host.architecture}; set"
                f" host.architecture: {engine.goarch} in stacks/Pulumi.{stack}.yaml"
            )

    bound: pulumi.Output[str] = pulumi.Output.from_input(address).apply(ready)
    return docker.Provider(
        name,
        host=bound,
        ssh_opts=Connection(stack, "", "").options(),
        opts=pulumi.ResourceOptions(parent=parent),
    )
