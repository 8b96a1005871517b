"""The application: who may ask, how often, which faults befall, and the routes that belong to no kind."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections import deque
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from .catalogue import IMAGES, LOCATIONS, SERVER_TYPES
from .cloud import Cloud
from .errors import ApiError, not_found
from .faults import RequestFault
from .firewalls import Firewalls
from .inputs import Body
from .listing import listed
from .placement_groups import PlacementGroups
from .primary_ips import PrimaryIps
from .servers import Servers
from .ssh_keys import SshKeys
from .state import Action, found
from .zones import Zones, found_zone

BASE = "/v1"

KEPT_REQUESTS = 10_000

_SECONDS_PER_HOUR = 3600

_RESOURCES_WITH_ACTIONS = {
    "servers": "server",
    "primary_ips": "primary_ip",
    "firewalls": "firewall",
    "zones": "zone",
}


class RateLimit:
    """How many requests may still come: an hour's at once, and then one after the other as time goes by."""

    def __init__(self, per_hour: int) -> None:
        """Begin with all of them."""
        self.per_hour = per_hour
        self._lock = threading.Lock()
        self._left = float(per_hour)
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take one, and tell whether there was one."""
        with self._lock:
            self._regain()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def headers(self) -> dict[str, str]:
        """Return the headers of https://docs.hetzner.cloud/reference/cloud#description/rate-limiting."""
        with self._lock:
            self._regain()
            missing = (self.per_hour - self._left) / self.per_hour * _SECONDS_PER_HOUR
            return {
                "RateLimit-Limit": str(self.per_hour),
                "RateLimit-Remaining": str(int(self._left)),
                "RateLimit-Reset": str(int(time.time() + missing)),
            }

    def _regain(self) -> None:
        now = time.monotonic()
        self._left = min(
            float(self.per_hour), self._left + (now - self._at) * self.per_hour / _SECONDS_PER_HOUR
        )
        self._at = now


