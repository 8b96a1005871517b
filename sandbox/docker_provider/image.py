"""Images: found, pulled or built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker.errors
from docker.utils import parse_repository_tag

from sandbox.provider.errors import OperationError

from .daemon import Daemon, stream_errors


def repository_and_tag(name: str) -> tuple[str, str]:
    """Split an image's name for a pull: a digest goes before a tag, without either it is ``latest``."""
    repository, tag = parse_repository_tag(name)
    if tag and ":" in tag:
        repository = parse_repository_tag(repository)[0]
    return repository, tag or "latest"


def repo_digest(name: str, digests: list[str]) -> str:
    """Choose the digest that belongs to the name (``determineRepoDigest`` upstream)."""
    if not digests:
        return ""
    if len(digests) == 1:
        return digests[0]
    without_tag = name.split(":", 1)[0]
    return next((digest for digest in digests if digest.startswith(without_tag)), digests[0])


def observed(name: str, inspection: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what ``docker image inspect`` says to properties; the id is the image's and the name."""
    return {
        "id": inspection["Id"] + name,
        "imageId": inspection["Id"],
        "repoDigest": repo_digest(name, inspection.get("RepoDigests") or []),
    }


def build_arguments(name: str, build: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the ``build`` argument to those of ``docker.APIClient.build``; more tags are set later."""
    return {
        "path": str(Path(build["context"]).expanduser().absolute()),
        "dockerfile": build.get("dockerfile") or "Dockerfile",
        "tag": name,
        "buildargs": build.get("buildArgs") or None,
        "labels": build.get("labels") or None,
        "rm": bool(build.get("remove")),
        "forcerm": bool(build.get("forceRemove")),
        "nocache": bool(build.get("noCache")),
        "pull": bool(build.get("pullParent")),
        "target": build.get("target") or None,
        "platform": build.get("platform") or None,
        "network_mode": build.get("networkMode") or None,
        "extra_hosts": dict(each.split(":", 1) for each in build.get("extraHosts") or []) or None,
        "cache_from": build.get("cacheFroms") or None,
        "decode": True,
    }


def find(daemon: Daemon, name: str) -> dict[str, Any] | None:
    """Return the inspection of the local image of that name, None if there is none."""
    with daemon.explained("unable to inspect image " + name):
        try:
            found: dict[str, Any] = daemon.api.inspect_image(name)
        except docker.errors.ImageNotFound:
            return None
        return found


def find_or_pull(daemon: Daemon, name: str, platform: str | None = None) -> dict[str, Any]:
    """Return the inspection of the image of that name; pulls it only if there is no local one."""
    if not name:
        raise OperationError("empty image name is not allowed")
    found = find(daemon, name)
    if found is None:
        doing = f"unable to pull image {name}"
        repository, tag = repository_and_tag(name)
        with daemon.explained(doing):
            events = daemon.api.pull(repository, tag=tag, platform=platform or None, stream=True, decode=True)
            stream_errors(events, doing)
        found = find(daemon, name)
    if found is None:
        raise OperationError(f"unable to find or pull image {name}")
    return found


def build(daemon: Daemon, name: str, arguments: Mapping[str, Any]) -> None:
    """Build an image with the daemon's classic builder and give it its name and further tags."""
    doing = f"Error running legacy build of {name}"
    translated = build_arguments(name, arguments)
    with daemon.explained(doing):
        try:
            events = daemon.api.build(**translated)
        except (TypeError, OSError, ValueError, docker.errors.DockerException) as error:
            if isinstance(error, docker.errors.APIError):
                raise
            raise OperationError(f"{doing}: {error}") from error
        stream_errors(events, doing)
        for tag in arguments.get("tags") or []:
            repository, version = repository_and_tag(tag)
            daemon.api.tag(name, repository, version, force=True)


def create(daemon: Daemon, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Build, or find, or pull the image; return its properties."""
    if inputs.get("build"):
        build(daemon, inputs["name"], inputs["build"])
    return again(daemon, inputs)


def again(daemon: Daemon, state: Mapping[str, Any]) -> dict[str, Any]:
    """Find or pull the image of a state, which is all that an update does; return its properties."""
    name = state["name"]
    try:
        return observed(name, find_or_pull(daemon, name, state.get("platform")))
    except OperationError as error:
        raise OperationError(f"Unable to read Docker image into resource: {error}") from error


def read(daemon: Daemon, name: str) -> dict[str, Any] | None:
    """Return the properties of the local image of that name, None if there is none."""
    found = find(daemon, name) if name else None
    return observed(name, found) if found else None


def delete(daemon: Daemon, state: Mapping[str, Any]) -> None:
    """Remove the image of that name, unless it is to be kept."""
    if state.get("keepLocally"):
        return
    with daemon.explained("Unable to remove Docker image"):
        if find(daemon, state["name"]) is not None:
            daemon.api.remove_image(state["name"], force=bool(state.get("forceRemove")))
