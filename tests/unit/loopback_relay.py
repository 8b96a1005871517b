"""A relay on loopback that answers as it is told to: rightly, wrongly, too much or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nacl.public import Box, PrivateKey, PublicKey

from probe import Relay
from probe.stun import parse_response

DOMAIN = "relay.example.org"
SERVER = PrivateKey(bytes(range(32)))
SERVER_KEY = bytes(SERVER.public_key)

PAGE = b"<html><body>\n<h1>DERP</h1>\n<p>\n  This is a <a>Tailscale</a> DERP server.\n</p></body></html>"


def response(status: str, body: bytes = b"", /, **headers: str) -> bytes:
    """Return a response; ``x_some_name`` becomes the header ``x-some-name``."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if status.startswith("204"):
        lines.remove("Content-Length: 0")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def upgraded(
    frame: bytes | None = None,
    *,
    key: str = SERVER_KEY.hex(),
    version: str = "2",
    upgrade: str = "DERP",
) -> bytes:
    """Return a 101 response and what the server says first."""
    if frame is None:
        frame = server_key_frame()
    head = (
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n"
        f"Derp-Version: {version}\r\nDerp-Public-Key: {key}\r\n\r\n"
    )
    return head.encode() + frame


def server_key_frame(key: bytes = SERVER_KEY, magic: bytes = "DERP🔑".encode(), kind: int = 1) -> bytes:
    payload = magic + key
    return bytes([kind]) + len(payload).to_bytes(4) + payload


class Silence:
    """Says nothing and keeps the connection."""


class Endless:
    """Says something, then the same bytes again and again."""

    def __init__(self, first: bytes, again: bytes) -> None:
        self.first = first
        self.again = again


def frame(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4) + payload


Frames = list[tuple[bytes, bytes]]


def passed_on(source: bytes, destination: bytes, content: bytes) -> Frames:
    """Say to which client which frame goes for a packet: to its destination, as it is."""
    return [(destination, frame(5, source + content))]


@dataclass
class Derper:
    """A DERP server: lets clients in and passes packets on, or fails to in a way of its own.

    ``introduction`` is what it says of itself, ``first`` what it says before that.
    Clients that came to different addresses do not find each other if they are
    kept ``apart``.
    """

    key: PrivateKey = SERVER
    admits: Callable[[int], bool] = lambda _number: True
    passes: Callable[[bytes, bytes, bytes], Frames] = passed_on
    introduction: bytes | None = b'{"version":2}'
    first: bytes = b""
    seals_with: PrivateKey | None = None
    apart: bool = False
    clients: dict[bytes, asyncio.StreamWriter] = field(default_factory=dict)
    infos: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        key = bytes(self.key.public_key)
        writer.write(upgraded(server_key_frame(key), key=key.hex()))
        kind, payload = await self._frame(reader)
        assert kind == 2
        client, sealed = payload[:32], payload[32:]
        self.infos.append(Box(self.key, PublicKey(client)).decrypt(sealed))
        if not self.admits(len(self.infos)):
            return
        self.clients[client] = writer
        try:
            writer.write(self.first)
            if self.introduction is not None:
                box = Box(self.seals_with or self.key, PublicKey(client))
                writer.write(frame(3, box.encrypt(self.introduction)))
            while True:
                kind, payload = await self._frame(reader)
                if kind == 0x13:
                    self.pongs.append(payload)
                if kind == 4:
                    if self.apart and not self._at_one_address(client, payload[:32]):
                        writer.write(frame(8, payload[:32] + b"\x01"))
                        continue
                    for to, answer in self.passes(client, payload[:32], payload[32:]):
                        self.clients[to].write(answer)
        except KeyError:
            return
        finally:
            del self.clients[client]

    def _at_one_address(self, *clients: bytes) -> bool:
        return len({self.clients[each].get_extra_info("sockname")[0] for each in clients}) == 1

    @staticmethod
    async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        header = await reader.readexactly(5)
        return header[0], await reader.readexactly(int.from_bytes(header[1:]))


DERPER = Derper()

Answer = bytes | Silence | Endless | Derper
Answers = Callable[[str, dict[str, str]], Answer]


def https_answers(path: str, _headers: dict[str, str]) -> Answer:
    """Answer as derper behind Caddy does on port 443."""
    if path == "/derp":
        return DERPER
    if path == "/derp/latency-check":
        return response("200 OK", access_control_allow_origin="*")
    if path.startswith("/debug"):
        return response("403 Forbidden")
    return response("200 OK", PAGE)


def stun_answer(request: bytes, sender: tuple[str, int]) -> list[bytes]:
    """Answer as derper's dual-stack socket does: IPv4 senders as IPv4-mapped addresses."""
    return [stun_response(request[8:20], *sender)]


