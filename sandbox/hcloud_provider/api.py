"""The Hetzner Cloud API: which one, how it is asked, and how its errors are told."""

from __future__ import annotations

import ipaddress
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import tenacity
from hcloud import APIException, Client

from sandbox.provider.errors import CancelledError, OperationError, RefusedError
from sandbox.provider.package import real_plugin

from . import PLUGIN_VERSION

REAL_ENDPOINT = "https://api.hetzner.cloud/v1"
"""Where the real plugin goes without ``endpoint`` and ``HCLOUD_ENDPOINT`` (hcloud-go, hcloud/client.go)."""

TOKEN_LENGTH = 64
"""Characters of a token (``hcloud/provider.go`` upstream)."""

RETRIES = 5
"""Attempts at what may be refused for a while (``DefaultRetries`` in internal/util/control upstream)."""

POLL_SECONDS = 0.5
"""First wait for an action; the next ones are twice as long each (``poll_interval`` upstream)."""

_LONGEST_POLL = 60.0

_REQUEST_TIMEOUT = 60.0

_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ApiError(OperationError):
    """The API refused; `code` is its own (https://docs.hetzner.cloud/reference/cloud#description/errors)."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the code and the whole message."""
        super().__init__(message)
        self.code = code


class ActionFailedError(OperationError):
    """The API took the request, but the action that it began ended as an error."""


