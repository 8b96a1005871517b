"""What tests ask of the sandbox's Hetzner Cloud API beside what the real one has."""

from __future__ import annotations

from typing import Any

import requests

from sandbox.hcloud_api import ServedApi


def sandbox(served: ServedApi, method: str, path: str, /, **fields: Any) -> requests.Response:
    """Ask for what only a sandbox has."""
    answer = requests.request(
        method,
        f"{served.sandbox}{path}",
        headers={"Authorization": f"Bearer {served.token}"},
        json=fields,
        timeout=10,
    )
    answer.raise_for_status()
    return answer


def fault(served: ServedApi, **fields: Any) -> None:
    """Ask for a fault (`sandbox.hcloud_api.faults`)."""
    sandbox(served, "POST", "/faults", **fields)


def asked(served: ServedApi) -> list[str]:
    """Return all requests so far, such as ``GET /servers``."""
    told = sandbox(served, "GET", "/requests").json()["requests"]
    return [f"{one['method']} {one['path']}" for one in told]


def changes(served: ServedApi) -> list[str]:
    """Return the requests that are not just questions."""
    return [one for one in asked(served) if not one.startswith("GET ")]


def quick(client: Any) -> Any:
    """Return a client that waits less between its tries and questions than its seconds."""
    client._client._retry_interval_func = lambda retries: 0.01  # noqa: ARG005
    client._client._poll_interval_func = lambda retries: 0.01  # noqa: ARG005
    return client
