"""Hetzner Cloud's API: how it is asked, what is whose there, and what its errors mean."""

from __future__ import annotations

import os

import hcloud
import requests
from hcloud.actions import ActionException

# On all that is made at Hetzner: whose it is.
STACK_LABEL = "derp-relays.stack"

ApiError = hcloud.APIException | ActionException | requests.RequestException
# All that a call may raise, for ``except``.
API_ERRORS = (hcloud.APIException, ActionException, requests.RequestException)

# How to mend that the API does not know a token.
UNAUTHORIZED_MEND = (
    "make a new one in the Hetzner Console (the project, Security, API tokens, Read & Write), and export it"
    " as HCLOUD_TOKEN"
)

_ENDPOINT = "https://api.hetzner.cloud/v1"


def api_client(token: str, endpoint: str | None = None) -> hcloud.Client:
    """Return a client for ``token``; without an ``endpoint`` at ``HCLOUD_ENDPOINT``, else at Hetzner's own.

    It repeats what the API's rate limit refuses, and what passes, up to five times.
    """
    return hcloud.Client(
        token=token,
        api_endpoint=endpoint or os.environ.get("HCLOUD_ENDPOINT") or _ENDPOINT,
        application_name="derp-relays",
        poll_interval=1,
        timeout=30,
    )


def meaning(error: ApiError) -> str:
    """Return what the API's ``error`` means."""
    if isinstance(error, ActionException):
        return f"Hetzner Cloud could not do what it was asked: {error.message}"
    if not isinstance(error, hcloud.APIException):
        return f"Hetzner Cloud's API does not answer: {error}"
    if error.code == "unauthorized":
        return "Hetzner Cloud does not know the API token"
    return f"Hetzner Cloud: {error.message} ({error.code})"
