"""Runs that are killed or interrupted at any moment, and what the next one makes of it."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.checkout import STACK, Checkout
from tests.docker_host import DockerHost
from tests.interruptions import (
    Killer,
    assert_no_complaint,
    cut_short,
    interrupt,
    kill_all,
    kill_it,
    processes,
    started,
    terminate,
    wait_for,
)

CADDY = "caddy-test"
DERPER = "derper-test"
NETWORK = "relay-test"


@dataclass
class Relay:
    """A stack on a host of its own, whose runs can be cut short."""

    checkout: Checkout
    host: DockerHost
    settings: dict[str, Any]
    keys: list[bytes] = field(default_factory=list)

    def up(self) -> str:
        """Bring the stack up with nobody there to answer a question; it must end well."""
        done = self.checkout.relayctl("up", STACK)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def assert_whole(self) -> None:
        """Assert that all of the relay is there, once, with its first key, and that Pulumi knows it."""
        client = self.host.client()
        self.assert_healthy()
        networks = sorted(network.name for network in client.networks.list())
        assert networks == sorted(["bridge", "host", "none", NETWORK])
        self.keys.append(self.key())
        assert len(set(self.keys)) == 1
        with self.checkout.pulumi() as pulumi:
            done = pulumi("up", "--yes", "--skip-preview", "--expect-no-changes", "--stack", STACK)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "interrupted while" not in done.stdout + done.stderr
        assert not list(self.checkout.folder.glob("state/.pulumi/locks/**/*.json"))
        assert processes(self.checkout, STACK) == []

    # Containers that have just started are asked how they are every ten seconds.
    @retry(
        retry=retry_if_exception_type(AssertionError),
        stop=stop_after_delay(60),
        wait=wait_fixed(1),
        reraise=True,
    )
    def assert_healthy(self) -> None:
        """Assert that there are the relay's containers and no others, and that they become healthy."""
        found = self.host.client().containers.list(all=True)
        health = {container.name: container.attrs["State"]["Health"]["Status"] for container in found}
        assert health == {CADDY: "healthy", DERPER: "healthy"}

    def key(self) -> bytes:
        volume = self.host.client().volumes.get("relay-test_derp_data")
        return Path(volume.attrs["Mountpoint"], "derper.key").read_bytes()


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Relay:
    """Return a stack of which nothing is up yet, on an engine that has its images' layers."""
    checkout = Checkout.make(tmp_path_factory.mktemp("interrupted"), host)
    settings: dict[str, Any] = {
        "domain": "derp.localhost",
        "region": {"id": 999, "code": "test", "name": "Test"},
        "host": {"ipv4": "127.0.0.1", "ipv6": "::1"},
        "network": {"name": NETWORK},
        "volumes": {"prefix": "relay-test_"},
        "derper": {"containerName": DERPER},
        "caddy": {"image": "build", "containerName": CADDY},
        "certificate": {"source": "internal"},
    }
    checkout.write_stack(settings)
    return Relay(checkout, host, settings)


def test_killed_at_every_stage_of_the_first_run(relay: Relay) -> None:
    """Each goes on from what the one before left."""
    for killer, at in (
        (kill_it, "starting the stand-in"),
        (kill_all, "Bringing up"),
        (kill_it, "Updating"),
        (kill_all, "RemoteImage derper-built creating"),
        (kill_it, "Network network creat"),
        (kill_all, "Container derper creating"),
        (kill_it, "Container caddy creating"),
        (kill_all, "Configuration configuration creating"),
    ):
        said = cut_short(relay.checkout, killer, "up", STACK, at=at)
        assert "The relay is up" not in said
        assert_no_complaint(said)
    relay.up()
    relay.assert_whole()


def test_killed_again_and_again_while_both_containers_are_replaced(relay: Relay) -> None:
    """At moments spread over the whole length of a run."""
    begun = time.monotonic()
    self_ended = 0
    moments = 4
    length = 18.0
    for number in range(moments):
        # a log driver cannot be changed in place
        logs = ("engine", "rotated")[number % 2]
        relay.checkout.write_stack(
            {
                **relay.settings,
                "derper": {"containerName": DERPER, "logs": logs},
                "caddy": {"image": "build", "containerName": CADDY, "logs": logs},
            }
        )
        killer = (kill_it, kill_all)[number % 2]
        said = cut_short(relay.checkout, killer, "up", STACK, after=length * (number + 0.5) / moments)
        assert_no_complaint(said)
        self_ended += "The relay is up" in said
    assert self_ended < moments / 2, f"the kills came too late: {time.monotonic() - begun:.0f} s"
    relay.checkout.write_stack(relay.settings)
    relay.up()
    relay.assert_whole()


@pytest.mark.parametrize("killer", [interrupt, terminate])
def test_asked_to_end_while_waiting_for_health(relay: Relay, killer: Killer) -> None:
    """It ends soon, in order, with one line; nothing is left locked, or running."""
    relay.host.client().containers.get(DERPER).remove(force=True)
    begun: list[float] = []

    def ask(process: subprocess.Popen[bytes]) -> None:
        wait_for(lambda: DERPER in {c.name for c in relay.host.client().containers.list()}, 30)
        begun.append(time.monotonic())
        killer(process)

    said = cut_short(relay.checkout, ask, "up", STACK, at="Container derper creating")
    assert time.monotonic() - begun[0] < 15
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "Interrupted. What is done is kept: the same command goes on from there."
    assert not list(relay.checkout.folder.glob("state/.pulumi/locks/**/*.json"))
    assert processes(relay.checkout, STACK) == []
    relay.up()
    relay.assert_whole()


def test_killed_while_taking_down_and_another_run_comes_while_it_lasts(relay: Relay) -> None:
    cut_short(relay.checkout, kill_all, "down", STACK, at="Container caddy deleting")
    said = cut_short(relay.checkout, kill_it, "down", STACK, at="Destroying")
    assert_no_complaint(said)
    relay.up()
    relay.assert_whole()
    with started(relay.checkout, "down", STACK) as (process, log):
        wait_for(lambda: "Container caddy deleting" in log.read_text(), 60)
        # However busy the machine is, the other one comes before this one has ended.
        process.send_signal(signal.SIGSTOP)
        with started(relay.checkout, "up", STACK) as (other, other_log):
            wait_for(lambda: "waiting for another run" in other_log.read_text(), 60)
            process.send_signal(signal.SIGCONT)
            assert process.wait(120) == 0, log.read_text()
            assert other.wait(300) == 0, other_log.read_text()
    relay.assert_whole()
