"""The start of a DERP connection: HTTP upgrade and the server's first frame.

Follows tailscale ``derp/derphttp/derphttp_client.go`` and ``derp/derp.go``. A
connection is handed out right after the server's key came, which is where the
login begins: the client's next step is a FrameClientInfo sealed to that key.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from typing import NoReturn

import h11

from probe.relay import HTTPS_PORT, Relay

PATH = "/derp"
MAGIC = "DERP🔑".encode()  # derp/derp.go, Magic
KEY_LENGTH = 32  # derp/derp.go, KeyLen
FRAME_HEADER_LENGTH = 5  # derp/derp.go, FrameHeaderLen: type, then length as big-endian uint32
FRAME_SERVER_KEY = 0x01  # derp/derp.go, FrameServerKey
LONGEST_GREETING = 1 << 10  # derp/derp_client.go, recvServerKey: what a client accepts as first frame

# Bounds for what is read before the upgrade, well above what derper and Caddy send.
_LONGEST_HEADER = 16 << 10
_LONGEST_BODY = 200
_MOST_INFORMATIONAL = 8

_CLOSE_WITHIN = 0.5  # seconds for the TLS farewell before the socket is closed without it


class DerpError(Exception):
    """The server does not speak DERP; the message says where it departs from it."""


class StreamEndedError(DerpError):
    """The connection ended where more was to come."""


class UpgradeRefusedError(DerpError):
    """The server answered the upgrade with another status than 101."""

    def __init__(self, status: int, body: str) -> None:
        """Keep the status and the first characters of the body."""
        self.status = status
        self.body = body
        super().__init__(f"HTTP {status}" + (f": {body}" if body else ""))


@dataclass(frozen=True, slots=True)
class Frame:
    """A DERP frame: its type (``derp/derp.go``, ``FrameType``) and what follows the header."""

    kind: int
    payload: bytes


@dataclass(slots=True)
class DerpConnection:
    """An upgraded connection whose server has shown its key.

    ``server_key`` is 32 bytes; ``header_key`` is what the 101 response said.
    ``protocol_version`` is that of the response's ``Derp-Version``. ``latency``
    is in seconds, from the TCP connection's start to the key.
    """

    server_key: bytes
    header_key: bytes
    protocol_version: int
    latency: float
    stream: Stream

    async def close(self) -> None:
        """Close the connection."""
        await self.stream.close()


class Stream:
    """A TLS stream, read after what came together with the upgrade's response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take over both directions."""
        self.reader = reader
        self.writer = writer
        self.early = b""

    async def receive(self) -> bytes:
        """Return some bytes; none at the end of the stream."""
        return await self.reader.read(4096)

    async def read_exactly(self, count: int) -> bytes:
        """Return ``count`` bytes; raises ``StreamEndedError`` if the stream ends before."""
        taken, self.early = self.early[:count], self.early[count:]
        if len(taken) < count:
            try:
                taken += await self.reader.readexactly(count - len(taken))
            except asyncio.IncompleteReadError as error:
                raise StreamEndedError(
                    f"the connection ended after {len(taken) + len(error.partial)} of {count} expected bytes"
                ) from error
        return taken

    async def send(self, kind: int, payload: bytes) -> None:
        """Send one frame."""
        self.writer.write(bytes([kind]) + len(payload).to_bytes(4) + payload)
        await self.writer.drain()

    async def close(self) -> None:
        """Close the connection, whether the other side says farewell or not."""
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(_CLOSE_WITHIN):
                await self.writer.wait_closed()
        self.writer.transport.abort()


async def read_frame(stream: Stream, longest: int) -> Frame:
    """Read one frame of at most ``longest`` bytes after its header.

    Raises ``DerpError`` if it announces more or the stream ends within it.
    """
    header = await stream.read_exactly(FRAME_HEADER_LENGTH)
    kind, length = header[0], int.from_bytes(header[1:])
    if length > longest:
        raise DerpError(f"a frame of type 0x{kind:02x} announces {length} bytes, {longest} are the most here")
    return Frame(kind, await stream.read_exactly(length))


