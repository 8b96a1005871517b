"""One real region at Hetzner Cloud: made, checked, and removed again. It costs some cents.

It is in none of the lanes that `make test` runs. It runs only where all of this
is set, so that nobody has it run by accident (docs/servers.md):

- ``DERP_RELAYS_LIVE=creates-servers-that-cost-money``
- ``HCLOUD_TOKEN``: of a project at Hetzner that has nothing else in it
- ``DERP_RELAYS_LIVE_DOMAIN``: a name in a zone of that project's DNS, such as derp-live.example.com
- ``DERP_RELAYS_LIVE_ZONE``: the zone, such as example.com
- ``DERP_RELAYS_LIVE_SSH_FROM``: this machine's address, as the server sees it
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import hcloud
import pytest

from components.hetzner_host import server_name
from tests.checkout import Checkout

CONSENT = "creates-servers-that-cost-money"
VARIABLES = ("HCLOUD_TOKEN", "DERP_RELAYS_LIVE_DOMAIN", "DERP_RELAYS_LIVE_ZONE", "DERP_RELAYS_LIVE_SSH_FROM")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("DERP_RELAYS_LIVE") != CONSENT,
        reason=f"makes servers that cost money; only with DERP_RELAYS_LIVE={CONSENT} (docs/servers.md)",
    ),
    pytest.mark.skipif(
        not all(os.environ.get(name) for name in VARIABLES), reason=f"needs {', '.join(VARIABLES)}"
    ),
    pytest.mark.skipif(
        bool(os.environ.get("HCLOUD_ENDPOINT")), reason="HCLOUD_ENDPOINT is set: that is not the real API"
    ),
]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[tuple[Checkout, str]]:
    """Yield a checkout with a stack of a name of its own; take it down at the end, whatever happened."""
    name = f"live-{secrets.token_hex(3)}"
    (tmp_path / "checkout").mkdir()
    checkout = Checkout.make(tmp_path / "checkout", None)
    checkout.write_stack(
        {
            "domain": os.environ["DERP_RELAYS_LIVE_DOMAIN"],
            "region": {"id": 999, "code": "live"},
            "host": {
                "kind": "hetzner",
                "location": os.environ.get("DERP_RELAYS_LIVE_LOCATION", "nbg1"),
                "serverType": os.environ.get("DERP_RELAYS_LIVE_TYPE", "cpx22"),
                "sshFrom": [os.environ["DERP_RELAYS_LIVE_SSH_FROM"]],
                "dnsZone": os.environ["DERP_RELAYS_LIVE_ZONE"],
            },
            # Staging certificates are trusted by no client: those that sign themselves can be checked whole.
            "certificate": {"source": "internal"},
        },
        name,
    )
    try:
        yield checkout, name
    finally:
        done = checkout.relayctl("down", name, "--volumes", timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr


def test_one_real_region(stack: tuple[Checkout, str]) -> None:
    checkout, name = stack
    # `up` ends well only if the relay answers as a client asks it, over what this machine has a route for.
    for _ in range(2):
        done = checkout.relayctl("up", name, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
    before = server_and_address(name)
    with checkout.pulumi() as pulumi:
        for arguments in (("refresh", "--yes"), ("preview", "--expect-no-changes")):
            done = pulumi(*arguments, "--stack", name, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
    done = checkout.relayctl("rebuild", name, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    after = server_and_address(name)
    assert after[0] != before[0]
    assert after[1] == before[1]


def server_and_address(stack: str) -> tuple[int, str]:
    server = hcloud.Client(token=os.environ["HCLOUD_TOKEN"]).servers.get_by_name(server_name(stack))
    assert server is not None
    assert server.id is not None
    assert server.public_net is not None
    assert server.public_net.ipv4 is not None
    return server.id, server.public_net.ipv4.ip
