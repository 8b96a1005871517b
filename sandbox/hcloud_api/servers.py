"""Servers: ``/servers``."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Blueprint

from . import placement_groups
from .actions import Step
from .catalogue import (
    IMAGES,
    LOCATIONS,
    SERVER_TYPES,
    Image,
    Location,
    ServerType,
    image_of,
    location_of,
    server_type_of,
)
from .cloud import Cloud
from .errors import ApiError, locked, protected, unprocessable
from .inputs import Body
from .listing import listed
from .primary_ips import dns_ptr_of, dns_ptrs, new_primary_ip, set_dns_ptr
from .state import PlacementGroup, PrimaryIp, Server, SshKey, check_name, found, now

NOUN = "server"

LONGEST_USER_DATA = 32 * 1024
"""Bytes, of https://docs.hetzner.cloud/reference/cloud#tag/servers/create_server."""

BACKUP_WINDOW = "22-02"
"""Hours of UTC; the API chooses one."""

MOST_SERVERS_OF_A_SPREAD = 10
"""Of https://docs.hetzner.com/cloud/placement-groups/overview."""

_KINDS = ("ipv4", "ipv6")


@dataclass
class _Order:
    """A new server as it is asked for, with all that is named in it found."""

    name: str
    labels: dict[str, str]
    server_type: ServerType
    image: Image
    location: Location
    user_data: str
    keys: list[SshKey]
    firewall_ids: list[int]
    placement_group: PlacementGroup | None
    addresses: dict[str, PrimaryIp | None]
    """By type; None is for one that is still to be made."""
    start: bool


