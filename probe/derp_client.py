"""A client of a DERP server: its login, and packets to and from other clients.

Follows tailscale ``derp/derp.go`` and ``derp/derp_client.go``, protocol version 2.
Every client has a fresh key, so that it is never taken for another one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from probe.derp import KEY_LENGTH, DerpConnection, DerpError, Frame, StreamEndedError, read_frame

PROTOCOL_VERSION = 2  # derp/derp.go, ProtocolVersion

# derp/derp.go, FrameType.
FRAME_CLIENT_INFO = 0x02
FRAME_SERVER_INFO = 0x03
FRAME_SEND_PACKET = 0x04
FRAME_RECV_PACKET = 0x05
FRAME_PEER_GONE = 0x08
FRAME_PING = 0x12
FRAME_PONG = 0x13
FRAME_HEALTH = 0x14
FRAME_RESTARTING = 0x15

PEER_NOT_HERE = 0x01  # derp/derp.go, PeerGoneReasonNotHere

_LONGEST_FRAME = 1 << 20  # derp/derp_client.go, recvTimeout; the limit for the server's JSON is the same
_PING_LENGTH = 8  # derp/derp.go, FramePing
_MOST_OTHER_FRAMES = 64  # bounds the work that a flood of frames which say nothing can make


class LoginRefusedError(DerpError):
    """The server closed the connection when it had seen who the client is.

    ``took`` is how long after that, in seconds.
    """

    def __init__(self, took: float) -> None:
        """Keep the time."""
        self.took = took
        super().__init__("the connection was closed after the client had told who it is")


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet from another client, whose public key is ``source``."""

    source: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The server has no way to a client: ``reason`` is one of ``derp/derp.go``, ``PeerGoneReasonType``."""

    peer: bytes
    reason: int


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong with this connection, in the server's words; empty if nothing is any more."""

    problem: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """The server is about to restart."""


Message = Packet | PeerGone | Health | Restarting


class DerpClient:
    """A client that a server has let in.

    ``public_key`` is 32 bytes; ``connection`` is what it is connected by.
    """

    def __init__(self, connection: DerpConnection, public_key: bytes) -> None:
        """Take over a connection whose login is done."""
        self.connection = connection
        self.public_key = public_key
        self._next: asyncio.Task[Message] | None = None

    async def send(self, peer: bytes, content: bytes) -> None:
        """Send a packet to the client whose public key is ``peer``."""
        await self.connection.stream.send(FRAME_SEND_PACKET, peer + content)

    def receiving(self) -> asyncio.Task[Message]:
        """Return the task that ends with the next message: the same one until that is taken."""
        if self._next is None:
            self._next = asyncio.create_task(self._receive())
        return self._next

    def take(self) -> Message:
        """Return the message that has come; raises what kept it from coming."""
        task, self._next = self._next, None
        assert task is not None  # noqa: S101 -- only a task that has ended is taken
        return task.result()

    async def _receive(self) -> Message:
        for _ in range(_MOST_OTHER_FRAMES):
            frame = await read_frame(self.connection.stream, _LONGEST_FRAME)
            if frame.kind == FRAME_PING:
                # derp/derp_client.go, ClientInfo.CanAckPings
                await self.connection.stream.send(FRAME_PONG, frame.payload[:_PING_LENGTH])
            elif message := _message(frame):
                return message
        raise DerpError(f"{_MOST_OTHER_FRAMES} frames came, none with a packet")

    async def close(self) -> None:
        """Close the connection."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self.connection.close()


async def first_message(*clients: DerpClient) -> tuple[DerpClient, Message]:
    """Wait for the first message to any of these clients.

    Raises ``DerpError`` or ``OSError`` where a connection fails instead.
    """
    # Tasks that outlive this call, so that who waits for several clients cuts no frame in two.
    tasks = {client.receiving(): client for client in clients}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    task = next(task for task in tasks if task in done)
    return tasks[task], tasks[task].take()


async def log_in(connection: DerpConnection) -> DerpClient:
    """Tell the server who we are and read what it says of itself.

    Raises ``LoginRefusedError`` if the server closes the connection instead,
    ``DerpError`` if what it says is not as it should be, ``OSError``. The caller
    closes the connection then. Has no time limit of its own.
    """
    key = PrivateKey.generate()
    try:
        box = Box(key, PublicKey(connection.server_key))
    except CryptoError as error:
        raise DerpError(f"nothing can be sealed to the server's key: {error}") from error
    # derp/derp_client.go, ClientInfo
    info = {"version": PROTOCOL_VERSION, "CanAckPings": True, "IsProber": True}
    sealed = bytes(key.public_key) + box.encrypt(json.dumps(info).encode())
    started = time.perf_counter()
    try:
        await connection.stream.send(FRAME_CLIENT_INFO, sealed)
        frame = await read_frame(connection.stream, _LONGEST_FRAME)
    except (StreamEndedError, ConnectionError, ssl.SSLError) as error:
        raise LoginRefusedError(time.perf_counter() - started) from error
    _see_server_info(frame, box)
    return DerpClient(connection, bytes(key.public_key))


def _see_server_info(frame: Frame, box: Box) -> None:
    """Raise ``DerpError`` if a frame is not a server's introduction that only we can read."""
    if frame.kind != FRAME_SERVER_INFO:
        raise DerpError(f"the login is answered with a frame of type 0x{frame.kind:02x} instead of 0x03")
    try:
        text = box.decrypt(frame.payload)
    except (CryptoError, ValueError) as error:
        raise DerpError(
            "what the server says of itself is not sealed with the key that it has shown"
        ) from error
    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DerpError(f"what the server says of itself is not JSON: {error}") from error
    version = info.get("version") if isinstance(info, dict) else None
    if version != PROTOCOL_VERSION:
        raise DerpError(f"the server speaks version {version} of DERP instead of {PROTOCOL_VERSION}")


def _message(frame: Frame) -> Message | None:
    """Return what a frame says; ``None`` for one that clients pass over (``derp/derp_client.go``)."""
    kind, payload = frame.kind, frame.payload
    if kind in (FRAME_RECV_PACKET, FRAME_PEER_GONE) and len(payload) < KEY_LENGTH:
        raise DerpError(f"a frame of type 0x{kind:02x} has {len(payload)} bytes, too few for a key")
    if kind == FRAME_RECV_PACKET:
        return Packet(payload[:KEY_LENGTH], payload[KEY_LENGTH:])
    if kind == FRAME_PEER_GONE:
        # Servers of old gave no reason, and meant that the client had left.
        return PeerGone(payload[:KEY_LENGTH], payload[KEY_LENGTH] if len(payload) > KEY_LENGTH else 0)
    if kind == FRAME_HEALTH:
        return Health(" ".join(payload[:200].decode(errors="replace").split()))
    if kind == FRAME_RESTARTING:
        return Restarting()
    return None