def stun_response(transaction_id: bytes, host: str, port: int) -> bytes:
    address = ipaddress.ip_address(host)
    octets = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    mask = bytes.fromhex("2112a442") + transaction_id
    value = b"\x00\x02" + (port ^ 0x2112).to_bytes(2)
    value += bytes(a ^ b for a, b in zip(octets, mask, strict=True))
    body = b"\x00\x20" + len(value).to_bytes(2) + value
    packet = b"\x01\x01" + len(body).to_bytes(2) + bytes.fromhex("2112a442") + transaction_id + body
    assert parse_response(packet)[0] == transaction_id
    return packet


_SIGNS_CERTIFICATES = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass
class Authority:
    """A certificate authority of its own, and the certificates it gives out."""

    name: str = "Test Authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.root = self._certificate(self.name, self.key.public_key(), -10, 10, ca=True)

    @property
    def pem(self) -> str:
        return self.root.public_bytes(serialization.Encoding.PEM).decode()

    def _certificate(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        from_day: float,
        to_day: float,
        *,
        ca: bool,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        own = self.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=from_day))
            .not_valid_after(now + dt.timedelta(days=to_day))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        if ca:
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def server_context(
        self, name: str = DOMAIN, *, from_day: float = -5, to_day: float = 5
    ) -> ssl.SSLContext:
        """Return what a server needs to show a certificate for ``name``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "server.pem")
            path.write_text("".join(self.certificate_and_key(name, from_day=from_day, to_day=to_day)))
            context.load_cert_chain(path)
        return context

    def certificate_and_key(
        self, name: str = DOMAIN, *, from_day: float = -5, to_day: float = 5
    ) -> tuple[str, str]:
        """Return a certificate for ``name`` and its key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(name, key.public_key(), from_day, to_day, ca=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


AUTHORITY = Authority()
GOOD_CERTIFICATE = AUTHORITY.server_context()


@dataclass
class Behaviour:
    """What the relay does; by default what a good one does."""

    https: Answers = https_answers
    http: Answers | None = None
    certificate: ssl.SSLContext | None = field(default_factory=lambda: GOOD_CERTIFICATE)
    stun: Callable[[bytes, tuple[str, int]], list[bytes]] | None = stun_answer
    addresses: tuple[str, ...] = ("127.0.0.1",)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


@contextlib.contextmanager
def running(behaviour: Behaviour) -> Iterator[Relay]:
    """Run a relay on free ports of its addresses for as long as the context lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = _Server(behaviour)
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


class _Server:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.connections: set[asyncio.Task[None]] = set()
        self.servers: list[asyncio.Server] = []
        self.https_port = 0

    async def start(self) -> Relay:
        behaviour = self.behaviour
        https_port = http_port = 0
        for address in behaviour.addresses:
            for serve, port, context in (
                (self._https, https_port, behaviour.certificate),
                (self._http, http_port, None),
            ):
                self.servers.append(await asyncio.start_server(serve, address, port, ssl=context))
            https_port, http_port = (server.sockets[0].getsockname()[1] for server in self.servers[-2:])
        self.https_port = https_port
        self.udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(behaviour), local_addr=("127.0.0.1", 0)
        )
        stun_port = self.udp.get_extra_info("sockname")[1]
        if behaviour.stun is None:
            self.udp.close()
        return Relay(
            DOMAIN,
            behaviour.addresses,
            https_port=https_port,
            http_port=http_port,
            stun_port=stun_port,
            ca_roots=AUTHORITY.pem,
        )

    async def stop(self) -> None:
        for server in self.servers:
            server.close()
        self.udp.close()
        for connection in self.connections:
            connection.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)
        await asyncio.sleep(0)

    async def _https(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(self.behaviour.https, "https", reader, writer)

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(self.behaviour.http or self._port_80, "http", reader, writer)

    def _port_80(self, path: str, headers: dict[str, str]) -> Answer:
        """Answer as a Caddy that lets only /generate_204 through."""
        if path.startswith("/generate_204?"):
            challenge = headers["x-tailscale-challenge"]
            return response("204 No Content", x_tailscale_response=f"response {challenge}")
        return response("308 Permanent Redirect", location=f"https://{DOMAIN}:{self.https_port}{path}")

    async def _serve(
        self, answers: Answers, scheme: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                if scheme == "https" and self.behaviour.certificate is None:
                    await self._answer(response("400 Bad Request"), reader, writer)
                    return
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                request, *lines = head.split("\r\n")[:-2]
                path = request.split(" ")[1]
                pairs = (line.split(": ", 1) for line in lines)
                headers = {name.lower(): value for name, value in pairs}
                self.behaviour.requests.append((scheme, path, headers))
                await self._answer(answers(path, headers), reader, writer)
        finally:
            self.connections.discard(task)
            writer.transport.abort()

    @staticmethod
    async def _answer(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(answer, Silence):
            await asyncio.sleep(60)
        elif isinstance(answer, Derper):
            await answer.serve(reader, writer)
        elif isinstance(answer, Endless):
            writer.write(answer.first)
            while not writer.is_closing():
                writer.write(answer.again)
                await writer.drain()
                await asyncio.sleep(0)
        else:
            writer.write(answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for packet in self.behaviour.stun(data, addr) if self.behaviour.stun else ():
            self.transport.sendto(packet, addr)
