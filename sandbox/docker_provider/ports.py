"""Published ports as the real plugin compares them."""

from __future__ import annotations

from typing import Any


def compared_ports(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the old ports are compared with: the new ones, or the old ones if they publish the same."""
    filled = _with_external_ports(old, new)
    return old if same_ports(old, filled) else filled


def _with_external_ports(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fill in the ports that Docker chose, by place in the list as upstream does."""
    return [
        {**each, "external": old[index].get("external") if index < len(old) else None}
        if each.get("external") is None
        else each
        for index, each in enumerate(new)
    ]


def same_ports(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> bool:
    """
    Tell whether two lists of ports publish the same, in whatever order.

    Follows ``suppressIfPortsDidNotChangeForMigrationV0ToV1`` upstream, which looks for each old
    port among the new ones by internal port, and passes over one of another protocol only if the
    old one's protocol is there too.
    """
    if len(old) != len(new):
        return False
    protocols = {(port.get("internal"), port.get("protocol")) for port in new}
    for old_port in old:
        found = False
        for new_port in new:
            if new_port.get("internal") != old_port.get("internal"):
                continue
            if new_port.get("protocol") != old_port.get("protocol"):
                if (old_port.get("internal"), old_port.get("protocol")) in protocols:
                    continue
                return False
            if new_port.get("external") != old_port.get("external") or new_port.get("ip") != old_port.get(
                "ip"
            ):
                return False
            found = True
            break
        if not found:
            return False
    return True
