"""A relay that `make up` brought up on a host of its own, and a client outside of that host."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkout import STACK, Checkout
from tests.docker_host import DockerHost
from tests.relay.outside import Outside, outside
from tests.relay.sessions import Sessions, sessions

DOMAIN = "derp.localhost"
CADDY = "caddy-test"
DERPER = "derper-test"


@dataclass(frozen=True)
class RunningRelay:
    """A relay that `up` brought up on ports 80, 443 and 3478 of a host, and a client outside of it."""

    checkout: Checkout
    host: DockerHost
    outside: Outside
    settings: dict[str, Any]
    said: str

    @property
    def ca(self) -> Path:
        match = re.search(r"--cacert (\S+)", self.said)
        assert match, self.said
        return Path(match[1])

    def derp_map(self) -> dict[str, Any]:
        """Return the DERP map that `up` ended with (tailscale ``tailcfg.DERPMap``)."""
        policy = self.said[self.said.index("\n{") : self.said.index("\n}") + 2]
        return dict(json.loads(policy)["derpMap"])

    def write_derp_map(self, path: Path, form: str) -> None:
        """Have `relayctl map` write the DERP map in one of its formats."""
        done = self.checkout.relayctl("map", STACK, "--format", form, "--output", str(path))
        assert done.returncode == 0, done.stdout + done.stderr

    def server_key(self) -> str:
        """Return the key that the relay tells a client in the DERP handshake."""
        probed = self.probe()
        found = [f for f in probed["findings"] if f["check"] == "derp-upgrade"]
        assert found, probed
        keys = {f["facts"]["server_key"] for f in found}
        assert len(keys) == 1, probed
        return str(keys.pop())

    def probe(self) -> dict[str, Any]:
        """Run our own probe outside of the host."""
        done = self.outside.run(
            [
                *[sys.executable, "-m", "probe", "--domain", DOMAIN, "--ca", str(self.ca), "--json"],
                # as `relayctl probe` gives a relay, on a machine that has much else to do
                *["--timeout", "20"],
                *["--address", self.outside.here_ipv4, "--address", self.outside.here_ipv6],
            ],
            cwd=self.checkout.folder,
        )
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    def get(self, name: str, path: str = "/", scheme: str = "https") -> str:
        """Return the head and body that curl gets for a site, from outside, over IPv4."""
        port = 443 if scheme == "https" else 80
        done = self.outside.run(
            [
                *[
                    "curl",
                    "--silent",
                    "--show-error",
                    "--include",
                    "--max-time",
                    "10",
                    "--cacert",
                    str(self.ca),
                ],
                *["--resolve", f"{name}:{port}:{self.outside.here_ipv4}", f"{scheme}://{name}{path}"],
            ]
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sessions(
        self, folder: Path, *, pairs: int, interval: str
    ) -> contextlib.AbstractContextManager[Sessions]:
        """Hold sessions from outside of the host, over IPv4 and IPv6."""
        outside = self.outside
        return sessions(
            outside.command([]),
            ca=self.ca,
            domain=DOMAIN,
            connect=[f"{outside.here_ipv4}:443", f"[{outside.here_ipv6}]:443"],
            pairs=pairs,
            interval=interval,
            folder=folder,
        )

    def up(self, **changed: Any) -> str:
        """Write the stack's file with the settings ``changed``, bring it up, and return what is said."""
        self.checkout.write_stack({**self.settings, **changed})
        done = self.checkout.relayctl("up", STACK, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def assert_nothing_to_change(self) -> None:
        """Assert that an update changes nothing, and that a refresh leaves nothing to change."""
        with self.checkout.pulumi() as pulumi:
            for arguments in (
                ("up", "--yes", "--skip-preview", "--expect-no-changes", "--stack", STACK),
                ("refresh", "--yes", "--skip-preview", "--stack", STACK),
                ("preview", "--diff", "--expect-no-changes", "--stack", STACK),
            ):
                done = pulumi(*arguments)
                assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def running_relay(host: DockerHost, folder: Path, **settings: Any) -> Iterator[RunningRelay]:
    """Bring up a relay on ``host`` with these settings and, where they leave it open, those of a test."""
    with outside(host.namespace) as client:
        checkout = Checkout.make(folder, host)
        settings = {
            "domain": DOMAIN,
            "region": {"id": 999, "code": "test", "name": "Test"},
            "host": {"ipv4": client.here_ipv4, "ipv6": client.here_ipv6},
            "derper": {"containerName": DERPER},
            "caddy": {"image": "build", "containerName": CADDY},
            "certificate": {"source": "internal"},
            **settings,
        }
        checkout.write_stack(settings)
        done = checkout.relayctl("up", STACK, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        yield RunningRelay(checkout, host, client, settings, done.stdout)
