"""Firewalls: ``/firewalls``."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from flask import Blueprint

from .actions import Step
from .cloud import Cloud
from .errors import ApiError, unprocessable
from .inputs import Body
from .listing import label_test, listed
from .state import Firewall, Server, check_name, found, now

NOUN = "firewall"

MOST_RULES = 50
MOST_NETWORKS = 100
LONGEST_DESCRIPTION = 255
"""All of https://docs.hetzner.cloud/reference/cloud#tag/firewalls/create_firewall."""

LAST_PORT = 65535

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Firewalls:
    """The routes of firewalls."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the firewalls of a project."""
        self._cloud = cloud
        self._project = cloud.project
        self._actions = cloud.actions

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("firewalls", __name__)
        routes.get("/firewalls")(self.list_firewalls)
        routes.post("/firewalls")(self.create)
        routes.get("/firewalls/<identity>")(self.get)
        routes.put("/firewalls/<identity>")(self.update)
        routes.delete("/firewalls/<identity>")(self.delete)
        for action in (self.set_rules, self.apply_to_resources, self.remove_from_resources):
            routes.post(f"/firewalls/<identity>/actions/{action.__name__}")(action)
        return routes

    def list_firewalls(self) -> dict[str, Any]:
        """List the firewalls."""
        return listed("firewalls", [self._shown(firewall) for firewall in self._project.firewalls.values()])

    def create(self) -> tuple[dict[str, Any], int]:
        """Make a firewall, and apply it where that is asked."""
        body = Body()
        name, labels, rules = body.name(), body.labels(), _rules(body)
        server_ids, selectors = _resources(body, "apply_to")
        body.check()
        check_name(self._project.firewalls, name, NOUN)
        if any(count > 1 for count in Counter(server_ids).values()):
            raise unprocessable("server_already_added", "the same server is given more than once")
        for identity in server_ids:
            self._server(identity, HTTPStatus.UNPROCESSABLE_ENTITY)
        firewall = Firewall(self._project.new_id(), name, labels, now(), rules)
        self._project.firewalls[firewall.id] = firewall
        steps = [Step("set_firewall_rules", [("firewall", firewall.id)])]
        if server_ids or selectors:
            steps += self._apply(firewall, server_ids, selectors)
        actions = [action.shown() for action in self._actions.run(*steps)]
        return {"firewall": self._shown(firewall), "actions": actions}, HTTPStatus.CREATED

    def get(self, identity: str) -> dict[str, Any]:
        """Return one firewall."""
        return {"firewall": self._shown(self._found(identity))}

    def update(self, identity: str) -> dict[str, Any]:
        """Change name and labels."""
        firewall = self._found(identity)
        body = Body()
        name = body.name(required=False) or firewall.name
        labels = body.labels() if body.has("labels") else firewall.labels
        body.check()
        check_name(self._project.firewalls, name, NOUN, firewall.id)
        firewall.name, firewall.labels = name, labels
        return {"firewall": self._shown(firewall)}

    def delete(self, identity: str) -> tuple[str, int]:
        """Remove a firewall that is applied to nothing."""
        firewall = self._found(identity)
        if firewall.server_ids or firewall.selectors:
            raise unprocessable("resource_in_use", f"firewall with ID '{firewall.id}' is still in use")
        del self._project.firewalls[firewall.id]
        return "", HTTPStatus.NO_CONTENT

    def set_rules(self, identity: str) -> tuple[dict[str, Any], int]:
        """Put other rules in place of all there are."""
        firewall = self._found(identity)
        body = Body()
        rules = _rules(body, required=True)
        body.check()
        servers = self._applied(firewall)

        def done() -> None:
            firewall.rules = rules

        # the machines are told in the steps that follow, when the rules stand
        steps = [Step("set_firewall_rules", [("firewall", firewall.id)], done=done)]
        steps += [self._tell(firewall, "apply_firewall", server.id) for server in servers]
        return {"actions": [action.shown() for action in self._actions.run(*steps)]}, HTTPStatus.CREATED

    def apply_to_resources(self, identity: str) -> tuple[dict[str, Any], int]:
        """Apply the firewall to servers and label selectors."""
        firewall = self._found(identity)
        body = Body()
        server_ids, selectors = _resources(body, "apply_to", required=True)
        body.check()
        for server_id in server_ids:
            server = self._server(server_id, HTTPStatus.NOT_FOUND)
            if not any(self._project.address_of(server, kind) for kind in ("ipv4", "ipv6")):
                raise unprocessable("private_net_only_server", "server has no public interface")
        if set(server_ids) & set(firewall.server_ids) or set(selectors) & set(firewall.selectors):
            raise unprocessable("firewall_already_applied", "firewall is already applied to the resource")
        steps = self._apply(firewall, server_ids, selectors)
        return {"actions": [action.shown() for action in self._actions.run(*steps)]}, HTTPStatus.CREATED

    def remove_from_resources(self, identity: str) -> tuple[dict[str, Any], int]:
        """Take the firewall from servers and label selectors; nothing happens where it is not applied."""
        firewall = self._found(identity)
        body = Body()
        server_ids, selectors = _resources(body, "remove_from", required=True)
        body.check()
        for server_id in server_ids:
            server = self._server(server_id, HTTPStatus.NOT_FOUND)
            if server_id not in firewall.server_ids and self._project.selects(firewall, server):
                raise unprocessable(
                    "firewall_managed_by_label_selector", "firewall is applied through a label selector"
                )
        before = self._applied(firewall)
        firewall.server_ids = [one for one in firewall.server_ids if one not in server_ids]
        firewall.selectors = [one for one in firewall.selectors if one not in selectors]
        after = {server.id for server in self._applied(firewall)}
        steps = [
            self._tell(firewall, "remove_firewall", server.id) for server in before if server.id not in after
        ] or [Step("remove_firewall", [("firewall", firewall.id)])]
        return {"actions": [action.shown() for action in self._actions.run(*steps)]}, HTTPStatus.CREATED

    def _apply(self, firewall: Firewall, server_ids: Iterable[int], selectors: Iterable[str]) -> list[Step]:
        """Apply a firewall; the steps are what remains to do, each taking it back where it fails."""
        before = {server.id for server in self._applied(firewall)}
        firewall.server_ids += server_ids
        firewall.selectors += selectors

        def undone(server_id: int) -> Callable[[], None]:
            return lambda: firewall.server_ids.remove(server_id) if server_id in firewall.server_ids else None

        return [
            self._tell(firewall, "apply_firewall", server.id, undone(server.id))
            for server in self._applied(firewall)
            if server.id not in before
        ] or [Step("apply_firewall", [("firewall", firewall.id)])]

    def _tell(
        self, firewall: Firewall, command: str, server_id: int, failed: Callable[[], None] | None = None
    ) -> Step:
        return Step(
            command,
            [("firewall", firewall.id), ("server", server_id)],
            work=lambda: self._cloud.enforce_firewalls([server_id]),
            failed=failed,
        )

    def _found(self, identity: str) -> Firewall:
        return found(self._project.firewalls, identity, NOUN)

    def _server(self, identity: int, status: int) -> Server:
        server = self._project.servers.get(identity)
        if server is None:
            raise ApiError(status, "firewall_resource_not_found", f"server with ID '{identity}' not found")
        return server

    def _applied(self, firewall: Firewall) -> list[Server]:
        return [
            server
            for server in self._project.servers.values()
            if firewall in self._project.firewalls_of(server)
        ]

    def _shown(self, firewall: Firewall) -> dict[str, Any]:
        selected = {
            selector: [
                _server_resource(server.id)
                for server in self._project.servers.values()
                if label_test(selector)(server.labels)
            ]
            for selector in firewall.selectors
        }
        return {
            "id": firewall.id,
            "name": firewall.name,
            "labels": firewall.labels,
            "created": firewall.created,
            "rules": firewall.rules,
            "applied_to": [_server_resource(identity) for identity in firewall.server_ids]
            + [
                {
                    "type": "label_selector",
                    "label_selector": {"selector": selector},
                    "applied_to_resources": servers,
                }
                for selector, servers in selected.items()
            ],
        }


