"""Primary IPs: ``/primary_ips``, and the names that addresses have in reverse DNS."""

from __future__ import annotations

import ipaddress
from http import HTTPStatus
from typing import Any

from flask import Blueprint

from .actions import Step
from .catalogue import LOCATIONS, location_of
from .cloud import Cloud
from .errors import ApiError, invalid_input, locked, protected, unprocessable
from .inputs import HOST_NAME, Body
from .listing import listed
from .state import PrimaryIp, Project, Server, check_name, found, now

NOUN = "Primary IP"


class PrimaryIps:
    """The routes of primary IPs."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the primary IPs of a project."""
        self._project = cloud.project
        self._actions = cloud.actions

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("primary_ips", __name__)
        routes.get("/primary_ips")(self.list_ips)
        routes.post("/primary_ips")(self.create)
        routes.get("/primary_ips/<identity>")(self.get)
        routes.put("/primary_ips/<identity>")(self.update)
        routes.delete("/primary_ips/<identity>")(self.delete)
        for action in (self.assign, self.unassign, self.change_dns_ptr, self.change_protection):
            routes.post(f"/primary_ips/<identity>/actions/{action.__name__}")(action)
        return routes

    def list_ips(self) -> dict[str, Any]:
        """List the primary IPs."""
        return listed("primary_ips", [shown(ip) for ip in self._project.primary_ips.values()], ("name", "ip"))

    def create(self) -> tuple[dict[str, Any], int]:
        """Reserve an address, in a location or for a server that is off."""
        body = Body()
        name, labels = body.name(), body.labels()
        kind = body.string("type", required=True, allowed=("ipv4", "ipv6"))
        body.string("assignee_type", allowed=("server",))
        auto_delete = body.boolean("auto_delete")
        location, assignee_id = location_of(body.identity("location")), body.integer("assignee_id")
        if body.has("location") and assignee_id is not None:
            body.reject("location", "must not be used together with assignee_id")
        if location is None and assignee_id is None:
            body.reject("location", "must be a location, or assignee_id a server")
        body.check()
        check_name(self._project.primary_ips, name, NOUN)
        server = None if assignee_id is None else self._free_server(assignee_id, kind)
        primary_ip = new_primary_ip(
            self._project, name, kind, location.name if location else server.location if server else ""
        )
        primary_ip.labels, primary_ip.auto_delete = labels, auto_delete
        action = None if server is None else self._assign(primary_ip, server)
        return {"primary_ip": shown(primary_ip), "action": action}, HTTPStatus.CREATED

    def get(self, identity: str) -> dict[str, Any]:
        """Return one primary IP."""
        return {"primary_ip": shown(self._found(identity))}

    def update(self, identity: str) -> dict[str, Any]:
        """Change name, labels and whether it goes with its server."""
        primary_ip = self._found(identity)
        body = Body()
        name = body.name(required=False) or primary_ip.name
        labels = body.labels() if body.has("labels") else primary_ip.labels
        auto_delete = body.boolean("auto_delete", default=primary_ip.auto_delete)
        body.check()
        check_name(self._project.primary_ips, name, NOUN, primary_ip.id)
        primary_ip.name, primary_ip.labels, primary_ip.auto_delete = name, labels, auto_delete
        return {"primary_ip": shown(primary_ip)}

    def delete(self, identity: str) -> tuple[str, int]:
        """Give the address back; it has to be unassigned (so since 1 May 2026)."""
        primary_ip = self._found(identity)
        if primary_ip.delete_protection:
            raise protected(NOUN, "deleted")
        if primary_ip.assignee_id is not None:
            raise unprocessable("must_be_unassigned", "Primary IP must be unassigned before it is deleted")
        del self._project.primary_ips[primary_ip.id]
        return "", HTTPStatus.NO_CONTENT

    def assign(self, identity: str) -> tuple[dict[str, Any], int]:
        """Give the address to a server that is off."""
        primary_ip = self._found(identity)
        body = Body()
        assignee_id = body.integer("assignee_id", required=True)
        body.string("assignee_type", required=True, allowed=("server",))
        body.check()
        if primary_ip.assignee_id is not None:
            raise unprocessable("primary_ip_already_assigned", "Primary IP is already assigned")
        server = self._free_server(assignee_id or 0, primary_ip.type)
        if server.location != primary_ip.location:
            raise unprocessable("primary_ip_datacenter_mismatch", "Primary IP is in another location")
        return {"action": self._assign(primary_ip, server)}, HTTPStatus.CREATED

    def unassign(self, identity: str) -> tuple[dict[str, Any], int]:
        """Take the address from its server, which has to be off."""
        primary_ip = self._found(identity)
        if primary_ip.assignee_id is None:
            raise invalid_input({"id": ["Primary IP is not assigned"]})
        server = self._stopped(primary_ip.assignee_id)

        def done() -> None:
            primary_ip.assignee_id, server.machine_fits = None, False

        step = Step("unassign_primary_ip", _resources(primary_ip, server), done=done, locks=server.id)
        return {"action": self._actions.run(step)[0].shown()}, HTTPStatus.CREATED

    def change_dns_ptr(self, identity: str) -> tuple[dict[str, Any], int]:
        """Set or reset the name of an address."""
        primary_ip = self._found(identity)
        body = Body()
        ip, name = dns_ptr_of(body, primary_ip)

        def done() -> None:
            set_dns_ptr(primary_ip, ip, name)

        step = Step("change_dns_ptr", [("primary_ip", primary_ip.id)], done=done)
        return {"action": self._actions.run(step)[0].shown()}, HTTPStatus.CREATED

    def change_protection(self, identity: str) -> tuple[dict[str, Any], int]:
        """Forbid or allow to delete it."""
        primary_ip = self._found(identity)
        body = Body()
        delete = body.boolean("delete", default=primary_ip.delete_protection)
        body.check()

        def done() -> None:
            primary_ip.delete_protection = delete

        step = Step("change_protection", [("primary_ip", primary_ip.id)], done=done)
        return {"action": self._actions.run(step)[0].shown()}, HTTPStatus.CREATED

    def _found(self, identity: str) -> PrimaryIp:
        return found(self._project.primary_ips, identity, NOUN)

    def _stopped(self, server_id: int) -> Server:
        server = found(self._project.servers, server_id, "server")
        if self._project.is_locked(server):
            raise locked("server")
        if server.status != "off":
            raise unprocessable("server_not_stopped", "server must be powered off")
        return server

    def _free_server(self, server_id: int, kind: str) -> Server:
        server = self._stopped(server_id)
        if self._project.address_of(server, kind) is not None:
            raise unprocessable(f"server_has_{kind}", f"server already has an {kind} address")
        return server

    def _assign(self, primary_ip: PrimaryIp, server: Server) -> dict[str, Any]:
        def done() -> None:
            primary_ip.assignee_id, server.machine_fits = server.id, False

        step = Step("assign_primary_ip", _resources(primary_ip, server), done=done, locks=server.id)
        return self._actions.run(step)[0].shown()


