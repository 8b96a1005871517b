"""The delivery itself: orders to the program in ``images/deliver``, which runs beside Caddy."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

from delivery.content import SITES, Content, digest_of

CADDYFILE = "/etc/caddy/Caddyfile"
# As in images/deliver/main.go: where orders come in and results are left.
_EXCHANGE = "/etc/caddy/.incoming"
_INCOMING = f"{SITES}/.incoming"

# Seconds for Caddy's admin API to answer: a container that was just started, on a small machine.
_ANSWER = 20.0
# Seconds for Caddy to stay up after it was started, or to end again.
_STARTED = 2.0
_POLL = 0.1
# Of the memory that Caddy's container may have, how much its heap may hold before one more configuration
# is loaded: Go collects harder near GOMEMLIMIT, nine tenths, and the new one has to fit beside the others.
_HEAP_SHARE = 0.5
_CHUNK = 1 << 20


class DeliveryError(Exception):
    """A configuration could not be delivered; the message says why, and what goes on serving."""


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
    image: str,
    stack: str,
) -> Delivered:
    """Put the data of ``content`` in place, and have Caddy take the configuration.

    ``caddy`` is the id of Caddy's container, ``image`` that of ``images/deliver``;
    ``secrets`` are the values of ``siteSecrets``. Either Caddy serves the new
    configuration afterwards, and will after a restart, or it goes on as before.
    Nothing of an earlier configuration that is not in this one is left.

    Raises ``DeliveryError`` with Caddy's own message if Caddy refuses it, if there
    is no room for it, or if Caddy does not run with either;
    ``docker.errors.DockerException`` if the engine fails.
    """
    container = client.containers.get(caddy)
    run = _Run(client, caddy, image, stack)
    order = _application(content, secrets, _heap_limit(container))
    files = _missing_files(run, content)
    serves = _is_steady(container) or _runs(container)
    result = run.carry_out({**order, "Wait": _ANSWER}, files) if serves else {"Kind": "silent"}
    if result.get("Kind") == "silent" and not _runs(container):
        # It starts with what is in place, and ends: with no Caddyfile at all, or one that it cannot use.
        # Nobody is served, so that nothing is lost by putting the new one there unseen.
        run.carry_out({**order, "Wait": 0}, files, beside=False)
        container.restart()
        result = run.carry_out({**order, "Wait": _ANSWER})
    if "Error" in result:
        raise DeliveryError(_told(result, content, container))
    return Delivered(int(result.get("HeapAfter", 0)))


def unanswered(
    client: docker.DockerClient, addresses: Sequence[str], *, caddy: str, image: str, stack: str
) -> dict[str, str]:
    """Return why those of ``addresses``, HOST:PORT, take no connection from where Caddy is."""
    if not addresses:
        return {}
    result = _Run(client, caddy, image, stack).carry_out({"Do": "dial", "Addresses": list(addresses)})
    return dict(result.get("Unanswered") or {})


def delivered_digest(client: docker.DockerClient, caddy: str) -> str:
    """Return the digest of the Caddyfile that is in place, as `Content.digest`; ``""`` without one."""
    try:
        return digest_of(_read(client.containers.get(caddy), CADDYFILE))
    except docker.errors.NotFound:
        return ""


class _Run:
    """Runs orders in a container with Caddy's volumes and, unless Caddy is down, in its network."""

    def __init__(self, client: docker.DockerClient, caddy: str, image: str, stack: str) -> None:
        self._client = client
        self._caddy = caddy
        self._image = image
        self._stack = stack

    def carry_out(
        self, order: Mapping[str, Any], files: Mapping[str, Path] | None = None, *, beside: bool = True
    ) -> dict[str, Any]:
        """Send ``files`` by their sums and carry out ``order``, ``beside`` Caddy or while it is down."""
        container = self._container(beside=beside)
        try:
            if files:
                container.put_archive("/", _archive(_INCOMING, 0o755, files))
            text = json.dumps(order).encode()
            container.put_archive("/", _archive(_EXCHANGE, 0o700, {"order.json": text}))
            try:
                container.start()
            except docker.errors.APIError as error:
                if beside and not _runs(self._client.containers.get(self._caddy)):
                    return {"Kind": "silent", "Error": str(error.explanation)}
                raise
            status = container.wait()["StatusCode"]
            if status:
                said = container.logs().decode(errors="replace").strip()
                raise DeliveryError(f"the program that delivers ended with status {status}: {said}")
            return dict(json.loads(_read(container, f"{_EXCHANGE}/result.json")))
        finally:
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)

    def _container(self, *, beside: bool) -> Container:
        return self._client.containers.create(
            self._image,
            volumes_from=[self._caddy],
            network_mode=f"container:{self._caddy}" if beside else "none",
            # By it, what an interrupted update left is told from what somebody else made.
            labels={"derp-relays.stack": self._stack},
            cap_drop=["ALL"],
            # Volumes and folders of the host may be another user's.
            cap_add=["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            security_opt=["no-new-privileges"],
            log_config={"Type": "json-file"},
        )


def _application(content: Content, secrets: Mapping[str, str], heap_limit: int) -> dict[str, Any]:
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
        "HeapLimit": heap_limit,
    }


