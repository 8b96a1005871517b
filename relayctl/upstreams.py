"""Whether what sites send their requests to is there, seen from where Caddy is."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import docker

import delivery
from images import built_image
from settings import Settings, Upstream

_PORTS = {"http": 80, "https": 443}
# Warnings, before the rest is counted.
_TOLD = 10


def address_of(upstream: str) -> str:
    """Return HOST:PORT of an upstream as `settings.Upstream.address` has it."""
    url = urlsplit(upstream if "://" in upstream else f"http://{upstream}")
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    return f"{host}:{url.port or _PORTS[url.scheme]}"


def unanswered(settings: Settings, stack: str, goarch: str, client: docker.DockerClient) -> Iterator[str]:
    """Yield a warning for each site whose upstream takes no connection from Caddy's container.

    Caddy serves the site all the same: it asks its upstream at each request, and
    what is started later is found then.
    """
    wanted = {
        number: address_of(site.serves.address)
        for number, site in enumerate(settings.sites)
        if isinstance(site.serves, Upstream)
    }
    found = delivery.unanswered(
        client,
        sorted(set(wanted.values())),
        caddy=str(client.containers.get(settings.caddy.container_name).id),
        program=built_image("deliver", goarch).name,
        stack=stack,
    )
    bad = [number for number, address in wanted.items() if address in found]
    for number in bad[:_TOLD]:
        site, address = settings.sites[number], wanted[number]
        status = 502 if site.health is None else 503
        yield (
            f"sites[{number}].upstream: {address} does not answer ({found[address]}); visitors of"
            f" {site.names[0]} get {status} until it does"
        )
    if len(bad) > _TOLD:
        yield f"The same goes for {len(bad) - _TOLD} more sites."
