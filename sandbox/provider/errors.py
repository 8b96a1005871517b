"""How the work of a provider goes wrong; the messages go to the user."""

from __future__ import annotations


class RefusedError(Exception):
    """A call that the stand-in does not serve; the message says what serves it."""


class OperationError(Exception):
    """The work failed; the message says what was being done and what the other side said."""


class CancelledError(OperationError):
    """The engine asked to stop."""


class PartlyCreatedError(Exception):
    """The resource exists, but making it did not come to its end."""

    def __init__(self, identifier: str, reason: str) -> None:
        """Keep the resource's id and what went wrong."""
        super().__init__(reason)
        self.identifier = identifier
        self.reason = reason
