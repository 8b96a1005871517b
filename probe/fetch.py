"""One HTTP GET to a literal address under another name, read within bounds, and its errors in words."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

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


def client(context: ssl.SSLContext) -> httpx.AsyncClient:
    """Return a client without time limits, proxies or redirects; ``context`` decides on certificates."""
    return httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113


async def get(
    http: httpx.AsyncClient,
    url: str,
    *,
    host: str,
    server_name: str | None = None,
    headers: Mapping[str, str] = {},
) -> Answer:
    """Get a URL whose host is a literal address, sending ``host`` as Host and ``server_name`` as SNI.

    Raises ``httpx.HTTPError`` or ``ssl.SSLError``.
    """
    started = time.perf_counter()
    sent = {"Host": host, "Accept-Encoding": "identity", "User-Agent": "derp-relays", **headers}
    extensions = {"sni_hostname": server_name} if server_name else {}
    async with http.stream("GET", url, headers=sent, extensions=extensions) as response:
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= LONGEST_BODY:
                break
        return Answer(
            response.status_code, response.headers, body[:LONGEST_BODY], time.perf_counter() - started
        )


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
