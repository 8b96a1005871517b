"""Back to the images that ran before an update, where the new ones do not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import yaml

from delivery import runs
from relayctl.stack import run_folder
from settings import PROJECT, Settings
from settings.reader import stack_file

_CONTAINER = "docker:index/container:Container"
_IMAGE = "docker:index/remoteImage:RemoteImage"


@dataclass(frozen=True)
class Image:
    """What a container is made from: the image's ``id``, its ``name``, and the command of its health check.

    ``name`` is a reference that the host finds it by. ``healthcheck`` is empty for none.
    """

    id: str
    name: str
    healthcheck: tuple[str, ...] = ()


def changed(former: Mapping[str, Image], deployment: Mapping[str, Any]) -> dict[str, Image]:
    """Return those ``former`` images that ``deployment``, the state by now, has another one for.

    A container that could not be made is not in the state; its new image then is.
    """
    present = images_of(deployment)
    found = {}
    for group, image in former.items():
        if group in present:
            now = {present[group].id}
        else:
            now = {
                str((resource.get("outputs") or {}).get("imageId"))
                for resource in deployment.get("resources") or ()
                if resource["type"] == _IMAGE
                and not resource.get("delete")
                and resource["urn"].rpartition("::")[2].removesuffix("-built") == group
            }
        if now - {image.id}:
            found[group] = image
    return found


def images_of(deployment: Mapping[str, Any]) -> dict[str, Image]:
    """Return the images of the containers that a stack's state knows of, by the containers' logical names."""
    names: dict[str, str] = {}
    containers: dict[str, Mapping[str, Any]] = {}
    for resource in deployment.get("resources") or ():
        inputs = resource.get("inputs") or {}
        if resource["type"] == _IMAGE:
            names[str((resource.get("outputs") or {}).get("imageId"))] = str(inputs.get("name"))
        elif resource["type"] == _CONTAINER and resource.get("id"):
            containers[resource["urn"].rpartition("::")[2]] = inputs
    return {
        container: Image(
            str(inputs["image"]),
            names[inputs["image"]],
            # the first word is Docker's own: CMD
            tuple((inputs.get("healthcheck") or {}).get("tests") or ())[1:],
        )
        for container, inputs in containers.items()
        if inputs["image"] in names
    }


def replaced_in_vain(
    former: Mapping[str, Image], settings: Settings, client: docker.DockerClient
) -> dict[str, Image]:
    """Return those ``former`` images whose container is gone, or has another one and does not run."""
    found = {}
    for group, image in former.items():
        try:
            container = client.containers.get(_container_name(settings, group))
        except docker.errors.NotFound:
            found[group] = image
            continue
        if container.attrs["Image"] == image.id:
            continue
        health = (container.attrs["State"].get("Health") or {}).get("Status")
        if health == "unhealthy" or not runs(container):
            found[group] = image
    return found


def _container_name(settings: Settings, group: str) -> str:
    return settings.derper.container_name if group == "derper" else settings.caddy.container_name


def settings_with(stack: str, images: Mapping[str, Image]) -> Path:
    """Write the settings of ``stack`` with ``images`` for the groups ``derper`` and ``caddy``; return where.

    The stack's own file is left as it is: it says what is wanted.
    """
    content = yaml.safe_load(stack_file(stack).read_text())
    config = content["config"]
    for group, image in images.items():
        key = f"{PROJECT}:{group}"
        kept = {name: value for name, value in (config.get(key) or {}).items() if name != "version"}
        config[key] = {
            **kept,
            "image": image.name,
            # It was accepted when it was brought.
            "allowUnpinned": True,
            "healthcheck": list(image.healthcheck),
        }
    path = run_folder() / f"{stack}.rollback.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