def _server_resource(identity: int) -> dict[str, Any]:
    return {"type": "server", "server": {"id": identity}}


def _resources(body: Body, name: str, *, required: bool = False) -> tuple[list[int], list[str]]:
    """Return the servers' IDs and the label selectors of a field."""
    server_ids, selectors = [], []
    for at, entry in enumerate(body.objects(name, required=required)):
        resource = Body(entry)
        match resource.string("type"):
            case "server":
                server_ids.append(resource.fields("server").integer("id") or 0)
            case "label_selector":
                selectors.append(resource.fields("label_selector").string("selector"))
            case _:
                body.reject(f"{name}.{at}.type", "must be one of server, label_selector")
    for selector in selectors:
        label_test(selector)
    return server_ids, selectors


def _rules(body: Body, *, required: bool = False) -> list[dict[str, Any]]:
    entries = body.objects("rules", required=required)
    if len(entries) > MOST_RULES:
        body.reject("rules", f"must not be more than {MOST_RULES}")
    rules = []
    for at, entry in enumerate(entries):
        try:
            rules.append(_rule(Body(entry)))
        except ApiError as error:
            for field in (error.details or {})["fields"]:
                for message in field["messages"]:
                    body.reject(f"rules.{at}.{field['name']}", message)
    return rules


def _rule(body: Body) -> dict[str, Any]:
    direction = body.string("direction", required=True, allowed=("in", "out"))
    protocol = body.string("protocol", required=True, allowed=("tcp", "udp", "icmp", "esp", "gre"))
    port = body.string("port") or None
    if protocol in ("tcp", "udp"):
        if not _is_port(port):
            body.reject("port", "must be a port, a range such as 80-85, or any")
    elif port is not None:
        body.reject("port", "is for protocols tcp and udp only")
    networks = {name: _networks(body, name) for name in ("source_ips", "destination_ips")}
    wanted, other = (
        ("source_ips", "destination_ips") if direction == "in" else ("destination_ips", "source_ips")
    )
    if not networks[wanted]:
        body.reject(wanted, f"must not be empty for direction {direction}")
    if networks[other]:
        body.reject(other, f"must be empty for direction {direction}")
    description = body.string("description", longest=LONGEST_DESCRIPTION) or None
    body.check()
    return {
        "direction": direction,
        "protocol": protocol,
        "port": port,
        **networks,
        "description": description,
    }


def _is_port(text: str | None) -> bool:
    if text == "any":
        return True
    match = _PORTS.fullmatch(text or "")
    if match is None:
        return False
    first = int(match[1])
    return 1 <= first <= int(match[2] or first) <= LAST_PORT


def _networks(body: Body, name: str) -> list[str]:
    """Return networks in their short form; host bits have to be empty."""
    texts = body.value(name, list, "a list") or []
    if len(texts) > MOST_NETWORKS:
        body.reject(name, f"must not be more than {MOST_NETWORKS}")
    networks = []
    for text in texts:
        try:
            networks.append(str(ipaddress.ip_network(text if "/" in text else "")))
        except (ValueError, TypeError):
            body.reject(name, f"'{text}' is not a network in CIDR notation with empty host bits")
    return networks
