"""A relay as its users know it: a name, literal addresses and ports."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

HTTPS_PORT = 443
HTTP_PORT = 80
STUN_PORT = 3478
"""What a client uses where a DERP map names no port (tailscale ``tailcfg/derpmap.go``, ``DERPNode``)."""

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)
_HIGHEST_PORT = 65535
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class Relay:
    """Where a relay is to be found.

    ``addresses`` are literal IPv4 and IPv6 addresses, as a DERP map gives them;
    DNS is not asked. ``http_port`` is ``None`` for a relay that does not serve
    port 80. ``ca_roots`` are the certificates in PEM that the relay's chain must
    end in; with ``None`` it must end in one that this system trusts.

    Raises ``ValueError`` for values that no relay can have.
    """

    domain: str
    addresses: Sequence[str]
    https_port: int = HTTPS_PORT
    http_port: int | None = HTTP_PORT
    stun_port: int = STUN_PORT
    ca_roots: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no relay can have; bring addresses into their short form."""
        labels = self.domain.split(".")
        if len(self.domain) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels):
            raise ValueError(
                f"domain {self.domain!r} is not a DNS name; give it without scheme, port or path"
            )
        if not self.addresses:
            raise ValueError(
                f"{self.domain}: no address given; give at least one literal IPv4 or IPv6 address"
            )
        object.__setattr__(self, "addresses", tuple(dict.fromkeys(map(_literal, self.addresses))))
        for name, port in (
            ("https_port", self.https_port),
            ("http_port", self.http_port),
            ("stun_port", self.stun_port),
        ):
            if port is not None and not 0 < port <= _HIGHEST_PORT:
                raise ValueError(f"{name} {port} is not a port; give a number from 1 to {_HIGHEST_PORT}")
        self.tls_context()

    def tls_context(self) -> ssl.SSLContext:
        """Return settings that verify chain and name.

        Raises ``ValueError`` if ``ca_roots`` holds no certificate.
        """
        if self.ca_roots is None:
            return ssl.create_default_context()
        try:
            return ssl.create_default_context(cadata=self.ca_roots)
        except ssl.SSLError as error:
            raise ValueError(f"ca_roots holds no certificate in PEM: {error}") from error

    def host_header(self, port: int, default: int) -> str:
        """Return what a browser would send as ``Host`` for the relay's domain."""
        return self.domain if port == default else f"{self.domain}:{port}"


def _literal(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(
            f"address {text!r} is not a literal IPv4 or IPv6 address; give one, names are not looked up"
        ) from error
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise ValueError(f"address {text!r} has a zone; clients on other networks cannot use it")
    return str(address)


def in_url(address: str) -> str:
    """Return a literal address as URLs and ``Host`` headers have it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
