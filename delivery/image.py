"""A new image, tried on the host beside the container that still has the old one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

from delivery.program import DeliveryError, Program, last_words

# Seconds for what was started to answer: a small machine that has just unpacked the image.
_ANSWER = 30.0
# What Caddy reads to start with, and what that names; its own keys, in /data, are not for a trial.
_FOLDERS = ("/etc/caddy", "/srv")


def try_image(  # noqa: PLR0913 - what is tried, and with what
    client: docker.DockerClient,
    image: str,
    *,
    name: str,
    replaces: str,
    command: Sequence[str] | None,
    environment: Sequence[str],
    url: str,
    program: str,
    stack: str,
) -> None:
    """Start ``image`` as the container ``replaces`` would be, without any network, and see that it answers.

    It has the configuration that it would start with, read-only, with the
    certificate files and secrets that this names; not the keys that Caddy or derper
    made. ``url`` is asked inside; ``program`` is the image of ``images/deliver``;
    ``name`` is what people know the image by. Nothing is left of it, and the
    container that is there is not touched.

    Raises ``DeliveryError`` with the end of its log if it does not answer with a
    2xx status within half a minute, ``docker.errors.DockerException`` if the
    engine fails.
    """
    trial: Container = client.containers.create(
        image,
        command=list(command) if command else None,
        environment=list(environment),
        network_mode="none",
        volumes=_configuration(client, replaces),
        labels={"derp-relays.stack": stack},
        security_opt=["no-new-privileges"],
        log_config={"Type": "json-file"},
    )
    try:
        try:
            trial.start()
        except docker.errors.APIError as error:
            raise DeliveryError(_told(name, replaces, str(error.explanation))) from None
        beside = Program(client, program, stack, beside=str(trial.id), volumes=False)
        result = beside.carry_out({"Do": "ask", "URL": url, "Wait": _ANSWER})
        if "Error" in result:
            trial.reload()
            state = trial.attrs["State"]
            ended = f"it ended with status {state['ExitCode']}"
            reason = result["Error"] if state["Running"] else ended
            raise DeliveryError(_told(name, replaces, f"{reason}\nThe end of its log:\n{last_words(trial)}"))
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            trial.remove(force=True, v=True)


def _told(name: str, replaces: str, reason: str) -> str:
    return (
        f"{name} was tried beside the container {replaces}, which goes on with the image that it has,"
        f" and does not run: {reason}"
    )


def _configuration(client: docker.DockerClient, name: str) -> Mapping[str, Any]:
    """Return the folders with the configuration of the container ``name``, read-only, if it is there."""
    try:
        mounts = client.containers.get(name).attrs["Mounts"]
    except docker.errors.NotFound:
        return {}
    return {
        mount.get("Name") or mount["Source"]: {"bind": mount["Destination"], "mode": "ro"}
        for mount in mounts
        if mount["Destination"] in _FOLDERS
    }