def is_endpoint_on_loopback(endpoint: str) -> bool:
    """Tell whether the address is one of this machine's own."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return False
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def seconds(duration: str) -> float:
    """Turn a duration as Go writes it (``500ms``, ``1m30s``) into seconds. Raises `ValueError`."""
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"invalid duration {duration!r}")
    total = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(duration))
    return -total if duration.startswith("-") else total


def connect(arguments: Mapping[str, Any]) -> Api:
    """
    Take endpoint and token from the provider's arguments or the environment; nothing is asked yet.

    Raises `RefusedError` for an endpoint that is not on loopback, and without a token.
    """
    endpoint = arguments.get("endpoint") or os.environ.get("HCLOUD_ENDPOINT") or REAL_ENDPOINT
    if not is_endpoint_on_loopback(endpoint):
        raise RefusedError(
            "the stand-in for the hcloud plugin is for sandboxes: it serves Hetzner Cloud APIs on loopback "
            f"only (HCLOUD_ENDPOINT=http://127.0.0.1:PORT/v1), not {endpoint}. For real servers install the "
            f"real plugin with {real_plugin('hcloud', PLUGIN_VERSION)}"
        )
    token = arguments.get("token") or os.environ.get("HCLOUD_TOKEN") or ""
    if not token:
        raise RefusedError(
            "Missing Hetzner Cloud API token: neither the provider's token nor HCLOUD_TOKEN is given"
        )
    if len(token) != TOKEN_LENGTH:
        raise RefusedError(f"entered token is invalid (must be exactly {TOKEN_LENGTH} characters long)")
    interval = arguments.get("pollInterval")
    try:
        poll = seconds(interval) if interval else POLL_SECONDS
    except ValueError as error:
        raise RefusedError(f"Unparsable poll interval value: {error}") from None
    return Api(endpoint.rstrip("/"), token, poll, doubling=arguments.get("pollFunction") != "constant")


class Api:
    """A project at one API, safe to use from several threads at once."""

    def __init__(self, endpoint: str, token: str, poll_seconds: float, *, doubling: bool = True) -> None:
        """Take the address and the project's token; actions are asked after ``poll_seconds``, then later."""
        self.endpoint = endpoint
        self.cancelled = threading.Event()
        self._token = token
        self._poll_seconds = poll_seconds
        self._doubling = doubling
        self._local = threading.local()

    def check(self) -> None:
        """Ask nothing: like the real plugin this waits for the first resource."""

    def close(self) -> None:
        """Let go of nothing: each thread's client ends with it."""

    @property
    def _client(self) -> Client:
        """The official client of this thread (its session is not made for several at once)."""
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = Client(
                self._token,
                api_endpoint=self.endpoint,
                application_name="pulumi-hcloud-stand-in",
                application_version=PLUGIN_VERSION,
                timeout=_REQUEST_TIMEOUT,
            )
            self._local.client = client
        return client

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Ask the API, such as ``POST /servers``; the client retries what it knows to be passing.

        Raises `ApiError` for what the API refuses and `OperationError` if it does not answer.
        """
        try:
            return self._client.request(method, path, json=body)
        except APIException as error:
            raise ApiError(str(error.code), _told(error)) from error
        except requests.exceptions.RequestException as error:
            raise OperationError(
                f"cannot talk to the Hetzner Cloud API at {self.endpoint}: {error}. Is the sandbox running?"
            ) from error

    def get(self, path: str) -> dict[str, Any] | None:
        """Return what is there; None if the API says that there is no such thing."""
        try:
            return self.request("GET", path)
        except ApiError as error:
            if error.code == "not_found":
                return None
            raise

    def by_name(self, kind: str, name: str, **query: str) -> dict[str, Any] | None:
        """Return the first of a kind (``images``) that has the name, None if there is none."""
        found: list[dict[str, Any]] = self.request("GET", f"/{kind}?{urlencode({**query, 'name': name})}")[
            kind
        ]
        return found[0] if found else None

    def settle(self, *actions: Mapping[str, Any] | None) -> None:
        """
        Wait until all actions have ended; None stands for one that was not needed.

        Raises `ActionFailedError` for the first that failed, `CancelledError` when the engine asks to stop.
        """
        known = {each["id"]: each for each in actions if each}
        wait = self._poll_seconds
        while True:
            for each in known.values():
                if each["status"] == "error":
                    raise ActionFailedError(
                        f"{each['error']['message']} ({each['error']['code']}, {each['id']})"
                    )
            running = [identifier for identifier, each in known.items() if each["status"] == "running"]
            if not running:
                return
            if self.cancelled.wait(wait):
                commands = ", ".join(f"{known[each]['command']} ({each})" for each in running)
                raise CancelledError(f"cancelled while waiting for actions to complete: {commands}")
            wait = min(wait * 2, _LONGEST_POLL) if self._doubling else wait
            query = "&".join(f"id={each}" for each in running)
            for each in self.request("GET", f"/actions?{query}")["actions"]:
                known[each["id"]] = each

    def act(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Begin one or several actions with ``POST`` and wait for them. Raises as `request` and `settle`."""
        answer = self.request("POST", path, body or {})
        self.settle(*([answer["action"]] if "action" in answer else answer["actions"]))

    def remove(self, path: str) -> None:
        """Delete what is there, and wait until it is gone; what is gone already is no error.

        Raises as `request` and `settle` do.
        """
        try:
            self.settle(self.request("DELETE", path).get("action"))
        except ApiError as error:
            if error.code != "not_found":
                raise

    def persist(self, attempt: Callable[[], None], tries: int, passing: Callable[[Exception], bool]) -> None:
        """
        Try up to ``tries`` times, with 1, 2, 4, ... seconds between, what fails in a passing way.

        Raises what the last attempt raised, or one that is not passing.
        """
        tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries) | tenacity.stop_when_event_set(self.cancelled),
            wait=tenacity.wait_exponential(multiplier=1, exp_base=2),
            sleep=tenacity.sleep_using_event(self.cancelled),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and passing(error)),
            reraise=True,
        )(attempt)


def _told(error: APIException) -> str:
    """Return the API's message, its code and the request's correlation id, and what it says of fields."""
    fields: Iterable[Mapping[str, Any]] = ()
    if isinstance(error.details, dict):
        fields = error.details.get("fields") or ()
    shown = "; ".join(f"{each.get('name')}: {', '.join(each.get('messages') or [])}" for each in fields)
    return f"{error} [{shown}]" if shown else str(error)
