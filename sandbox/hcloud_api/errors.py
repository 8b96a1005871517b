"""
The errors of the API, with the codes and HTTP statuses of https://docs.hetzner.cloud/reference/cloud#errors.

Codes that one operation alone gives are from that operation's own table in the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any


class ApiError(Exception):
    """An answer that is no success: an HTTP status, and a code, message and details for the body."""

    def __init__(
        self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Keep what the answer is made of; ``details`` is what the reference has for the code."""
        super().__init__(f"{message} ({code})")
        self.status = status
        self.code = code
        self.message = message
        self.details = details

    def body(self) -> dict[str, Any]:
        """Return the answer's body."""
        return {"error": {"code": self.code, "message": self.message, "details": self.details}}


def not_found(noun: str, identity: object) -> ApiError:
    """Return the error for a resource that is not there."""
    return ApiError(HTTPStatus.NOT_FOUND, "not_found", f"{noun} with ID '{identity}' not found")


def invalid_input(problems: Mapping[str, Sequence[str]]) -> ApiError:
    """Return the error for fields that cannot be taken; ``problems`` gives what is wrong by field."""
    names = ", ".join(f"'{name}'" for name in problems)
    details = {"fields": [{"name": name, "messages": list(said)} for name, said in problems.items()]}
    noun = "field" if len(problems) == 1 else "fields"
    return ApiError(
        HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_input", f"invalid input in {noun} {names}", details
    )


def not_unique(noun: str, field: str) -> ApiError:
    """Return the error for a field that another resource already has the value of."""
    return ApiError(
        HTTPStatus.CONFLICT,
        "uniqueness_error",
        f"{noun} {field} is already used",
        {"fields": [{"name": field, "messages": ["must be unique"]}]},
    )


def locked(noun: str) -> ApiError:
    """Return the error for a resource that an action is running on."""
    return ApiError(HTTPStatus.LOCKED, "locked", f"{noun} is locked: another action is running on it")


def protected(noun: str, what: str) -> ApiError:
    """Return the error for a protection that forbids ``what``."""
    return ApiError(HTTPStatus.LOCKED, "protected", f"{noun} is protected: it cannot be {what}")


def unprocessable(code: str, message: str) -> ApiError:
    """Return an error that one operation has a code of its own for."""
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, code, message)
