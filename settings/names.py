"""Names and addresses, as DNS and the Internet Protocol have them."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from settings.problems import reject

# RFC 1123 section 2.1: a label is 1 to 63 letters, digits and inner hyphens, a name at most 253 of them.
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
NAME_ADVICE = "Give a host name such as derp.example.com"


def host_name(value: str) -> str:
    """Return ``value`` as a host name in lower case; reject what is none, saying why."""
    name = value.strip().lower().removesuffix(".")
    if not name:
        reject("is empty", f"{NAME_ADVICE}.")
    if "://" in name:
        reject(f"{value!r} is a URL", f"Give the host name alone: {_host_of(name) or 'derp.example.com'}.")
    if "*" in name:
        reject(
            f"{value!r} is a wildcard",
            "Give each name by itself; a wildcard certificate needs a DNS challenge.",
        )
    if not name.isascii():
        try:
            advice = f"Give it as DNS has it: {name.encode('idna').decode()}."
        except UnicodeError:
            advice = f"{NAME_ADVICE}."
        reject(f"{value!r} has letters that are not ASCII", advice)
    if _is_address(name.strip("[]")):
        reject(f"{value!r} is an address", f"{NAME_ADVICE}; certificates are for names.")
    if ":" in name:
        reject(f"{value!r} has a port", "Give the name alone; ports are caddy.httpPort and caddy.httpsPort.")
    labels = name.split(".")
    well_formed = len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels)  # noqa: PLR2004 - RFC 1123
    # RFC 3696 section 2: no top-level domain is a number. Programs take such a name for an address.
    if not well_formed or labels[-1].isdigit():
        reject(f"{value!r} is no host name", f"{NAME_ADVICE}: letters, digits, hyphens and dots.")
    if len(labels) == 1:
        reject(
            f"{value!r} is a name without a domain", f"{NAME_ADVICE}, or {name}.localhost on this machine."
        )
    return name


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def literal_address(value: str, version: Literal[4, 6]) -> str:
    """Return ``value`` as an address that clients can reach; reject what is none, saying why."""
    example = {4: "203.0.113.7", 6: "2001:db8::7"}[version]
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        address = None
    if address is None or address.version != version:
        reject(
            f"{value!r} is no IPv{version} address", f"Give it as digits, such as {example}, or leave it out."
        )
    if "%" in value or address.is_unspecified or address.is_multicast:
        reject(
            f"{value!r} is no address that clients can reach",
            f"Give the host's own, such as {example}, or leave it out.",
        )
    return str(address)