def _resources(primary_ip: PrimaryIp, server: Server) -> list[tuple[str, int]]:
    return [("primary_ip", primary_ip.id), ("server", server.id)]


def new_primary_ip(project: Project, name: str, kind: str, location: str) -> PrimaryIp:
    """
    Reserve an address of type ``ipv4`` or ``ipv6`` in a location.

    Without a name it is called as the API calls those that it makes for a server. Raises ``unavailable``.
    """
    ip = project.new_ipv4() if kind == "ipv4" else project.new_ipv6_network()
    identity = project.new_id()
    primary_ip = PrimaryIp(
        identity,
        name or f"primary_ip-{identity}",
        kind,
        ip,
        location,
        labels={},
        created=now(),
        auto_delete=False,
    )
    project.primary_ips[identity] = primary_ip
    return primary_ip


def shown(primary_ip: PrimaryIp) -> dict[str, Any]:
    """Return a primary IP as the API has it."""
    assigned = primary_ip.assignee_id is not None
    return {
        "id": primary_ip.id,
        "name": primary_ip.name,
        "type": primary_ip.type,
        "ip": primary_ip.ip,
        "assignee_id": primary_ip.assignee_id,
        # https://docs.hetzner.cloud/changelog#2026-04-27-primary-ips-will-return-unassigned
        "assignee_type": "server" if assigned else "unassigned",
        "auto_delete": primary_ip.auto_delete,
        "blocked": False,
        "created": primary_ip.created,
        "dns_ptr": [{"ip": ip, "dns_ptr": name} for ip, name in dns_ptrs(primary_ip).items()],
        "labels": primary_ip.labels,
        "location": LOCATIONS[primary_ip.location].shown(),
        "protection": {"delete": primary_ip.delete_protection},
    }


def dns_ptrs(primary_ip: PrimaryIp) -> dict[str, str]:
    """Return the names by address; an IPv4 address always has one."""
    if primary_ip.type == "ipv6":
        return primary_ip.dns_ptr
    backwards = ".".join(reversed(primary_ip.ip.split(".")))
    return {
        primary_ip.ip: primary_ip.dns_ptr.get(primary_ip.ip, f"static.{backwards}.clients.your-server.de")
    }


def dns_ptr_of(body: Body, *owners: PrimaryIp) -> tuple[str, str | None]:
    """
    Return the address, in its short form, and the name that a request wants it to have, None to reset it.

    Raises ``invalid_input``, and ``not_found`` for an address that is none of the owners'.
    """
    ip, name = body.string("ip", required=True), body.string("dns_ptr")
    if name and not HOST_NAME.fullmatch(name.rstrip(".")):
        body.reject("dns_ptr", "must be a valid host name")
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        body.reject("ip", "must be an IP address")
        body.check()
        raise
    body.check()
    if not any(address in ipaddress.ip_network(owner.ip) for owner in owners):
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"IP {address} not found")
    return str(address), name or None


def set_dns_ptr(primary_ip: PrimaryIp, ip: str, name: str | None) -> None:
    """Set the name of one of its addresses, or reset it."""
    if name is None:
        primary_ip.dns_ptr.pop(ip, None)
    else:
        primary_ip.dns_ptr[ip] = name
