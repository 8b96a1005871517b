"""Faults on request: requests that fail or are slow, and actions that do, for tests and demonstrations."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from .errors import ApiError
from .inputs import Body


@dataclass
class RequestFault:
    """
    What befalls requests of a method and a path.

    ``path`` is matched against the whole path after ``/v1``. ``times`` is how often it happens, without end
    for None. The request waits ``delay`` seconds; with an ``error`` it is then answered with it, and is
    carried out before that where ``applied`` is true, as when an answer is lost on its way.
    """

    method: str | None
    path: re.Pattern[str]
    times: int | None
    delay: float
    error: ApiError | None
    applied: bool


@dataclass
class ActionFault:
    """What befalls actions of a command: they take ``seconds``, and with an ``error`` they end with it."""

    command: str
    times: int | None
    seconds: float
    error: dict[str, str] | None


class Faults:
    """The faults that are asked for, in the order in which they were."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()
        self._requests: list[RequestFault] = []
        self._actions: list[ActionFault] = []

    def add(self, body: Body) -> None:
        """
        Take a fault as ``POST /sandbox/faults`` has it. Raises ``invalid_input``.

        ``{"path", "method", "times", "status", "code", "message", "delay", "applied"}`` for requests, of
        which ``path`` alone has to be there; ``{"action", "times", "seconds", "error": {"code", "message"}}``
        for actions. ``times`` is 1 where it is left out, and 0 stands for every time.
        """
        times = body.integer("times")
        often = None if times == 0 else 1 if times is None else times
        if body.has("action"):
            command, seconds = (
                body.string("action"),
                float(body.value("seconds", (int, float), "seconds") or 0),
            )
            error = body.fields("error")
            said = {"code": error.string("code"), "message": error.string("message")}
            body.check()
            with self._lock:
                self._actions.append(
                    ActionFault(command, often, seconds, said if body.has("error") else None)
                )
            return
        fault = _request_fault(body, often)
        body.check()
        with self._lock:
            self._requests.append(fault)

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._requests.clear()
            self._actions.clear()

    def of_request(self, method: str, path: str) -> RequestFault | None:
        """Return what befalls a request, and count it; ``path`` is without ``/v1``."""
        with self._lock:
            for fault in self._requests:
                if fault.method in (None, method) and fault.path.fullmatch(path) and _is_due(fault):
                    return fault
        return None

    def of_action(self, command: str) -> ActionFault | None:
        """Return what befalls an action, and count it."""
        with self._lock:
            for fault in self._actions:
                if fault.command == command and _is_due(fault):
                    return fault
        return None


def _is_due(fault: RequestFault | ActionFault) -> bool:
    if fault.times is None:
        return True
    fault.times -= 1
    return fault.times >= 0


def _request_fault(body: Body, times: int | None) -> RequestFault:
    status = body.integer("status")
    error = None
    if status is not None:
        code = body.string("code") or "server_error"
        # clients take the details of this code for granted
        details: dict[str, Any] | None = {"fields": []} if code == "invalid_input" else None
        error = ApiError(status, code, body.string("message") or "asked for as a fault", details)
    path = body.string("path", required=True)
    try:
        pattern = re.compile(path)
    except re.error as problem:
        body.reject("path", f"is not a regular expression: {problem}")
        pattern = re.compile("")
    return RequestFault(
        method=body.string("method").upper() or None,
        path=pattern,
        times=times,
        delay=float(body.value("delay", (int, float), "seconds") or 0),
        error=error,
        applied=body.boolean("applied"),
    )