def _heap_limit(container: Container) -> int:
    return int(container.attrs["HostConfig"]["Memory"] * _HEAP_SHARE)


def _missing_files(run: _Run, content: Content) -> dict[str, Path]:
    """Return those files, by their sums, that the host does not have yet, whatever site they are of."""
    sources = {sum_: Path(tree.source) / name for tree in content.trees for name, sum_ in tree.files.items()}
    if not sources:
        return {}
    result = run.carry_out({"Do": "missing", "Files": sorted(sources)}, beside=False)
    if "Error" in result:
        raise DeliveryError(f"the host does not tell which files it has: {result['Error']}")
    return {sum_: sources[sum_] for sum_ in result.get("Missing") or []}


def _is_steady(container: Container) -> bool:
    """Tell whether the container runs and was never started again by itself, so that it need not be watched.

    One that somebody stopped is started.
    """
    if container.status in ("exited", "created"):
        container.start()
        return False
    state = container.attrs["State"]
    return bool(state["Running"] and not state["Restarting"] and not container.attrs["RestartCount"])


def _runs(container: Container) -> bool:
    """Tell whether the container runs, and goes on: one that ends is started again and again."""
    container.reload()
    before = container.attrs["State"]
    time.sleep(_STARTED)
    container.reload()
    after = container.attrs["State"]
    return bool(after["Running"] and not after["Restarting"] and before["StartedAt"] == after["StartedAt"])


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
            log = container.logs(tail=12).decode(errors="replace").strip()
            return f"Caddy does not answer ({error}). The end of its log:\n{log}"
    return f"the configuration could not be delivered, and the one before goes on: {error}"


def _told_of_memory(error: str, container: Container) -> str:
    held = int(error.partition(" ")[0]) // 2**20
    limit = container.attrs["HostConfig"]["Memory"] // 2**20
    return (
        f"Caddy holds {held} MiB, most of it earlier configurations on which relay sessions still live."
        f" With one more it might not fit its {limit} MiB, and running out of memory ends every session."
        " Nothing was changed. Wait: sessions end on an earlier configuration after caddy.streamCloseDelay"
        f" at the latest. Or end them all now (docker restart {container.name}), or raise caddy.memory."
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


def _read(container: Container, path: str) -> bytes:
    chunks, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        assert member is not None  # noqa: S101 - the path names a file
        return member.read()


def _archive(folder: str, mode: int, entries: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """Yield a tar archive of ``folder`` and of ``entries`` in it, files or contents by name, in pieces."""
    made = tarfile.TarInfo(folder.strip("/"))
    made.type, made.mode = tarfile.DIRTYPE, mode
    yield made.tobuf(tarfile.PAX_FORMAT)
    for name, entry in entries.items():
        header = tarfile.TarInfo(f"{made.name}/{name}")
        if isinstance(entry, bytes):
            header.size, header.mode = len(entry), 0o600
            yield header.tobuf(tarfile.PAX_FORMAT) + entry
        else:
            with entry.open("rb") as file:
                status = os.fstat(file.fileno())
                header.size, header.mtime, header.mode = status.st_size, int(status.st_mtime), 0o644
                yield header.tobuf(tarfile.PAX_FORMAT)
                left = header.size
                while left:
                    # one that is shorter by now is filled up: its sum will tell
                    piece = file.read(min(_CHUNK, left)) or bytes(min(_CHUNK, left))
                    yield piece
                    left -= len(piece)
        if padding := -header.size % tarfile.BLOCKSIZE:
            yield bytes(padding)
    yield bytes(2 * tarfile.BLOCKSIZE)