class Application(Flask):
    """Answers requests, holding the project still for each, and writes the project after each change."""

    def __init__(self, cloud: Cloud, token: str, requests_per_hour: int) -> None:
        """Serve a cloud to those who have the token."""
        super().__init__(__name__)
        self._cloud = cloud
        self._token = token
        self._rate_limit = RateLimit(requests_per_hour)
        self._requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self.json.sort_keys = False  # type: ignore[attr-defined] # the default provider has it
        self.before_request(self._admit)
        self.after_request(self._complete)
        self.register_error_handler(ApiError, self._answer_error)
        self.register_error_handler(HTTPException, self._answer_http_error)
        self.register_error_handler(Exception, self._answer_failure)
        for part in (Servers, PrimaryIps, Firewalls, SshKeys, PlacementGroups, Zones):
            self.register_blueprint(part(cloud).routes(), url_prefix=BASE)
        self.register_blueprint(_catalogue_routes(), url_prefix=BASE)
        self.register_blueprint(_action_routes(cloud), url_prefix=BASE)
        self.register_blueprint(self._sandbox_routes(), url_prefix="/sandbox")

    def dispatch_request(self) -> Any:
        """Answer with the project held still."""
        with self._cloud.project.lock:
            answer = self.make_response(super().dispatch_request())
            if request.method != "GET":
                self._cloud.project.save()
        fault: RequestFault | None = g.get("fault")
        if fault is not None and fault.error is not None:
            raise fault.error
        return answer

    def _admit(self) -> None:
        if not _is_of_api():
            self._authorize()
            return
        if not self._rate_limit.take():
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded", "rate limit exceeded")
        self._authorize()
        fault = self._cloud.faults.of_request(request.method, request.path.removeprefix(BASE))
        if fault is None:
            return
        time.sleep(fault.delay)
        if fault.error is not None and not fault.applied:
            raise fault.error
        g.fault = fault

    def _authorize(self) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(token.encode(), self._token.encode()):
            raise ApiError(
                HTTPStatus.UNAUTHORIZED, "unauthorized", "the provided token is invalid or missing"
            )

    def _complete(self, response: Response) -> Response:
        if _is_of_api():
            response.headers.update(self._rate_limit.headers())
            response.headers["X-Correlation-Id"] = secrets.token_hex(8)
            self._requests.append(
                {
                    "method": request.method,
                    "path": request.path.removeprefix(BASE),
                    "status": response.status_code,
                }
            )
        return response

    def _answer_error(self, error: ApiError) -> tuple[dict[str, Any], int]:
        return error.body(), error.status

    def _answer_http_error(self, error: HTTPException) -> tuple[dict[str, Any], int]:
        if error.code == HTTPStatus.NOT_FOUND:
            # not 404, which clients take for a resource that is gone
            message = f"the sandbox does not have {request.method} {request.path}"
            return self._answer_error(ApiError(HTTPStatus.NOT_IMPLEMENTED, "unsupported_error", message))
        code = "method_not_allowed" if error.code == HTTPStatus.METHOD_NOT_ALLOWED else "service_error"
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        return self._answer_error(ApiError(status, code, str(error)))

    def _answer_failure(self, error: Exception) -> tuple[dict[str, Any], int]:
        logging.getLogger(__name__).error("%s %s", request.method, request.path, exc_info=error)
        message = f"the sandbox failed: {error!r}"
        return self._answer_error(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error", message))

    def _sandbox_routes(self) -> Blueprint:
        """Return what the real API does not have: faults, what was asked, and servers that vanish."""
        routes = Blueprint("sandbox", __name__)
        routes.post("/faults")(self._add_fault)
        routes.delete("/faults")(self._clear_faults)
        routes.get("/requests")(self._list_requests)
        routes.post("/servers/<identity>/vanish")(self._vanish)
        return routes

    def _add_fault(self) -> tuple[str, int]:
        self._cloud.faults.add(Body())
        return "", HTTPStatus.NO_CONTENT

    def _clear_faults(self) -> tuple[str, int]:
        self._cloud.faults.clear()
        return "", HTTPStatus.NO_CONTENT

    def _list_requests(self) -> dict[str, Any]:
        return {"requests": list(self._requests)}

    def _vanish(self, identity: str) -> tuple[str, int]:
        server = found(self._cloud.project.servers, identity, "server")
        self._cloud.machines.delete(server.id)
        self._cloud.project.forget(server)
        return "", HTTPStatus.NO_CONTENT


def _is_of_api() -> bool:
    return request.path.startswith(f"{BASE}/")


def _catalogue_routes() -> Blueprint:
    routes = Blueprint("catalogue", __name__)
    kinds: tuple[tuple[str, str, list[dict[str, Any]], tuple[str, ...]], ...] = (
        ("locations", "location", [one.shown() for one in LOCATIONS.values()], ("name",)),
        ("server_types", "server_type", [one.shown() for one in SERVER_TYPES.values()], ("name",)),
        (
            "images",
            "image",
            [one.shown() for one in IMAGES.values()],
            ("name", "architecture", "type", "status"),
        ),
    )

    for key, noun, entries, filters in kinds:

        def list_entries(
            key: str = key, entries: list[dict[str, Any]] = entries, filters: tuple[str, ...] = filters
        ) -> dict[str, Any]:
            return listed(key, entries, filters)

        def get_entry(
            identity: str, noun: str = noun, entries: list[dict[str, Any]] = entries
        ) -> dict[str, Any]:
            for entry in entries:
                if str(entry["id"]) == identity:
                    return {noun: entry}
            raise not_found(noun, identity)

        routes.add_url_rule(f"/{key}", f"list_{key}", list_entries)
        routes.add_url_rule(f"/{key}/<identity>", f"get_{noun}", get_entry)

    @routes.get("/datacenters")
    def list_datacenters() -> dict[str, Any]:
        # gone since 1 October 2026 (https://docs.hetzner.cloud/changelog#2026-06-02-datacenters-deprecated)
        raise ApiError(HTTPStatus.GONE, "deprecated_api_endpoint", "data centers were removed: use locations")

    return routes


def _action_routes(cloud: Cloud) -> Blueprint:
    routes = Blueprint("actions", __name__)
    actions = cloud.project.actions

    def listing(chosen: list[Action]) -> dict[str, Any]:
        return listed("actions", [action.shown() for action in chosen], ("id", "status"))

    @routes.get("/actions")
    def list_actions() -> dict[str, Any]:
        if "id" not in request.args:
            # gone since 30 January 2025 (https://docs.hetzner.cloud/changelog#2025-01-30-listing-arbitrary-actions-in-the-actions-list-endpoint-is-removed)
            raise ApiError(HTTPStatus.GONE, "deprecated_api_endpoint", "actions can be listed by ID only")
        return listing(list(actions.values()))

    @routes.get("/actions/<int:action_id>")
    def get_action(action_id: int, identity: str = "") -> dict[str, Any]:  # noqa: ARG001 - part of some paths
        return {"action": found(actions, action_id, "action").shown()}

    def list_actions_of(kind: str, identity: str = "") -> dict[str, Any]:
        noun = _RESOURCES_WITH_ACTIONS[kind]
        wanted = str(found_zone(cloud.project, identity).id) if identity and kind == "zones" else identity
        return listing(
            [
                action
                for action in actions.values()
                for resource in action.resources
                if resource["type"] == noun and wanted in ("", str(resource["id"]))
            ]
        )

    for kind in _RESOURCES_WITH_ACTIONS:
        for path in (f"/{kind}/actions", f"/{kind}/<identity>/actions"):
            routes.add_url_rule(path, view_func=list_actions_of, defaults={"kind": kind})
            routes.add_url_rule(f"{path}/<int:action_id>", view_func=get_action)
    return routes
