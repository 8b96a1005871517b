"""A cloud of the test's own, and a checkout that brings relays up in it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcloud
import requests

from sandbox.hcloud_api.server import ServedApi, serve
from sandbox.machines.namespaces import NamespaceMachines
from tests.checkout import Checkout
from tests.requirements import require


@dataclass(frozen=True)
class Cloud:
    """A Hetzner Cloud API on loopback whose servers boot, and a checkout with its token."""

    api: ServedApi
    machines: NamespaceMachines
    checkout: Checkout

    @property
    def client(self) -> hcloud.Client:
        """The official client, with the project's token."""
        return hcloud.Client(token=self.api.token, api_endpoint=self.api.endpoint, poll_interval=0.1)

    def ask_sandbox(self, method: str, path: str, /, **fields: Any) -> Any:
        """Ask the API for what only a sandbox has, such as faults, and return its answer."""
        answer = requests.request(
            method,
            f"{self.api.sandbox}{path}",
            headers={"Authorization": f"Bearer {self.api.token}"},
            json=fields or None,
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def asked(self) -> list[str]:
        """Return what the API was asked for, and how it answered, such as ``POST /servers 201``."""
        told = self.ask_sandbox("GET", "/requests")["requests"]
        return [f"{each['method']} {each['path']} {each['status']}" for each in told]

    @property
    def here(self) -> list[str]:
        """The addresses of this machine on the servers' network: from where SSH is let in."""
        return [
            str(ipaddress.ip_network(network)[1])
            for network in (self.machines.ipv4_network, self.machines.ipv6_network)
        ]

    def settings(self, code: str = "nbg", number: int = 901, **values: Any) -> dict[str, Any]:
        """Return the settings of a region whose programs are built here and that signs its own certificates.

        A group among ``values`` is added to what is there.
        """
        given: dict[str, Any] = {
            "domain": f"derp-{code}.example.com",
            "region": {"id": number, "code": code},
            "host": {"kind": "hetzner", "location": "nbg1", "sshFrom": self.here},
            "derper": {"image": "build"},
            "caddy": {"image": "build"},
            "certificate": {"source": "internal"},
        }
        for key, value in values.items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
        return given


def require_machines() -> None:
    """Skip the test where no servers can be made."""
    require(os.geteuid() == 0, "servers as network namespaces need root", "sudo make test")
    for program, package in (
        ("dockerd", "docker.io"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("nsenter", "util-linux"),
        ("sshd", "openssh-server"),
    ):
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        require(found, f"{program} is missing", f"apt-get install {package}")


@contextlib.contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Make a cloud with its servers and a checkout in ``folder``; remove all servers at the end.

    Skips the test where it cannot be made.
    """
    require_machines()
    (folder / "checkout").mkdir()
    checkout = Checkout.make(folder / "checkout", None)
    machines = NamespaceMachines(folder / "machines", name="test")
    try:
        with serve(machines) as api:
            checkout.environment |= {"HCLOUD_ENDPOINT": api.endpoint, "HCLOUD_TOKEN": api.token}
            yield Cloud(api, machines, checkout)
    finally:
        machines.close()
