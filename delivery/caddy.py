"""A configuration with its data, put in place beside a Caddy that runs on."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

from delivery.content import Content, digest_of
from delivery.program import DeliveryError, Program, last_words, read_file, runs

CADDYFILE = "/etc/caddy/Caddyfile"

# Seconds for Caddy's admin API to answer: a container that was just started, on a small machine.
_ANSWER = 20.0
_SILENT = {"Kind": "silent", "Error": "its container does not stay up"}
# Bytes that a host is left with, for certificates, logs and whatever else it keeps.
_ROOM = 64 * 2**20
# Of the memory that Caddy's container may have, how much its heap may hold before one more configuration
# is loaded: Go collects harder near GOMEMLIMIT, nine tenths, and the new one has to fit beside the others.
_HEAP_SHARE = 0.5


@dataclass(frozen=True)
class Delivered:
    """What a delivery came to: ``heap`` is what Caddy's holds, earlier configurations included, in bytes."""

    heap: int


def deliver(  # noqa: PLR0913 - what is delivered, and where to
    client: docker.DockerClient,
    content: Content,
    secrets: Mapping[str, str],
    *,
    caddy: str,
    program: str,
    stack: str,
) -> Delivered:
    """Put the data of ``content`` in place, and have Caddy take the configuration.

    ``caddy`` is the id of Caddy's container, ``program`` the image of ``images/deliver``;
    ``secrets`` are the values of ``siteSecrets``. Either Caddy serves the new
    configuration afterwards, and will after a restart, or it goes on as before.
    Nothing of an earlier configuration that is not in this one is left.

    Raises ``DeliveryError`` with Caddy's own message if Caddy refuses it, if there
    is no room for it, or if Caddy does not run with either;
    ``docker.errors.DockerException`` if the engine fails.
    """
    container = client.containers.get(caddy)
    run = Program(client, program, stack, beside=caddy)
    order = {**_application(content, secrets, container), "Wait": _ANSWER}
    files = _missing_files(run, content)
    serves = _is_steady(container) or runs(container)
    result = run.carry_out(order, files) if serves else _SILENT
    if result.get("Kind") == "silent" and not runs(container):
        container.restart()
        if runs(container):
            result = run.carry_out(order, files)
    if result.get("Kind") == "silent" and not runs(container):
        result = _started_with(run, order, files, container)
    if "Error" in result:
        raise DeliveryError(_told(result, content, container))
    return Delivered(int(result.get("HeapAfter", 0)))


def _started_with(
    run: Program, order: Mapping[str, Any], files: Mapping[str, Path], container: Container
) -> dict[str, Any]:
    """Carry out ``order`` for a Caddy that does not stay up with what is in place, if anything is.

    Nobody is served, so the new configuration is put there unseen. If Caddy does
    not stay up with that one either, what was there comes back: it may not have
    been the reason.
    """
    try:
        before = read_file(container, CADDYFILE).decode()
    except docker.errors.NotFound:
        before = None
    result = run.carry_out({**order, "Wait": 0}, files, network=False)
    if "Error" in result:
        return result
    container.restart()
    result = run.carry_out(order) if runs(container) else _SILENT
    if "Error" in result and before is not None:
        run.carry_out({"Do": "apply", "Caddyfile": before, "Wait": 0}, network=False)
        container.restart()
    return result


def unanswered(
    client: docker.DockerClient,
    upstreams: Sequence[Mapping[str, Any]],
    *,
    caddy: str,
    program: str,
    stack: str,
) -> dict[int, str]:
    """Return why those of ``upstreams`` take no connection from where Caddy is, by their place.

    Each is as images/deliver/main.go has it. Raises ``DeliveryError`` if that cannot be found out.
    """
    if not upstreams:
        return {}
    run = Program(client, program, stack, beside=caddy, volumes=False)
    result = run.carry_out({"Do": "dial", "Upstreams": list(upstreams)})
    if "Error" in result:
        raise DeliveryError(f"upstreams could not be asked: {result['Error']}")
    return {int(number): why for number, why in (result.get("Unanswered") or {}).items()}


def delivered_digest(client: docker.DockerClient, caddy: str) -> str:
    """Return the digest of the Caddyfile that is in place, as `Content.digest`; ``""`` without one."""
    try:
        return digest_of(read_file(client.containers.get(caddy), CADDYFILE))
    except docker.errors.NotFound:
        return ""


