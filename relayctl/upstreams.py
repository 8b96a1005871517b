"""Whether what sites send their requests to is there, seen from where Caddy is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import docker

import delivery
from images import built_image
from settings import Settings, Upstream
from settings.site import UpstreamTls

_PORTS = {"http": 80, "https": 443}
# Warnings, before the rest is counted.
_TOLD = 10


def address_of(upstream: str) -> str:
    """Return HOST:PORT of an upstream as `settings.Upstream.address` has it."""
    url = urlsplit(upstream if "://" in upstream else f"http://{upstream}")
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{url.port or _PORTS[url.scheme]}"


def _wanted(upstream: Upstream) -> dict[str, Any]:
    """Return what Caddy wants of ``upstream``, as images/deliver/main.go has it."""
    given = upstream.tls or UpstreamTls()
    tls = {"ServerName": given.server_name or "", "Trust": given.trust, "Verify": given.verify}
    secure = upstream.address.startswith("https://")
    return {"Address": address_of(upstream.address), "TLS": tls if secure else None}


def unanswered(settings: Settings, stack: str, goarch: str, client: docker.DockerClient) -> Iterator[str]:
    """Yield a warning for each site whose upstream takes no connection from Caddy's container.

    Caddy serves the site all the same: it asks its upstream at each request, and
    what is started later is found then. Raises ``DeliveryError`` if that cannot
    be found out.
    """
    sites = {
        number: json.dumps(_wanted(site.serves))
        for number, site in enumerate(settings.sites)
        if isinstance(site.serves, Upstream)
    }
    upstreams = sorted(set(sites.values()))
    answers = delivery.unanswered(
        client,
        [json.loads(upstream) for upstream in upstreams],
        caddy=str(client.containers.get(settings.caddy.container_name).id),
        program=built_image("deliver", goarch).name,
        stack=stack,
    )
    found = {upstreams[place]: why for place, why in answers.items()}
    wanted = {number: json.loads(upstream)["Address"] for number, upstream in sites.items()}
    bad = [number for number, upstream in sites.items() if upstream in found]
    for number in bad[:_TOLD]:
        site, address = settings.sites[number], wanted[number]
        status = 502 if site.health is None else 503
        yield (
            f"sites[{number}].upstream: {address} does not answer ({found[sites[number]]}); visitors of"
            f" {site.names[0]} get {status} until it does"
        )
    if len(bad) > _TOLD:
        yield f"The same goes for {len(bad) - _TOLD} more sites."