class Servers:
    """The routes of servers."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the servers of a project."""
        self._cloud = cloud
        self._project = cloud.project
        self._actions = cloud.actions

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("servers", __name__)
        routes.get("/servers")(self.list_servers)
        routes.post("/servers")(self.create)
        routes.get("/servers/<identity>")(self.get)
        routes.put("/servers/<identity>")(self.update)
        routes.delete("/servers/<identity>")(self.delete)
        for action in (
            self.poweron,
            self.poweroff,
            self.shutdown,
            self.reboot,
            self.reset,
            self.rebuild,
            self.change_type,
            self.change_protection,
            self.change_dns_ptr,
            self.enable_backup,
            self.disable_backup,
            self.add_to_placement_group,
            self.remove_from_placement_group,
        ):
            routes.post(f"/servers/<identity>/actions/{action.__name__}")(action)
        return routes

    def list_servers(self) -> dict[str, Any]:
        """List the servers."""
        return listed(
            "servers", [self._shown(server) for server in self._project.servers.values()], ("name", "status")
        )

    def get(self, identity: str) -> dict[str, Any]:
        """Return one server."""
        return {"server": self._shown(self._found(identity))}

    def create(self) -> tuple[dict[str, Any], int]:
        """Order a server. Everything is checked first: a request that is refused leaves nothing behind."""
        order = self._order(Body())
        server = Server(
            id=self._project.new_id(),
            name=order.name,
            server_type=order.server_type.name,
            image_id=order.image.id,
            location=order.location.name,
            status="initializing",
            created=now(),
            labels=order.labels,
            user_data=order.user_data,
            authorized_keys=[key.public_key for key in order.keys],
            primary_disk_size=order.server_type.disk,
            placement_group_id=order.placement_group.id if order.placement_group else None,
        )
        self._give_addresses(server, order.addresses)
        self._project.servers[server.id] = server
        for firewall_id in order.firewall_ids:
            self._project.firewalls[firewall_id].server_ids.append(server.id)
        steps = [
            self._cloud.change(
                server, "create_server", done="starting" if order.start else "off", failed="off"
            )
        ]
        if order.start:
            steps.append(
                self._cloud.change(server, "start_server", self._cloud.boot, done="running", failed="off")
            )
        action, *next_actions = [action.shown() for action in self._actions.run(*steps)]
        answer = {
            "server": self._shown(server),
            "action": action,
            "next_actions": next_actions,
            "root_password": None if order.keys else secrets.token_urlsafe(),
        }
        return answer, HTTPStatus.CREATED

    def update(self, identity: str) -> dict[str, Any]:
        """Change name and labels; firewalls that are applied by label follow."""
        server = self._found(identity)
        body = Body()
        name = body.host_name(required=False) or server.name
        labels = body.labels() if body.has("labels") else server.labels
        body.check()
        check_name(self._project.servers, name, NOUN, server.id)
        before = self._project.firewalls_of(server)
        server.name, server.labels = name, labels
        if self._project.firewalls_of(server) != before:
            self._actions.run(
                Step(
                    "apply_firewall",
                    [(NOUN, server.id)],
                    work=lambda: self._cloud.enforce_firewalls([server.id]),
                )
            )
        return {"server": self._shown(server)}

    def delete(self, identity: str) -> dict[str, Any]:
        """Delete a server; its primary IPs are freed, or go with it."""
        server = self._found(identity)
        if server.delete_protection:
            raise protected(NOUN, "deleted")
        self._check_unlocked(server)
        return {"action": self._actions.run(self._cloud.deletion(server))[0].shown()}

    def poweron(self, identity: str) -> tuple[dict[str, Any], int]:
        """Boot the server, if it is off."""
        server = self._unlocked(identity)
        if server.status == "running":
            return self._run(Step("start_server", [(NOUN, server.id)]))
        if not any(self._project.address_of(server, kind) for kind in _KINDS):
            raise unprocessable("unsupported_error", "server has no network interface to be powered on with")
        return self._run(self._cloud.start(server))

    def poweroff(self, identity: str) -> tuple[dict[str, Any], int]:
        """Cut the server's power, if it is on."""
        return self._power_off(identity, "stop_server")

    def shutdown(self, identity: str) -> tuple[dict[str, Any], int]:
        """Ask the server to end; it always heeds here, and is off when the action ends."""
        return self._power_off(identity, "shutdown_server")

    def reboot(self, identity: str) -> tuple[dict[str, Any], int]:
        """Ask the server to start again."""
        return self._restart(identity, "reboot_server")

    def reset(self, identity: str) -> tuple[dict[str, Any], int]:
        """Cut the server's power, and boot it."""
        return self._restart(identity, "reset_server")

    def rebuild(self, identity: str) -> tuple[dict[str, Any], int]:
        """Put an image in place of the server's disk, and boot it."""
        server = self._found(identity)
        if server.rebuild_protection:
            raise protected(NOUN, "rebuilt")
        self._check_unlocked(server)
        body = Body()
        image = image_of(body.identity("image", required=True), SERVER_TYPES[server.server_type].architecture)
        if image is None:
            body.reject("image", "image not found for the server's architecture")
        user_data = _user_data(body) if body.has("user_data") else server.user_data
        body.check()
        server.status, server.machine_fits, server.user_data = "rebuilding", False, user_data
        server.image_id = image.id if image else server.image_id
        step = self._cloud.change(server, "rebuild_server", self._cloud.boot, done="running", failed="off")
        answer, status = self._run(step)
        return {
            **answer,
            "root_password": None if server.authorized_keys else secrets.token_urlsafe(),
        }, status

    def change_type(self, identity: str) -> tuple[dict[str, Any], int]:
        """Move a server that is off to another type, and boot it; its disk never gets smaller."""
        server = self._unlocked(identity)
        body = Body()
        upgrade_disk = body.boolean("upgrade_disk", required=True)
        server_type = server_type_of(body.identity("server_type", required=True))
        if server_type is None:
            body.reject("server_type", "server type not found")
        body.check()
        if server_type is None or server_type.architecture != SERVER_TYPES[server.server_type].architecture:
            raise unprocessable("invalid_server_type", "server type has another architecture")
        if server_type.name == server.server_type or server_type.disk < server.primary_disk_size:
            raise unprocessable("invalid_server_type", "server type is the same, or its disk is too small")
        if server.location not in server_type.locations:
            raise unprocessable(
                "invalid_server_type", "server type is not to be had in the server's location"
            )
        if server.status != "off":
            raise unprocessable("server_not_stopped", "server must be powered off")
        server.status = "migrating"

        def work() -> None:
            self._cloud.boot(server)

        def done() -> None:
            server.server_type, server.status = server_type.name, "running"
            if upgrade_disk:
                server.primary_disk_size = server_type.disk

        def failed() -> None:
            server.status = "off"

        return self._run(
            Step("change_server_type", [(NOUN, server.id)], work, done=done, failed=failed, locks=server.id)
        )

    def change_protection(self, identity: str) -> tuple[dict[str, Any], int]:
        """Forbid or allow to delete and to rebuild it, which can only be told alike."""
        server = self._unlocked(identity)
        body = Body()
        delete = body.boolean("delete", default=server.delete_protection)
        rebuild = body.boolean("rebuild", default=server.rebuild_protection)
        if delete is not rebuild:
            body.reject("rebuild", "must be the same as delete")
        body.check()

        def done() -> None:
            server.delete_protection, server.rebuild_protection = delete, rebuild

        return self._run(Step("change_protection", [(NOUN, server.id)], done=done))

    def change_dns_ptr(self, identity: str) -> tuple[dict[str, Any], int]:
        """Set or reset the name of one of its primary IPs' addresses."""
        server = self._unlocked(identity)
        owners = [owner for kind in _KINDS if (owner := self._project.address_of(server, kind))]
        ip, name = dns_ptr_of(Body(), *owners)

        def done() -> None:
            for owner in owners:
                if (owner.type == "ipv6") is (":" in ip):
                    set_dns_ptr(owner, ip, name)

        return self._run(Step("change_dns_ptr", [(NOUN, server.id)], done=done))

    def enable_backup(self, identity: str) -> tuple[dict[str, Any], int]:
        """Say that the server is backed up daily."""
        return self._set_backup(identity, "enable_backup", BACKUP_WINDOW)

    def disable_backup(self, identity: str) -> tuple[dict[str, Any], int]:
        """Say that the server is not backed up."""
        return self._set_backup(identity, "disable_backup", None)

    def add_to_placement_group(self, identity: str) -> tuple[dict[str, Any], int]:
        """Put a server that is off into a placement group."""
        server = self._unlocked(identity)
        body = Body()
        group_id = body.integer("placement_group", required=True)
        body.check()
        group = found(self._project.placement_groups, group_id or 0, placement_groups.NOUN)
        if server.placement_group_id is not None:
            raise unprocessable("already_in_placement_group", "server is already part of a placement group")
        if server.status != "off":
            raise unprocessable("server_not_stopped", "server must be powered off")
        self._check_place(group)
        return self._set_group(server, "add_to_placement_group", group.id)

    def remove_from_placement_group(self, identity: str) -> tuple[dict[str, Any], int]:
        """Take a server out of its placement group."""
        return self._set_group(self._unlocked(identity), "remove_from_placement_group", None)

    def _order(self, body: Body) -> _Order:
        name, labels, user_data = body.host_name(), body.labels(), _user_data(body)
        server_type = server_type_of(body.identity("server_type", required=True))
        if server_type is None:
            body.reject("server_type", "server type not found")
        image_name = body.identity("image", required=True)
        image = image_of(image_name, server_type.architecture) if server_type else None
        if image is None:
            body.reject("image", "image not found for the server type's architecture")
        for field in ("volumes", "networks"):
            if body.integers(field):
                body.reject(field, "the sandbox has none")
        addresses = self._wanted_addresses(body.fields("public_net"))
        start = body.boolean("start_after_create", default=True)
        if not addresses and start:
            body.reject("public_net", "without a network the server cannot be started")
        location = self._wanted_location(body, server_type, addresses)
        keys = self._wanted_keys(body)
        firewall_ids = [Body(entry).integer("firewall") or 0 for entry in body.objects("firewalls")]
        group_id = body.integer("placement_group")
        body.check()
        if server_type is None or image is None or location is None:
            raise AssertionError("the checks above let a server without type, image or location through")
        check_name(self._project.servers, name, NOUN)
        for firewall_id in firewall_ids:
            found(self._project.firewalls, firewall_id, "firewall")
        group = found(self._project.placement_groups, group_id, placement_groups.NOUN) if group_id else None
        if group is not None:
            self._check_place(group)
        for kind, address in addresses.items():
            _check_address(kind, address, location)
        return _Order(
            name, labels, server_type, image, location, user_data, keys, firewall_ids, group, addresses, start
        )

    def _wanted_addresses(self, public_net: Body) -> dict[str, PrimaryIp | None]:
        addresses: dict[str, PrimaryIp | None] = {}
        for kind in _KINDS:
            identity = public_net.integer(kind)
            if not public_net.boolean(f"enable_{kind}", default=True):
                if identity:
                    public_net.reject(kind, f"must not be given while enable_{kind} is false")
                continue
            addresses[kind] = found(self._project.primary_ips, identity, "Primary IP") if identity else None
        public_net.check()
        return addresses

    def _give_addresses(self, server: Server, addresses: dict[str, PrimaryIp | None]) -> None:
        """Assign primary IPs, and make those that are wanting. Raises ``unavailable``; then none was made."""
        made: dict[str, PrimaryIp] = {}
        try:
            for kind in (kind for kind, address in addresses.items() if address is None):
                made[kind] = new_primary_ip(self._project, "", kind, server.location)
                made[kind].auto_delete = True
        except ApiError:
            for address in made.values():
                del self._project.primary_ips[address.id]
            raise
        for kind, given in addresses.items():
            (given or made[kind]).assignee_id = server.id

    @staticmethod
    def _wanted_location(
        body: Body, server_type: ServerType | None, addresses: dict[str, PrimaryIp | None]
    ) -> Location | None:
        """Return the location that is asked for, else that of the addresses, else one that has the type."""
        identity = body.identity("location")
        if not identity and server_type is not None:
            given = (address.location for address in addresses.values() if address)
            identity = next(given, server_type.locations[0])
        location = location_of(identity)
        if location is None:
            body.reject("location", "location not found")
        elif server_type is not None and location.name not in server_type.locations:
            body.reject("server_type", "unsupported location for server type")
        return location

    def _wanted_keys(self, body: Body) -> list[SshKey]:
        keys = []
        for identity in body.value("ssh_keys", list, "a list of IDs or names") or []:
            fitting = [
                key for key in self._project.ssh_keys.values() if str(identity) in (str(key.id), key.name)
            ]
            if not fitting:
                body.reject("ssh_keys", f"SSH key '{identity}' not found")
            keys += fitting[:1]
        return keys

    def _check_place(self, group: PlacementGroup) -> None:
        if len(placement_groups.shown(self._project, group)["servers"]) >= MOST_SERVERS_OF_A_SPREAD:
            raise unprocessable("placement_error", "no place is left in the placement group")

    def _power_off(self, identity: str, command: str) -> tuple[dict[str, Any], int]:
        server = self._unlocked(identity)
        if server.status == "off":
            return self._run(Step(command, [(NOUN, server.id)]))
        before, server.status = server.status, "stopping"
        return self._run(
            self._cloud.change(
                server, command, lambda one: self._cloud.machines.power_off(one.id), done="off", failed=before
            )
        )

    def _restart(self, identity: str, command: str) -> tuple[dict[str, Any], int]:
        server = self._unlocked(identity)
        server.status = "starting"
        return self._run(
            self._cloud.change(server, command, self._cloud.reboot, done="running", failed="off")
        )

    def _set_backup(self, identity: str, command: str, window: str | None) -> tuple[dict[str, Any], int]:
        server = self._unlocked(identity)

        def done() -> None:
            server.backup_window = window

        return self._run(Step(command, [(NOUN, server.id)], done=done))

    def _set_group(self, server: Server, command: str, group_id: int | None) -> tuple[dict[str, Any], int]:
        def done() -> None:
            server.placement_group_id = group_id

        return self._run(Step(command, [(NOUN, server.id)], done=done))

    def _run(self, step: Step) -> tuple[dict[str, Any], int]:
        return {"action": self._actions.run(step)[0].shown()}, HTTPStatus.CREATED

    def _found(self, identity: str) -> Server:
        return found(self._project.servers, identity, NOUN)

    def _unlocked(self, identity: str) -> Server:
        server = self._found(identity)
        self._check_unlocked(server)
        return server

    def _check_unlocked(self, server: Server) -> None:
        if self._project.is_locked(server):
            raise locked(NOUN)

    def _shown(self, server: Server) -> dict[str, Any]:
        location = LOCATIONS[server.location]
        group = self._project.placement_groups.get(server.placement_group_id or 0)
        return {
            "id": server.id,
            "name": server.name,
            "status": server.status,
            "created": server.created,
            "public_net": self._public_net(server),
            "private_net": [],
            "server_type": SERVER_TYPES[server.server_type].shown(),
            "included_traffic": location.included_traffic,
            "outgoing_traffic": 0,
            "ingoing_traffic": 0,
            "backup_window": server.backup_window,
            "rescue_enabled": False,
            "iso": None,
            "locked": self._project.is_locked(server),
            "location": location.shown(),
            "image": IMAGES[server.image_id].shown(),
            "protection": {"delete": server.delete_protection, "rebuild": server.rebuild_protection},
            "labels": server.labels,
            "volumes": [],
            "load_balancers": [],
            "primary_disk_size": server.primary_disk_size,
            "placement_group": placement_groups.shown(self._project, group) if group else None,
        }

    def _public_net(self, server: Server) -> dict[str, Any]:
        ipv4, ipv6 = (self._project.address_of(server, kind) for kind in _KINDS)
        return {
            "ipv4": ipv4
            and {"id": ipv4.id, "ip": ipv4.ip, "blocked": False, "dns_ptr": dns_ptrs(ipv4)[ipv4.ip]},
            "ipv6": ipv6
            and {
                "id": ipv6.id,
                "ip": ipv6.ip,
                "blocked": False,
                "dns_ptr": [{"ip": ip, "dns_ptr": name} for ip, name in ipv6.dns_ptr.items()],
            },
            "floating_ips": [],
            "firewalls": [
                {"id": firewall.id, "status": self._firewall_status(firewall.id, server)}
                for firewall in self._project.firewalls_of(server)
            ],
        }

    def _firewall_status(self, firewall_id: int, server: Server) -> str:
        involved = [{"id": firewall_id, "type": "firewall"}, {"id": server.id, "type": NOUN}]
        waiting = any(
            action.status == "running" and action.resources == involved
            for action in self._project.actions.values()
        )
        return "pending" if waiting or server.status == "initializing" else "applied"


def _user_data(body: Body) -> str:
    user_data = body.string("user_data")
    if len(user_data.encode()) > LONGEST_USER_DATA:
        body.reject("user_data", "must not be longer than 32 KiB")
    return user_data


def _check_address(kind: str, address: PrimaryIp | None, location: Location) -> None:
    if address is None:
        return
    if address.type != kind:
        raise ApiError(
            HTTPStatus.PRECONDITION_FAILED,
            "primary_ip_version_mismatch",
            "Primary IP has the wrong IP version",
        )
    if address.assignee_id is not None:
        raise unprocessable("primary_ip_assigned", "Primary IP is already assigned to a server")
    if address.location != location.name:
        raise unprocessable("primary_ip_datacenter_mismatch", "Primary IP is in another location")
