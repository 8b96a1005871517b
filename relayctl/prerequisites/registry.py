"""Asks whether a server answers, within a short time: an image registry or a download site."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass

import httpx

# a registry that answers does so in well under a second; nobody should wait longer for a no
_TIMEOUT = httpx.Timeout(8.0, connect=4.0)
# https://github.com/distribution/reference/blob/v0.6.0/normalize.go: no registry named means Docker Hub
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True)
class Answer:
    """Whether ``host`` answers, and if not, ``reason`` says why in a few words."""

    host: str
    answers: bool
    reason: str = ""

    def __bool__(self) -> bool:
        """Tell whether it answers."""
        return self.answers


def registry_of(reference: str) -> str:
    """Return the registry of an image reference, such as ``docker.io`` for ``caddy:2``.

    The first part names a registry only if it has a dot or a port or is ``localhost``:
    https://github.com/distribution/reference/blob/v0.6.0/normalize.go.
    """
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return _DOCKER_HUB if first == "index.docker.io" else first
    return _DOCKER_HUB


def answers(reference: str) -> Answer:
    """Ask the registry of the image ``reference`` whether it is there, within eight seconds.

    It is if it answers ``GET /v2/`` with 200, or with 401 where it wants a login
    (https://distribution.github.io/distribution/spec/api/#api-version-check).
    It is asked from this process: an engine on another machine, or with a proxy
    or mirror of its own, may see it differently.
    """
    registry = registry_of(reference)
    host = _DOCKER_HUB_API if registry == _DOCKER_HUB else registry
    # the engine too speaks plain HTTP to registries of its own machine
    schemes = ("https", "http") if _is_loopback(host) else ("https",)
    reason = ""
    for scheme in schemes:
        try:
            response = httpx.get(f"{scheme}://{host}/v2/", timeout=_TIMEOUT)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = reason or _reason(error)
            continue
        if response.status_code in (httpx.codes.OK, httpx.codes.UNAUTHORIZED):
            return Answer(registry, answers=True)
        reason = f"{scheme}://{host}/v2/ answers {response.status_code}, which is not how a registry answers"
    return Answer(registry, answers=False, reason=reason)


def site_answers(url: str) -> Answer:
    """Ask whether the server of ``url`` answers at all, with whatever status, within eight seconds."""
    host = httpx.URL(url).host
    try:
        httpx.head(url, timeout=_TIMEOUT)
    except httpx.HTTPError as error:
        return Answer(host, answers=False, reason=_reason(error))
    return Answer(host, answers=True)


def _is_loopback(host: str) -> bool:
    name = httpx.URL(f"http://{host}").host
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"its TLS certificate or protocol is refused: {cause.reason or cause}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection within 4 s"
    if isinstance(error, httpx.TimeoutException):
        return "no answer within 8 s"
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
