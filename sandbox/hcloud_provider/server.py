"""Servers (``internal/server/resource.go`` upstream)."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sandbox.provider.errors import OperationError, PartlyCreatedError
from sandbox.provider.package import Creation

from .api import RETRIES, Api

_RANDOM_NAME = (1_000_000, 9_999_999)
"""Range of numbers in names of primary IPs made on the way (``CreateRandomPrimaryIP`` upstream)."""


def user_data_sum(text: str) -> str:
    """Return what the state keeps of ``userData``: its SHA-1 in base64 (``userDataHashSum`` upstream)."""
    return base64.b64encode(hashlib.sha1(text.encode(), usedforsecurity=False).digest()).decode()


def observed(server: Mapping[str, Any], prior: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the API's server to properties; ``publicNets`` are not read back, as upstream."""
    ipv4, ipv6 = server["public_net"]["ipv4"], server["public_net"]["ipv6"]
    network = ipv6["ip"] if ipv6 else None
    found = {
        "id": str(server["id"]),
        "name": server["name"],
        "location": server["location"]["name"],
        "datacenter": (server.get("datacenter") or {}).get("name"),
        "status": server["status"],
        "serverType": server["server_type"]["name"],
        "ipv4Address": ipv4["ip"] if ipv4 else None,
        "ipv6Address": network.split("/")[0] + "1" if network else None,
        "ipv6Network": network or "",
        "backupWindow": server["backup_window"] or "",
        "backups": bool(server["backup_window"]),
        "labels": server["labels"],
        "deleteProtection": server["protection"]["delete"],
        "rebuildProtection": server["protection"]["rebuild"],
        "firewallIds": [each["id"] for each in server["public_net"]["firewalls"]],
        "primaryDiskSize": server["primary_disk_size"],
        "placementGroupId": (server.get("placement_group") or {}).get("id") or 0,
    }
    image = server.get("image")
    if image is not None:
        by_name = image["name"] and str(image["id"]) != prior.get("image")
        found["image"] = image["name"] if by_name else str(image["id"])
    return found


