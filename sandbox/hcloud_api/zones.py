"""DNS zones and their record sets: ``/zones``."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from flask import Blueprint, request

from .actions import Step
from .cloud import Cloud
from .errors import ApiError, invalid_input, not_found, not_unique, protected, unprocessable
from .inputs import HOST_NAME, Body
from .listing import listed
from .state import Project, RecordSet, Zone, check_name, now

DEFAULT_TTL = 3600
SHORTEST_TTL = 60
LONGEST_TTL = 2**31 - 1
"""Seconds, of https://docs.hetzner.cloud/reference/cloud#tag/zones/create_zone."""

TYPES = (
    *("A", "AAAA", "CAA", "CNAME", "DS", "HINFO", "HTTPS", "MX"),
    *("NS", "PTR", "RP", "SOA", "SRV", "SVCB", "TLSA", "TXT"),
)

NAMESERVERS = ("hydrogen.ns.hetzner.com.", "oxygen.ns.hetzner.com.", "helium.ns.hetzner.de.")

APEX = "@"

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(\*|{_LABEL})(\.{_LABEL})*")


class Zones:
    """The routes of zones and record sets."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the zones of a project."""
        self._project = cloud.project
        self._actions = cloud.actions

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("zones", __name__)
        routes.get("/zones")(self.list_zones)
        routes.post("/zones")(self.create)
        zone = "/zones/<identity>"
        routes.get(zone)(self.get)
        routes.put(zone)(self.update)
        routes.delete(zone)(self.delete)
        routes.get(f"{zone}/zonefile")(self.export_zonefile)
        routes.post(f"{zone}/actions/change_ttl")(self.change_ttl)
        routes.post(f"{zone}/actions/change_protection")(self.change_protection)
        routes.get(f"{zone}/rrsets")(self.list_rrsets)
        routes.post(f"{zone}/rrsets")(self.create_rrset)
        rrset = f"{zone}/rrsets/<name>/<kind>"
        routes.get(rrset)(self.get_rrset)
        routes.put(rrset)(self.update_rrset)
        routes.delete(rrset)(self.delete_rrset)
        routes.post(f"{rrset}/actions/change_protection")(self.change_rrset_protection)
        routes.post(f"{rrset}/actions/change_ttl")(self.change_rrset_ttl)
        for action in (self.set_records, self.add_records, self.remove_records, self.update_records):
            routes.post(f"{rrset}/actions/{action.__name__}")(action)
        return routes

    def list_zones(self) -> dict[str, Any]:
        """List the zones."""
        return listed("zones", [_shown(zone) for zone in self._project.zones.values()], ("name", "mode"))

    def create(self) -> tuple[dict[str, Any], int]:
        """Make a zone, with the records that every zone has."""
        body = Body()
        name, labels, ttl = body.name(), body.labels(), _ttl(body)
        if name and (name != name.lower() or name.endswith(".") or not HOST_NAME.fullmatch(name)):
            body.reject("name", "must be a domain in lower case without a dot at its end")
        mode = body.string("mode", required=True, allowed=("primary", "secondary"))
        if mode == "secondary" or body.has("zonefile"):
            body.reject("mode", "the sandbox has primary zones without zone files only")
        wanted = [Body(entry) for entry in body.objects("rrsets")]
        body.check()
        check_name(self._project.zones, name, "zone")
        zone = Zone(self._project.new_id(), name, ttl or DEFAULT_TTL, labels, now())
        _add(
            zone,
            RecordSet(
                APEX,
                "SOA",
                None,
                {},
                [_record(f"{NAMESERVERS[0]} dns.hetzner.com. 1 86400 10800 3600000 3600")],
            ),
        )
        _add(zone, RecordSet(APEX, "NS", None, {}, [_record(nameserver) for nameserver in NAMESERVERS]))
        for each in wanted:
            _add(zone, _new_rrset(zone, each))
        self._project.zones[zone.id] = zone
        action = self._actions.run(Step("create_zone", [("zone", zone.id)]))[0]
        return {"zone": _shown(zone), "action": action.shown()}, HTTPStatus.CREATED

    def get(self, identity: str) -> dict[str, Any]:
        """Return one zone, by ID or name."""
        return {"zone": _shown(found_zone(self._project, identity))}

    def update(self, identity: str) -> dict[str, Any]:
        """Change the labels."""
        zone = found_zone(self._project, identity)
        body = Body()
        labels = body.labels() if body.has("labels") else zone.labels
        body.check()
        zone.labels = labels
        return {"zone": _shown(zone)}

    def delete(self, identity: str) -> tuple[dict[str, Any], int]:
        """Remove a zone and all its records."""
        zone = found_zone(self._project, identity)
        if zone.delete_protection:
            raise protected("zone", "deleted")
        return self._run(zone, "delete_zone", lambda: self._project.zones.pop(zone.id, None))

    def export_zonefile(self, identity: str) -> dict[str, Any]:
        """Return the zone in the format of RFC 1035."""
        zone = found_zone(self._project, identity)
        lines = [f"$ORIGIN {zone.name}.", f"$TTL {zone.ttl}"]
        for rrset in zone.rrsets.values():
            ttl = "" if rrset.ttl is None else f"{rrset.ttl} "
            lines += [f"{rrset.name} {ttl}IN {rrset.type} {record['value']}" for record in rrset.records]
        return {"zonefile": "\n".join([*lines, ""])}

    def change_ttl(self, identity: str) -> tuple[dict[str, Any], int]:
        """Change the TTL of record sets that have none of their own."""
        zone = found_zone(self._project, identity)
        body = Body()
        ttl = _ttl(body, required=True)
        body.check()
        return self._run(zone, "change_ttl", lambda: setattr(zone, "ttl", ttl))

    def change_protection(self, identity: str) -> tuple[dict[str, Any], int]:
        """Forbid or allow to delete the zone."""
        zone = found_zone(self._project, identity)
        body = Body()
        delete = body.boolean("delete", default=zone.delete_protection)
        body.check()
        return self._run(zone, "change_protection", lambda: setattr(zone, "delete_protection", delete))

    def list_rrsets(self, identity: str) -> dict[str, Any]:
        """List the record sets of a zone."""
        zone = found_zone(self._project, identity)
        return listed(
            "rrsets", [_shown_rrset(zone, rrset) for rrset in zone.rrsets.values()], ("name", "type")
        )

    def create_rrset(self, identity: str) -> tuple[dict[str, Any], int]:
        """Add a record set; there is one of each name and type."""
        zone = found_zone(self._project, identity)
        rrset = _new_rrset(zone, Body())
        # it is there at once, and its action says when the name servers have it
        _add(zone, rrset)
        answer, status = self._run(zone, "create_rrset", failed=lambda: zone.rrsets.pop(rrset.id, None))
        return {"rrset": _shown_rrset(zone, rrset), **answer}, status

    def get_rrset(self, identity: str, name: str, kind: str) -> dict[str, Any]:
        """Return one record set."""
        zone, rrset = self._found(identity, name, kind)
        return {"rrset": _shown_rrset(zone, rrset)}

    def update_rrset(self, identity: str, name: str, kind: str) -> dict[str, Any]:
        """Change the labels."""
        zone, rrset = self._found(identity, name, kind)
        body = Body()
        labels = body.labels() if body.has("labels") else rrset.labels
        body.check()
        rrset.labels = labels
        return {"rrset": _shown_rrset(zone, rrset)}

    def delete_rrset(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Remove a record set."""
        zone, rrset = self._changeable(identity, name, kind)
        return self._run(zone, "delete_rrset", lambda: zone.rrsets.pop(rrset.id, None))

    def change_rrset_protection(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Forbid or allow to change and delete the record set."""
        zone, rrset = self._found(identity, name, kind)
        body = Body()
        change = body.boolean("change", default=rrset.change_protection)
        body.check()
        return self._run(zone, "change_rrset_protection", lambda: setattr(rrset, "change_protection", change))

    def change_rrset_ttl(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Change the TTL; null is the zone's."""
        zone, rrset = self._changeable(identity, name, kind)
        body = Body()
        ttl = _ttl(body)
        body.check()
        return self._run(zone, "change_rrset_ttl", lambda: setattr(rrset, "ttl", ttl))

    def set_records(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Put other records in place of all there are."""
        zone, rrset = self._changeable(identity, name, kind)
        body = Body()
        records = _records(body, rrset.type)
        body.check()
        return self._run(zone, "set_rrset_records", lambda: setattr(rrset, "records", records))

    def add_records(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Add records; the record set is made if it is not there."""
        zone = found_zone(self._project, identity)
        body = Body()
        if f"{name}/{kind}" not in zone.rrsets:
            fields = {**(request.get_json(force=True, silent=True) or {}), "name": name, "type": kind}
            rrset = _new_rrset(zone, Body(fields))
            return self._run(zone, "add_rrset_records", lambda: _add(zone, rrset))
        zone, rrset = self._changeable(identity, name, kind)
        records, ttl = _records(body, rrset.type), _ttl(body)
        body.check()
        both = {record["value"] for record in rrset.records} & {record["value"] for record in records}
        if both:
            raise invalid_input({"records": [f"record '{value}' is there already" for value in sorted(both)]})
        if ttl is not None and ttl != rrset.ttl:
            raise invalid_input({"ttl": ["must be that of the record set"]})
        return self._run(zone, "add_rrset_records", lambda: rrset.records.extend(records))

    def remove_records(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Remove records by their values; the record set goes with the last one."""
        zone, rrset = self._changeable(identity, name, kind)
        body = Body()
        values = {record["value"] for record in _records(body, rrset.type)}
        body.check()
        _check_present(rrset, values)

        def done() -> None:
            rrset.records = [record for record in rrset.records if record["value"] not in values]
            if not rrset.records:
                zone.rrsets.pop(rrset.id, None)

        return self._run(zone, "remove_rrset_records", done)

    def update_records(self, identity: str, name: str, kind: str) -> tuple[dict[str, Any], int]:
        """Change the comments of records."""
        zone, rrset = self._changeable(identity, name, kind)
        body = Body()
        comments = {record["value"]: record["comment"] for record in _records(body, rrset.type)}
        body.check()
        _check_present(rrset, set(comments))

        def done() -> None:
            for record in rrset.records:
                record["comment"] = comments.get(record["value"], record["comment"])

        answer, _ = self._run(zone, "update_rrset_records", done)
        # alone among the actions, says the reference
        return answer, HTTPStatus.OK

    def _run(
        self,
        zone: Zone,
        command: str,
        done: Callable[[], Any] | None = None,
        failed: Callable[[], Any] | None = None,
    ) -> tuple[dict[str, Any], int]:
        step = Step(command, [("zone", zone.id)], done=done, failed=failed)
        return {"action": self._actions.run(step)[0].shown()}, HTTPStatus.CREATED

    def _found(self, identity: str, name: str, kind: str) -> tuple[Zone, RecordSet]:
        zone = found_zone(self._project, identity)
        rrset = zone.rrsets.get(f"{name}/{kind}")
        if rrset is None:
            raise not_found("rrset", f"{name}/{kind}")
        return zone, rrset

    def _changeable(self, identity: str, name: str, kind: str) -> tuple[Zone, RecordSet]:
        zone, rrset = self._found(identity, name, kind)
        if rrset.change_protection:
            raise protected("rrset", "changed")
        return zone, rrset


def found_zone(project: Project, identity: str) -> Zone:
    """Return a zone by ID or name. Raises ``not_found``."""
    for zone in project.zones.values():
        if identity in (str(zone.id), zone.name):
            return zone
    raise not_found("zone", identity)


def _shown(zone: Zone) -> dict[str, Any]:
    return {
        "id": zone.id,
        "name": zone.name,
        "created": zone.created,
        "mode": "primary",
        "ttl": zone.ttl,
        "labels": zone.labels,
        "protection": {"delete": zone.delete_protection},
        "status": "ok",
        "record_count": sum(len(rrset.records) for rrset in zone.rrsets.values()),
        "registrar": "unknown",
        "primary_nameservers": [],
        "authoritative_nameservers": {
            "assigned": list(NAMESERVERS),
            "delegated": [],
            "delegation_last_check": zone.created,
            "delegation_status": "unknown",
        },
    }


def _shown_rrset(zone: Zone, rrset: RecordSet) -> dict[str, Any]:
    fields = dataclasses.asdict(rrset)
    del fields["change_protection"]
    return {"id": rrset.id, **fields, "protection": {"change": rrset.change_protection}, "zone": zone.id}


def _add(zone: Zone, rrset: RecordSet) -> None:
    zone.rrsets[rrset.id] = rrset


def _new_rrset(zone: Zone, body: Body) -> RecordSet:
    """Return a record set as it is asked for, and as the zone may have it."""
    name, labels, ttl = body.string("name", required=True), body.labels(), _ttl(body)
    kind = body.string("type", required=True, allowed=TYPES)
    if name and name != APEX and not _is_relative(name, zone):
        body.reject(
            "name", "must be @, or a name in lower case without the zone's and without a dot at its end"
        )
    records = _records(body, kind)
    body.check()
    rrset = RecordSet(name, kind, ttl, labels, records)
    if kind == "SOA":
        raise unprocessable("unsupported_error", "the SOA record set is the zone's own")
    if rrset.id in zone.rrsets:
        raise not_unique("rrset", "name and type")
    same_name = {other.type for other in zone.rrsets.values() if other.name == name}
    if same_name and (kind == "CNAME" or "CNAME" in same_name):
        raise invalid_input({"type": ["a CNAME record set must be the only one of its name"]})
    return rrset


def _is_relative(name: str, zone: Zone) -> bool:
    if name == zone.name or name.endswith(f".{zone.name}"):
        return False
    return _NAME.fullmatch(name) is not None


def _ttl(body: Body, *, required: bool = False) -> int | None:
    ttl = body.integer("ttl", required=required)
    if ttl is not None and not SHORTEST_TTL <= ttl <= LONGEST_TTL:
        body.reject("ttl", f"must be between {SHORTEST_TTL} and {LONGEST_TTL} seconds")
    return ttl


def _record(value: str, comment: str = "") -> dict[str, Any]:
    return {"value": value, "comment": comment}


def _records(body: Body, kind: str) -> list[dict[str, Any]]:
    records = []
    for at, entry in enumerate(body.objects("records", required=True)):
        fields = Body(entry)
        record = _record(fields.string("value"), fields.string("comment"))
        records.append(record)
        if problem := _problem(record["value"], kind):
            body.reject(f"records.{at}.value", problem)
    values = [record["value"] for record in records]
    if body.has("records") and not records:
        body.reject("records", "must not be empty")
    if len(set(values)) < len(values):
        body.reject("records", "must be distinct")
    return records


def _problem(value: str, kind: str) -> str | None:
    """Return what is wrong with a record's value, if anything."""
    if not value:
        return "must not be empty"
    match kind:
        case "A" | "AAAA":
            version = ipaddress.IPv4Address if kind == "A" else ipaddress.IPv6Address
            try:
                version(value)
            except ValueError:
                return f"must be an address for type {kind}"
        case "TXT" if not (value.startswith('"') and value.endswith('"')):
            return "must be in double quotes"
    return None


def _check_present(rrset: RecordSet, values: set[str]) -> None:
    missing = values - {record["value"] for record in rrset.records}
    if missing:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"records {', '.join(sorted(missing))} not found")
