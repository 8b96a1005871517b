"""One HTTP GET to a literal address under another name, read within bounds, and its errors in words."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import httpx

LONGEST_BODY = 64 << 10  # bytes read of a body; derper's page has less than 2 KiB

_ERRORS = {
    errno.ECONNREFUSED: "connection refused: nothing listens there",
    errno.ECONNRESET: "the connection was reset",
    errno.EPIPE: "the connection was closed",
    errno.EHOSTUNREACH: "the host cannot be reached",
    errno.ENETUNREACH: "the network cannot be reached",
    errno.ETIMEDOUT: "the connection attempt timed out",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: ``body`` is cut at ``LONGEST_BODY``, ``latency`` in seconds until it was read."""

    status: int
    headers: httpx.Headers
    body: bytes
    latency: float


class Client:
    """Sends requests to literal addresses until a deadline, without proxies and redirects."""

    def __init__(self, context: ssl.SSLContext, deadline: float) -> None:
        """Let ``context`` decide on certificates; ``deadline`` is in the event loop's time."""
        self.deadline = deadline
        self._http = httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(
        self,
        url: str,
        *,
        host: str,
        server_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        target: str | None = None,
    ) -> Answer:
        """Get a URL whose host is a literal address, sending ``host`` as Host and ``server_name`` as SNI.

        ``target`` is sent as it stands in place of the URL's path, which would be normalized.

        Raises ``httpx.HTTPError``, ``OSError`` or, at the deadline, ``TimeoutError``.
        """
        started = time.perf_counter()
        left = max(self.deadline - asyncio.get_running_loop().time(), 0.0)
        # httpcore leaves the socket of a handshake open that is cancelled from outside, so TCP and TLS
        # connecting have limits of their own that together end no later than the deadline.
        limits = httpx.Timeout(None, connect=left / 2)
        sent = {"Host": host, "Accept-Encoding": "identity", "User-Agent": "derp-relays", **(headers or {})}
        extensions: dict[str, str | bytes] = {"sni_hostname": server_name} if server_name else {}
        if target is not None:
            extensions["target"] = target.encode("ascii")
        try:
            async with (
                asyncio.timeout_at(self.deadline),
                self._http.stream(
                    "GET", url, headers=sent, extensions=extensions, timeout=limits
                ) as response,
            ):
                body = b""
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) >= LONGEST_BODY:
                        break
                latency = time.perf_counter() - started
                return Answer(response.status_code, response.headers, body[:LONGEST_BODY], latency)
        except httpx.TimeoutException as error:
            raise TimeoutError from error


def explain(error: BaseException) -> str:
    """Say in words what an exception of the network, TLS or HTTP means."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or str(cause)).lower().replace('_', ' ')}"
        if isinstance(cause, OSError) and cause.errno in _ERRORS:
            return _ERRORS[cause.errno]
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.RemoteProtocolError):
        return f"no proper HTTP response: {error}".rstrip(".")
    if isinstance(error, httpx.HTTPError | OSError):
        return str(error).rstrip(".") or "the connection was closed"
    return f"{type(error).__name__}: {error}"
