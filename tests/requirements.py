"""What a test needs of the machine: a loud skip on a laptop, a failure in CI."""

from __future__ import annotations

import os

import pytest


def require(present: object, reason: str, command: str) -> None:
    """Go on if ``present`` is true; else skip, or fail where ``DERP_RELAYS_CI`` is ``1``.

    ``reason`` says what is missing, ``command`` what brings it; both are shown.
    """
    if present:
        return
    message = f"{reason}. To bring it: {command}"
    if os.environ.get("DERP_RELAYS_CI") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
