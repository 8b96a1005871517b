"""The program in ``images/deliver``, which works on the host in containers of its own, an order at a time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
from docker.models.containers import Container

from delivery.content import SITES

# As in images/deliver: where orders come in and results are left, and where files come in.
_EXCHANGE = "/etc/caddy/.incoming"
_INCOMING = f"{SITES}/.incoming"

# Seconds for a container to stay up after it was started, or to end again.
_STARTED = 2.0
_CHUNK = 1 << 20


class DeliveryError(Exception):
    """A configuration could not be delivered; the message says why, and what goes on serving."""


class Program:
    """Runs orders in a container of ``image`` with another one's network, and with its volumes if asked for.

    ``beside`` is the id of the other one.
    """

    def __init__(
        self, client: docker.DockerClient, image: str, stack: str, *, beside: str, volumes: bool = True
    ) -> None:
        """Note what to run; nothing runs yet."""
        self._client = client
        self._image = image
        self._stack = stack
        self._beside = beside
        self._volumes = volumes

    def carry_out(
        self, order: Mapping[str, Any], files: Mapping[str, Path] | None = None, *, network: bool = True
    ) -> dict[str, Any]:
        """Send ``files`` by their sums and carry out ``order``; without ``network`` the other may be down.

        Returns the result as images/deliver/main.go has it. Raises ``DeliveryError``
        if there is none.
        """
        number = secrets.token_hex(8)
        container = self._container(number, network=network)
        try:
            if files:
                container.put_archive("/", _archive(_INCOMING, 0o755, files))
            text = json.dumps(order).encode()
            container.put_archive("/", _archive(_EXCHANGE, 0o700, {f"order-{number}": text}))
            try:
                container.start()
            except docker.errors.APIError as error:
                if network and not runs(self._client.containers.get(self._beside)):
                    return {"Kind": "silent", "Error": str(error.explanation)}
                raise
            status = container.wait()["StatusCode"]
            if status:
                raise DeliveryError(
                    f"the program that delivers ended with status {status}: {last_words(container)}"
                )
            return dict(json.loads(read_file(container, f"{_EXCHANGE}/result-{number}")))
        finally:
            # What went wrong before is what counts; a later update removes what is left (preflight).
            with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                container.remove(force=True)

    def _container(self, number: str, *, network: bool) -> Container:
        try:
            return self._created(number, network=network)
        except docker.errors.ImageNotFound:
            raise DeliveryError(
                "the image of the program that delivers is not on the host any more (docker image prune?)."
                " `make up` builds it again; so does `pulumi up` after `pulumi refresh`"
            ) from None

    def _created(self, number: str, *, network: bool) -> Container:
        return self._client.containers.create(
            self._image,
            command=[number],
            volumes_from=[self._beside] if self._volumes else None,
            network_mode=f"container:{self._beside}" if network else "none",
            # By it, what an interrupted update left is told from what somebody else made.
            labels={"derp-relays.stack": self._stack},
            cap_drop=["ALL"],
            # Volumes and folders of the host may be another user's.
            cap_add=["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            security_opt=["no-new-privileges"],
            log_config={"Type": "json-file"},
        )


def runs(container: Container) -> bool:
    """Tell whether the container runs, and goes on: one that ends is started again and again."""
    container.reload()
    before = container.attrs["State"]
    time.sleep(_STARTED)
    container.reload()
    after = container.attrs["State"]
    return bool(after["Running"] and not after["Restarting"] and before["StartedAt"] == after["StartedAt"])


def last_words(container: Container, lines: int = 12) -> str:
    """Return the end of a container's log, or why it cannot be had."""
    try:
        return container.logs(tail=lines).decode(errors="replace").strip() or "(empty)"
    except docker.errors.APIError as error:
        return f"({error.explanation})"


def read_file(container: Container, path: str) -> bytes:
    """Return what is in the file ``path`` of a container. Raises ``docker.errors.NotFound`` without one."""
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