def public_net(block: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an element of ``publicNets`` to the API's."""
    body: dict[str, Any] = {
        "enable_ipv4": bool(block.get("ipv4Enabled", True)),
        "enable_ipv6": bool(block.get("ipv6Enabled", True)),
    }
    for version in ("ipv4", "ipv6"):
        if block.get(version):
            body |= {f"enable_{version}": True, version: int(block[version])}
    return body


def create(api: Api, inputs: Mapping[str, Any]) -> Creation:
    """
    Order a server and wait until it runs, then switch on backups and protection.

    Raises `OperationError` if nothing was made, `PartlyCreatedError` if the server is there but a
    later step failed: like upstream this leaves it, and the next update does not mend it.
    """
    server_type = _server_type(api, inputs["serverType"], inputs.get("location"))
    body: dict[str, Any] = {
        "name": inputs["name"],
        "server_type": server_type["name"],
        "image": _image(api, inputs.get("image") or "", server_type["architecture"])["id"],
        "ssh_keys": [_ssh_key(api, each) for each in inputs.get("sshKeys") or []],
    }
    given = {
        "user_data": inputs.get("userData"),
        "location": inputs.get("location"),
        "labels": inputs.get("labels"),
        "firewalls": [{"firewall": each} for each in inputs.get("firewallIds") or []],
        "placement_group": _placement_group(api, inputs.get("placementGroupId")),
        "public_net": next((public_net(each) for each in inputs.get("publicNets") or []), None),
    }
    answer = api.request("POST", "/servers", body | {name: each for name, each in given.items() if each})
    identifier = str(answer["server"]["id"])
    path = f"/servers/{identifier}/actions"
    try:
        for action in (answer["action"], *answer["next_actions"]):
            api.settle(action)
        if inputs.get("backups"):
            api.act(f"{path}/enable_backup")
        if inputs.get("deleteProtection") or inputs.get("rebuildProtection"):
            api.act(f"{path}/change_protection", _protection(inputs))
    except OperationError as error:
        raise PartlyCreatedError(identifier, str(error)) from error
    return Creation(identifier)


def _protection(values: Mapping[str, Any]) -> dict[str, bool]:
    return {
        "delete": bool(values.get("deleteProtection")),
        "rebuild": bool(values.get("rebuildProtection")),
    }


def _found(api: Api, kind: str, single: str, name_or_id: str) -> dict[str, Any] | None:
    """Return what has the id, else what has the name (``Get`` of hcloud-go's clients)."""
    if name_or_id.isdigit():
        found = api.get(f"/{kind}/{name_or_id}")
        if found is not None:
            by_id: dict[str, Any] = found[single]
            return by_id
    return api.by_name(kind, name_or_id)


def _server_type(api: Api, name: str, location: str | None) -> dict[str, Any]:
    found = _found(api, "server_types", "server_type", name)
    if found is None:
        raise OperationError(f"server type {name} not found")
    for each in found.get("locations") or []:
        deprecation = each.get("deprecation")
        if each["name"] == location and deprecation is not None:
            unavailable = datetime.fromisoformat(deprecation["unavailable_after"])
            if unavailable <= datetime.now(UTC):
                raise OperationError(
                    f"Server Type {name!r} is unavailable in {location!r} and can no longer be ordered"
                )
    return found


def _image(api: Api, name: str, architecture: str) -> dict[str, Any]:
    found = None
    if name.isdigit():
        by_id = api.get(f"/images/{name}")
        found = by_id["image"] if by_id else None
    if found is None and name:
        found = api.by_name("images", name, architecture=architecture, include_deprecated="true")
    if found is None:
        raise OperationError(f"image {name} for architecture {architecture} not found")
    image: dict[str, Any] = found
    return image


def _ssh_key(api: Api, name_or_id: str) -> int:
    found = _found(api, "ssh_keys", "ssh_key", name_or_id)
    if found is None:
        raise OperationError(f"SSH key not found: {name_or_id}")
    return int(found["id"])


def _placement_group(api: Api, identifier: int | None) -> int | None:
    if not identifier:
        return None
    if api.get(f"/placement_groups/{identifier}") is None:
        raise OperationError(f"placement group not found: {identifier}")
    return int(identifier)


def read(api: Api, identifier: str, prior: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the properties of a server, None if there is none."""
    found = api.get(f"/servers/{identifier}")
    return observed(found["server"], prior) if found else None


def update(api: Api, identifier: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """
    Change what can be changed in place; a new type and other addresses switch the server off meanwhile.

    Raises `OperationError` where a step fails; what went before it stays.
    """
    path = f"/servers/{identifier}"
    server: dict[str, Any] = api.request("GET", path)["server"]
    for name, absent in (("name", ""), ("labels", {})):
        if (new.get(name) or absent) != (old.get(name) or absent):
            api.request("PUT", path, {name: new.get(name) or absent})
    if new["serverType"] != old.get("serverType"):
        if server["status"] == "running":
            api.act(f"{path}/actions/poweroff")
        body = {"server_type": new["serverType"], "upgrade_disk": not new.get("keepDisk")}
        # the API starts it again afterwards
        api.act(f"{path}/actions/change_type", body)
    if bool(new.get("backups")) != bool(server["backup_window"]):
        api.act(f"{path}/actions/{'enable' if new.get('backups') else 'disable'}_backup")
    _apply_firewalls(api, server, new.get("firewallIds"))
    if (new.get("publicNets") or []) != (old.get("publicNets") or []):
        _change_addresses(api, server, old.get("publicNets"), new.get("publicNets"))
    if (new.get("placementGroupId") or 0) != (old.get("placementGroupId") or 0):
        _change_placement_group(api, server, new.get("placementGroupId"))
    if _protection(new) != _protection(old):
        api.act(f"{path}/actions/change_protection", _protection(new))
    return observed(api.request("GET", path)["server"], new)


def _apply_firewalls(api: Api, server: Mapping[str, Any], wanted: list[int] | None) -> None:
    if wanted is None:
        return
    applied = [each["id"] for each in server["public_net"]["firewalls"]]
    this = [{"type": "server", "server": {"id": server["id"]}}]
    for each in applied:
        if each not in wanted:
            api.act(f"/firewalls/{each}/actions/remove_from_resources", {"remove_from": this})
    for each in wanted:
        if each not in applied:
            api.act(f"/firewalls/{each}/actions/apply_to_resources", {"apply_to": this})


def _change_placement_group(api: Api, server: Mapping[str, Any], wanted: int | None) -> None:
    path = f"/servers/{server['id']}/actions"
    if server.get("placement_group") is not None:
        if server["status"] != "off":
            raise OperationError(
                "removing a running server from a placement group is currently not supported in the "
                "provider. You can shutdown the server yourself, apply the changes again and then start the "
                "server manually as a workaround"
            )
        api.act(f"{path}/remove_from_placement_group")
    group = _placement_group(api, wanted)
    if group is not None:
        api.act(f"{path}/add_to_placement_group", {"placement_group": group})


def _change_addresses(
    api: Api,
    server: Mapping[str, Any],
    old: list[dict[str, Any]] | None,
    new: list[dict[str, Any]] | None,
) -> None:
    """Switch the server off, give it other addresses and switch it on (``updatePublicNet`` upstream)."""
    path = f"/servers/{server['id']}/actions"
    api.act(f"{path}/poweroff")
    before, after = (old or [{}])[0], new[0] if new else None
    try:
        for version in ("ipv4", "ipv6"):
            _change_address(api, server, version, before, after)
    finally:
        # whatever went wrong: upstream starts it again too
        api.persist(lambda: api.act(f"{path}/poweron"), RETRIES, lambda _: True)


def _change_address(
    api: Api,
    server: Mapping[str, Any],
    version: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any] | None,
) -> None:
    """Go from one element of ``publicNets`` to another, or none (``publicNetUpdateDecision`` upstream)."""
    has = (server["public_net"][version] or {}).get("id") or 0
    was_given = int(before.get(version) or 0)
    if after is None and not was_given:
        return
    wanted = int((after or {}).get(version) or 0)
    enabled, was_enabled = (bool((each or {}).get(f"{version}Enabled", True)) for each in (after, before))
    if not enabled and wanted:
        raise OperationError(
            f"this operation is not allowed: {version}_enabled = false | {version} = {wanted}"
        )
    if enabled and not wanted:
        if was_enabled and was_given:
            api.act(f"/primary_ips/{was_given}/actions/unassign")
        if was_enabled == bool(was_given):
            _new_address(api, server["id"], version)
        return
    if has and has != wanted:
        api.act(f"/primary_ips/{has}/actions/unassign")
        if not was_given:
            api.request("DELETE", f"/primary_ips/{has}")
    if wanted and has != wanted:
        body = {"assignee_id": server["id"], "assignee_type": "server"}
        api.act(f"/primary_ips/{wanted}/actions/assign", body)


def _new_address(api: Api, server: int, version: str) -> None:
    """Make an address that goes with the server."""
    answer = api.request(
        "POST",
        "/primary_ips",
        {
            "name": f"primary_ip-{random.randint(*_RANDOM_NAME)}",  # noqa: S311 - a name is no secret
            "type": version,
            "assignee_id": server,
            "assignee_type": "server",
            "auto_delete": True,
        },
    )
    api.settle(answer.get("action"))


def delete(api: Api, identifier: str, state: Mapping[str, Any]) -> None:
    """
    Shut the server down, if asked, and delete it.

    Like upstream this raises `OperationError` for a server that is protected (after the shutdown)
    and for one that is gone already.
    """
    path = f"/servers/{identifier}"
    if state.get("shutdownBeforeDeletion"):
        api.act(f"{path}/actions/shutdown")
        _wait_off(api, path)
    api.settle(api.request("DELETE", path)["action"])


class _StillOnError(OperationError):
    """The server has not shut down yet."""


def _wait_off(api: Api, path: str) -> None:
    """Give the server half a minute; one that does not heed is deleted all the same."""

    def attempt() -> None:
        if api.request("GET", path)["server"]["status"] != "off":
            raise _StillOnError("server has not shut down yet")

    try:
        api.persist(attempt, RETRIES, lambda error: isinstance(error, _StillOnError))
    except _StillOnError:
        if api.cancelled.is_set():
            raise
