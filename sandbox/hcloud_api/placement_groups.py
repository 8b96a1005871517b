"""Placement groups: ``/placement_groups``."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from typing import Any

from flask import Blueprint

from .cloud import Cloud
from .errors import unprocessable
from .inputs import Body
from .listing import listed
from .state import PlacementGroup, Project, check_name, found, now

NOUN = "placement group"


class PlacementGroups:
    """The routes of placement groups."""

    def __init__(self, cloud: Cloud) -> None:
        """Serve the placement groups of a project."""
        self._project = cloud.project

    def routes(self) -> Blueprint:
        """Return the routes."""
        routes = Blueprint("placement_groups", __name__)
        routes.get("/placement_groups")(self.list_groups)
        routes.post("/placement_groups")(self.create)
        routes.get("/placement_groups/<identity>")(self.get)
        routes.put("/placement_groups/<identity>")(self.update)
        routes.delete("/placement_groups/<identity>")(self.delete)
        return routes

    def list_groups(self) -> dict[str, Any]:
        """List the placement groups."""
        groups = [shown(self._project, group) for group in self._project.placement_groups.values()]
        return listed("placement_groups", groups, ("name", "type"))

    def create(self) -> tuple[dict[str, Any], int]:
        """Make a placement group without servers."""
        body = Body()
        name, labels = body.name(), body.labels()
        kind = body.string("type", required=True, allowed=("spread",))
        body.check()
        check_name(self._project.placement_groups, name, NOUN)
        group = PlacementGroup(self._project.new_id(), name, kind, labels, now())
        self._project.placement_groups[group.id] = group
        return {"placement_group": shown(self._project, group), "action": None}, HTTPStatus.CREATED

    def get(self, identity: str) -> dict[str, Any]:
        """Return one placement group."""
        group = found(self._project.placement_groups, identity, NOUN)
        return {"placement_group": shown(self._project, group)}

    def update(self, identity: str) -> dict[str, Any]:
        """Change name and labels."""
        group = found(self._project.placement_groups, identity, NOUN)
        body = Body()
        name = body.name(required=False) or group.name
        labels = body.labels() if body.has("labels") else group.labels
        body.check()
        check_name(self._project.placement_groups, name, NOUN, group.id)
        group.name, group.labels = name, labels
        return {"placement_group": shown(self._project, group)}

    def delete(self, identity: str) -> tuple[str, int]:
        """Remove a placement group that no server is in."""
        group = found(self._project.placement_groups, identity, NOUN)
        if shown(self._project, group)["servers"]:
            raise unprocessable("resource_in_use", f"placement group with ID '{group.id}' is still in use")
        del self._project.placement_groups[group.id]
        return "", HTTPStatus.NO_CONTENT


def shown(project: Project, group: PlacementGroup) -> dict[str, Any]:
    """Return a placement group as the API has it."""
    servers = [server.id for server in project.servers.values() if server.placement_group_id == group.id]
    return {**dataclasses.asdict(group), "servers": servers}
