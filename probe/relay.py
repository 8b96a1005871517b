"""A relay as its users know it: a name, literal addresses and ports."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass

HTTPS_PORT = 443
HTTP_PORT = 80
STUN_PORT = 3478
"""What a client uses where a DERP map names no port (tailscale ``tailcfg/derpmap.go``, ``DERPNode``)."""

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)
_KEY = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_HIGHEST_PORT = 65535
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class Relay:
    """Where a relay is to be found.

    ``addresses`` are literal IPv4 and IPv6 addresses, as a DERP map gives them;
    names are not looked up to find the relay. ``http_port`` is ``None`` for a relay
    that does not serve port 80, and ``can_port_80`` false for one that is not to
    answer clients there. ``ca_roots`` are the certificates in PEM that the relay's
    chain must end in; with ``None`` it must end in one that this system trusts.
    ``verified`` is false for a relay whose certificate clients are told not to verify.
    ``https_port`` is ``None`` for what has STUN alone, ``stun_port`` for a relay
    without STUN.

    ``server_key`` is the public key, 64 hexadecimal digits, that the relay is
    known to have; another one is a failure. ``other_ports`` are the TCP ports
    besides its own that may be open at its addresses; with ``None`` the host has
    other uses, and only what must never be open is a failure.

    Raises ``ValueError`` for values that no relay can have.
    """

    domain: str
    addresses: Sequence[str]
    https_port: int | None = HTTPS_PORT
    http_port: int | None = HTTP_PORT
    stun_port: int | None = STUN_PORT
    ca_roots: str | None = None
    server_key: str | None = None
    other_ports: Collection[int] | None = None
    verified: bool = True
    can_port_80: bool = True

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
            *(("other_ports", port) for port in self.other_ports or ()),
        ):
            if port is not None and not 0 < port <= _HIGHEST_PORT:
                raise ValueError(f"{name} {port} is not a port; give a number from 1 to {_HIGHEST_PORT}")
        if self.server_key is not None:
            if not _KEY.fullmatch(self.server_key):
                raise ValueError(
                    f"server_key {self.server_key!r} is not a derper's public key; give its 64 hexadecimal"
                    " digits"
                )
            object.__setattr__(self, "server_key", self.server_key.lower())
        self.tls_context()

    def tls_context(self) -> ssl.SSLContext:
        """Return settings that verify chain and name, unless they are not to be ``verified``.

        Raises ``ValueError`` if ``ca_roots`` holds no certificate.
        """
        if not self.verified:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if self.ca_roots is None:
            return ssl.create_default_context()
        try:
            return ssl.create_default_context(cadata=self.ca_roots)
        except ssl.SSLError as error:
            raise ValueError(f"ca_roots holds no certificate in PEM: {error}") from error

    def host_header(self, port: int | None, default: int) -> str:
        """Return what a browser would send as ``Host`` for the relay's domain."""
        return self.domain if port in (None, default) else f"{self.domain}:{port}"


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