def server_key_of(frame: Frame) -> bytes:
    """Return the 32-byte key of a FrameServerKey.

    Raises ``DerpError`` for any other frame. More bytes after the key are
    allowed, as clients do (``derp/derp_client.go``, ``recvServerKey``).
    """
    if frame.kind != FRAME_SERVER_KEY:
        raise DerpError(f"the first frame has type 0x{frame.kind:02x} instead of a server key's 0x01")
    if not frame.payload.startswith(MAGIC):
        raise DerpError("the server key frame does not start with DERP's magic bytes")
    key = frame.payload[len(MAGIC) :][:KEY_LENGTH]
    if len(key) < KEY_LENGTH:
        raise DerpError(f"the server key frame holds {len(key)} bytes of key instead of {KEY_LENGTH}")
    return key


async def connect(relay: Relay, address: str, context: ssl.SSLContext) -> DerpConnection:
    """Connect to the relay at a literal address and read its key.

    No ALPN is offered and ``Derp-Fast-Start`` is not sent: a client sends that
    only to a derper whose own certificate it sees, and behind a proxy it would
    lose the 101 response.

    The caller closes the connection. Raises ``DerpError`` (``UpgradeRefusedError``
    for another status than 101), ``OSError`` or ``ssl.SSLError``. Has no time
    limit of its own.
    """
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(
        address, relay.https_port, ssl=context, server_hostname=relay.domain
    )
    stream = Stream(reader, writer)
    try:
        response = await _upgrade(stream, relay.host_header(relay.https_port, HTTPS_PORT))
        header_key, version = _announced(response)
        server_key = server_key_of(await read_frame(stream, LONGEST_GREETING))
    except BaseException:
        writer.transport.abort()
        raise
    return DerpConnection(server_key, header_key, version, time.perf_counter() - started, stream)


async def _upgrade(stream: Stream, host: str) -> h11.InformationalResponse:
    """Send the request and return the 101 response; what came after it is kept in the stream."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEADER)
    request = http.send(
        h11.Request(
            method="GET",
            target=PATH,
            headers=[
                ("Host", host),
                ("Upgrade", "DERP"),
                ("Connection", "Upgrade"),
                ("User-Agent", "derp-relays"),
            ],
        )
    )
    end = http.send(h11.EndOfMessage())
    stream.writer.write((request or b"") + (end or b""))
    await stream.writer.drain()
    try:
        for _ in range(_MOST_INFORMATIONAL):
            event = await _next_event(http, stream)
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:  # noqa: PLR2004
                stream.early = http.trailing_data[0]
                return event
            if isinstance(event, h11.Response):
                await _refused(http, stream, event.status_code)
    except h11.RemoteProtocolError as error:
        raise DerpError(f"the response to the upgrade is not HTTP: {error}") from error
    raise DerpError("the upgrade was answered with nothing but informational responses")


async def _refused(http: h11.Connection, stream: Stream, status: int) -> NoReturn:
    body = b""
    with contextlib.suppress(h11.RemoteProtocolError, OSError, ssl.SSLError):
        while len(body) < _LONGEST_BODY and isinstance(event := await _next_event(http, stream), h11.Data):
            body += event.data
    text = " ".join(body[:_LONGEST_BODY].decode(errors="replace").split())
    raise UpgradeRefusedError(status, text if text.isprintable() else "")


async def _next_event(http: h11.Connection, stream: Stream) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
    while (event := http.next_event()) is h11.NEED_DATA:
        data = await stream.receive()
        if not data and http.their_state is h11.SEND_RESPONSE:
            raise DerpError("the connection was closed without a whole response to the upgrade")
        http.receive_data(data)
    return event


def _announced(response: h11.InformationalResponse) -> tuple[bytes, int]:
    """Return key and protocol version of a 101 response (``derp/derpserver/handler.go``)."""
    headers = {
        bytes(name).decode().lower(): bytes(value).decode("latin-1") for name, value in response.headers
    }
    if headers.get("upgrade", "").lower() != "derp":
        raise DerpError(f"the 101 response upgrades to {headers.get('upgrade')!r} instead of 'DERP'")
    try:
        key = bytes.fromhex(headers["derp-public-key"])
        version = int(headers["derp-version"])
    except KeyError as error:
        raise DerpError(f"the 101 response has no header {error.args[0]!r}") from error
    except ValueError as error:
        raise DerpError(
            f"the 101 response's Derp-Public-Key or Derp-Version is malformed: {error}"
        ) from error
    if len(key) != KEY_LENGTH:
        raise DerpError(f"the 101 response's Derp-Public-Key has {len(key)} bytes instead of {KEY_LENGTH}")
    return key, version