def _application(content: Content, secrets: Mapping[str, str], container: Container) -> dict[str, Any]:
    values = {path: Path(source).read_bytes() for path, source in content.certificates.items()}
    values |= {path: secrets[name].encode() for name, path in content.secrets.items()}
    private: dict[str, dict[str, str]] = {}
    for path, value in values.items():
        folder, _, name = path.rpartition("/")
        private.setdefault(folder, {})[name] = base64.b64encode(value).decode()
    return {
        "Do": "apply",
        "Caddyfile": content.caddyfile,
        "Trees": [
            {"Path": tree.path, "Files": dict(tree.files), "Links": dict(tree.links)}
            for tree in content.trees
        ],
        "Private": [{"Path": path, "Files": files} for path, files in private.items()],
        "HeapLimit": int(container.attrs["HostConfig"]["Memory"] * _HEAP_SHARE),
        "Owner": _owner(container),
    }


def _owner(container: Container) -> int:
    """Return the user that Caddy runs as by number; one that has a name in its image alone counts as root."""
    user = str(container.attrs["Config"].get("User") or "").partition(":")[0]
    return int(user) if user.isdecimal() else 0


def _missing_files(run: Program, content: Content) -> dict[str, Path]:
    """Return those files, by their sums, that the host does not have yet, whatever site they are of."""
    sources = {sum_: Path(tree.source) / name for tree in content.trees for name, sum_ in tree.files.items()}
    if not sources:
        return {}
    result = run.carry_out({"Do": "missing", "Files": sorted(sources)}, network=False)
    if "Error" in result:
        raise DeliveryError(f"the host does not tell which files it has: {result['Error']}")
    missing = {sum_: sources[sum_] for sum_ in result.get("Missing") or []}
    needed = sum(path.stat().st_size for path in missing.values()) + _ROOM
    free = int(result.get("Free", 0))
    if missing and needed > free:
        raise DeliveryError(
            f"the sites' folders need {needed // 2**20} MiB on the host, which has {free // 2**20} left."
            " Nothing was changed. Make room there (docker system df), or take files out"
        )
    return missing


def _is_steady(container: Container) -> bool:
    """Tell whether the container runs and was never started again by itself, so that it need not be watched.

    One that somebody stopped is started.
    """
    if container.status in ("exited", "created"):
        container.start()
        return False
    state = container.attrs["State"]
    return bool(state["Running"] and not state["Restarting"] and not container.attrs["RestartCount"])


def _told(result: Mapping[str, Any], content: Content, container: Container) -> str:
    error = str(result["Error"])
    match result.get("Kind"):
        case "refused":
            return (
                "Caddy refuses the configuration, and goes on serving the one before:"
                f" {error}{_where(error, content)}"
            )
        case "memory":
            return _told_of_memory(error, container)
        case "changed":
            names = {s: f"{tree.source}/{name}" for tree in content.trees for name, s in tree.files.items()}
            return f"{names.get(error, error)} changed while it was sent. Run it again; nothing was changed."
        case "silent":
            return f"Caddy does not answer ({error}). The end of its log:\n{last_words(container)}"
    return f"the configuration could not be delivered: {error}"


def _told_of_memory(error: str, container: Container) -> str:
    held = int(error.partition(" ")[0]) // 2**20
    limit = container.attrs["HostConfig"]["Memory"] // 2**20
    return (
        f"Caddy holds {held} MiB, most of it earlier configurations on which relay sessions still live."
        f" With one more it might not fit its {limit} MiB, and running out of memory ends every session."
        " Nothing was changed. Wait: sessions end on an earlier configuration after caddy.streamCloseDelay"
        f" at the latest. Or end them all now (docker restart {container.name}). If it is as much after that,"
        " the sites alone need it: raise caddy.memory."
    )


def _where(error: str, content: Content) -> str:
    """Return which line Caddy's message is about, and whose site it is in."""
    found = re.search(r"Caddyfile:(\d+)", error)
    lines = content.caddyfile.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    number = int(found[1])
    heads = [line for line in lines[:number] if line.endswith(" {") and not line.startswith(("\t", " "))]
    head = f" of {heads[-1].removesuffix(' {')}" if heads else ""
    return f"\n  line {number} of the Caddyfile, in the block{head}: {lines[number - 1].strip()}"
