"""Reverse DNS of servers and primary IPs (``internal/rdns/resource.go`` upstream)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.provider.errors import OperationError
from sandbox.provider.package import Creation

from .api import Api, ApiError

_KINDS = {"s": ("servers", "server", "serverId"), "p": ("primary_ips", "primary_ip", "primaryIpId")}
"""Path, name and argument of what has reverse DNS, by the first letter of an id."""


def wrong_address(text: str) -> str | None:
    """Return what is wrong with an address, None if nothing is."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f"must be a valid ip, got: {text}"
    return None


def _parts(identifier: str) -> tuple[str, int, str]:
    """Split an id such as ``p-42-2001:db8::1``. Raises `OperationError` for one of another form."""
    prefix, _, rest = identifier.partition("-")
    number, _, address = rest.partition("-")
    if prefix not in _KINDS or not number.isdigit() or wrong_address(address):
        raise OperationError(
            f"Invalid ID: unexpected id '{identifier}', expected '$RESOURCE_PREFIX-$RESOURCE_ID-$IP_ADDRESS' "
            f"with a prefix of {', '.join(sorted(_KINDS))}"
        )
    return prefix, int(number), address


def _pointer(entries: Mapping[str, Any], prefix: str, address: str) -> str | None:
    """Return the name that the address points to among what the API says of a server or a primary IP."""
    pointers: Iterable[Mapping[str, Any]]
    if prefix == "p":
        pointers = entries["dns_ptr"]
    else:
        ipv4, ipv6 = entries["public_net"]["ipv4"], entries["public_net"]["ipv6"]
        pointers = [*([ipv4] if ipv4 else []), *(ipv6["dns_ptr"] if ipv6 else [])]
    return next((each["dns_ptr"] for each in pointers if each["ip"] == address), None)


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """Point an address to a name."""
    prefix = next(prefix for prefix, (_, _, name) in _KINDS.items() if inputs.get(name) is not None)
    path, kind, argument = _KINDS[prefix]
    number, address = int(inputs[argument]), str(ipaddress.ip_address(inputs["ipAddress"]))
    if api.get(f"/{path}/{number}") is None:
        raise OperationError(f"Resource ({kind.replace('_', ' ')}) was not found: id={number}")
    api.act(f"/{path}/{number}/actions/change_dns_ptr", {"ip": address, "dns_ptr": inputs["dnsPtr"]})
    return Creation(f"{prefix}-{number}-{address}")


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an address points to; None if it or its server is gone, or it points nowhere."""
    prefix, number, address = _parts(identifier)
    path, kind, argument = _KINDS[prefix]
    found = api.get(f"/{path}/{number}")
    pointer = _pointer(found[kind], prefix, address) if found else None
    if pointer is None:
        return None
    given = prior.get("ipAddress")
    # the program's own form of the same address is no difference (``iptypes.IPAddress`` upstream)
    same = given is not None and not wrong_address(given) and str(ipaddress.ip_address(given)) == address
    return {
        "id": identifier,
        argument: number,
        "ipAddress": given if same else address,
        "dnsPtr": pointer,
    }


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Point the address to another name."""
    prefix, number, address = _parts(identifier)
    if new["dnsPtr"] != old.get("dnsPtr"):
        path = f"/{_KINDS[prefix][0]}/{number}/actions/change_dns_ptr"
        api.act(path, {"ip": address, "dns_ptr": new["dnsPtr"]})
    return {}


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:  # noqa: ARG001
    """Give the address its default name back."""
    prefix, number, address = _parts(identifier)
    try:
        api.act(f"/{_KINDS[prefix][0]}/{number}/actions/change_dns_ptr", {"ip": address, "dns_ptr": None})
    except ApiError as error:
        if error.code != "not_found":
            raise
