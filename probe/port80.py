"""What a relay answers on its plain HTTP port: captive portal challenge, redirects."""

from __future__ import annotations

import secrets
import time
from urllib.parse import urlsplit

import httpx

from probe.fetch import Client
from probe.finding import Check, Finding, failed, ok
from probe.relay import HTTP_PORT, HTTPS_PORT, Relay, in_url

_REDIRECTS = {301, 302, 303, 307, 308}
_SOME_PATH = "/robots.txt?from=http"
_DERPER_DOWN = {502, 503, 504}


def _base(address: str, port: int) -> str:
    return f"http://{in_url(address)}:{port}"


async def check_captive_portal(address: str, port: int, http: Client) -> Finding:
    """Ask as clients do to find captive portals: by literal address, with a challenge, following no redirect.

    Request and expected answer: tailscale ``net/captivedetection`` (``verifyCaptivePortalEndpoint``,
    ``responseLooksLikeCaptive``); the challenge is a new one each time, so that no answer is made up
    beforehand. Clients ask IPv4 addresses only; IPv6 is held to the same answer.
    """
    challenge = f"ts_{secrets.token_hex(8)}"
    expected = f"response {challenge}"
    answer = await http.get(
        f"{_base(address, port)}/generate_204?t={int(time.time())}",
        host=in_url(address),
        headers={
            "X-Tailscale-Challenge": challenge,
            "Cache-Control": "no-cache, no-store, must-revalidate, no-transform, max-age=0",
        },
    )
    if answer.status in _REDIRECTS:
        return failed(
            Check.CAPTIVE_PORTAL,
            address,
            f"/generate_204 redirects with {answer.status} to {answer.headers.get('Location')}",
            mend="Give the Caddyfile a site http:// (no name) that passes /generate_204 to derper: Caddy's"
            " automatic redirect answers else.",
        )
    if answer.status != httpx.codes.NO_CONTENT:
        mend = "Start derper: Caddy answers, derper does not." if answer.status in _DERPER_DOWN else None
        return failed(Check.CAPTIVE_PORTAL, address, f"/generate_204 answers {answer.status}", mend=mend)
    response = answer.headers.get("X-Tailscale-Response")
    if response != expected:
        return failed(
            Check.CAPTIVE_PORTAL,
            address,
            f"X-Tailscale-Response is {response!r} instead of {expected!r}",
            mend="Pass /generate_204 to derper with its headers; answer it nowhere else.",
        )
    return ok(
        Check.CAPTIVE_PORTAL,
        address,
        "204 with the right response",
        latency=answer.latency,
        facts={"can_port80": True},
    )


async def check_redirect(relay: Relay, address: str, port: int, http: Client) -> Finding:
    """See that any other path is redirected to HTTPS.

    By name the redirect must lead to the same path of the relay; by address it
    may lead to another site of the host.
    """
    by_name = await http.get(_base(address, port) + _SOME_PATH, host=relay.host_header(port, HTTP_PORT))
    by_address = await http.get(_base(address, port) + _SOME_PATH, host=in_url(address))
    target = f"https://{relay.host_header(relay.https_port, HTTPS_PORT)}{_SOME_PATH}"
    for name, answer in ((relay.domain, by_name), (address, by_address)):
        location = answer.headers.get("Location", "")
        if answer.status not in _REDIRECTS:
            return failed(
                Check.REDIRECT,
                address,
                f"http://{name}{_SOME_PATH} answers {answer.status} instead of redirecting",
                mend="Redirect everything but /generate_204 in the port 80 sites of the Caddyfile.",
            )
        if not _right(location, name, relay, target):
            return failed(
                Check.REDIRECT,
                address,
                f"http://{name}{_SOME_PATH} redirects to {location!r}, not to {target!r}",
                mend="Name scheme, host and, if it is not 443, port of the HTTPS side in the redirect.",
            )
    return ok(
        Check.REDIRECT,
        address,
        f"{by_name.status} to {by_name.headers['Location']}",
        latency=by_name.latency,
    )


def _right(location: str, name: str, relay: Relay, target: str) -> bool:
    """Tell whether a redirect leads where it should; one by address may lead to another site of the host."""
    if name == relay.domain:
        return _normal(location) == _normal(target)
    scheme, host, port, _, _ = _normal(location)
    return scheme == "https" and (host not in (relay.domain, name) or port == relay.https_port)


def _normal(url: str) -> tuple[str, str, int, str, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or (HTTPS_PORT if parts.scheme == "https" else HTTP_PORT)
    except ValueError:
        return "", "", 0, "", ""
    return parts.scheme, (parts.hostname or "").lower(), port, parts.path, parts.query
