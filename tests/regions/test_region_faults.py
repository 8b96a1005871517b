"""A region whose cloud refuses, fails or is slow, and runs that are killed; what the next run makes of it.

The tests are the life of one region, in order: each goes on from what the one before left.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interruptions import assert_no_complaint, cut_short, kill_all, kill_it, processes, wait_for
from tests.regions.cloud import cloud
from tests.regions.region import CONTAINERS, MAKING, Region

STACK = "nbg"
SERVER = "derp-nbg"
_KEY_VOLUME = "derp-relays-nbg_derp_data"
_PULUMI_TYPES = {
    "hcloud:index/server:Server": "server",
    "hcloud:index/firewall:Firewall": "firewall",
    "hcloud:index/sshKey:SshKey": "SSH key",
    "hcloud:index/primaryIp:PrimaryIp": "primary IP",
}


@dataclass(frozen=True)
class FailingRegion(Region):
    """A region whose API can be told to fail, and whose runs are looked at when they do."""

    def fault(self, **fault: Any) -> None:
        """Ask the API for a fault, as `sandbox.hcloud_api.faults` has it."""
        self.cloud.ask_sandbox("POST", "/faults", **fault)

    def configure(self, **values: Any) -> None:
        self.cloud.checkout.write_stack(self.cloud.settings(self.stack, **values), self.stack)

    def refused(self, command: str = "up") -> str:
        """Run what must end with one error for people; return the error."""
        done = self.cloud.checkout.relayctl(command, self.stack, timeout=MAKING)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        _, found, error = done.stdout.partition("\nerror: ")
        assert found, done.stdout + done.stderr
        assert "\nerror: " not in error
        return error

    def killed(self, killer: Any, at: str, *, after: float = 0) -> str:
        said = cut_short(self.cloud.checkout, killer, "up", self.stack, at=at, after=after)
        assert "The relay is up" not in said
        assert_no_complaint(said)
        return said

    def there(self) -> set[tuple[str, str]]:
        """Return what the API has, by kind and id."""
        client = self.cloud.client
        return {
            (noun, str(each.id))
            for noun, kind in (
                ("server", client.servers),
                ("firewall", client.firewalls),
                ("SSH key", client.ssh_keys),
                ("primary IP", client.primary_ips),
            )
            for each in kind.get_all()
        }

    def known(self) -> set[tuple[str, str]]:
        """Return what the stack's state says that there is, by kind and id."""
        (path,) = self.cloud.checkout.folder.glob(f"state/.pulumi/stacks/*/{self.stack}.json")
        deployment = json.loads(path.read_text())["checkpoint"]["latest"]
        return {
            (_PULUMI_TYPES[each["type"]], each["id"])
            for each in deployment.get("resources") or []
            if each["type"] in _PULUMI_TYPES
        }

    def assert_nothing_orphaned(self) -> None:
        assert self.there() == self.known()

    @contextlib.contextmanager
    def first_boot(self, command: str) -> Iterator[None]:
        """Have cloud-init begin its script with ``command``, on servers that are made in the context."""
        rendering = self.cloud.checkout.folder / "render/cloud_init.py"
        good = rendering.read_text()
        assert good.count('"set -eu"') == 1
        rendering.write_text(good.replace('"set -eu"', repr(command)))
        try:
            yield
        finally:
            rendering.write_text(good)

    def relay_key(self) -> bytes:
        folder = self.on_server("docker", "volume", "inspect", "--format", "{{.Mountpoint}}", _KEY_VOLUME)
        return self.on_server("cat", f"{folder.decode().strip()}/derper.key")

    def assert_whole(self) -> None:
        """Assert that all is there, once, that Pulumi knows it, and that nothing of a run goes on."""
        self.assert_nothing_orphaned()
        assert {kind for kind, _ in self.there()} == set(_PULUMI_TYPES.values())
        assert len(self.there()) == len(_PULUMI_TYPES) + 1, "of primary IPs there are two"
        assert self.server.status == "running"
        assert set(self.containers()) == set(CONTAINERS)
        assert len(self.on_server("docker", "ps", "--all", "--quiet").split()) == len(CONTAINERS)
        done = self.pulumi("preview", "--expect-no-changes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "interrupted while" not in done.stdout + done.stderr
        assert processes(self.cloud.checkout, self.stack) == []


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingRegion]:
    with cloud(tmp_path_factory.mktemp("faults")) as made:
        yield FailingRegion(made, STACK)


@pytest.fixture
def region(life: FailingRegion) -> Iterator[FailingRegion]:
    """Yield the region with its settings as they should be, and no faults but those of the test."""
    life.configure()
    yield life
    life.cloud.ask_sandbox("DELETE", "/faults")


def test_what_hetzner_has_not_is_told_before_anything_is_made(region: FailingRegion) -> None:
    region.configure(host={"serverType": "cx99", "dnsZone": "example.com"})
    error = region.refused()
    assert "there is no server type cx99" in error
    assert "no zone example.com" in error
    assert not [one for one in region.cloud.asked() if not one.startswith("GET ")]
    assert region.there() == set()


def test_an_address_that_is_made_but_cannot_be_read_is_made_anew(region: FailingRegion) -> None:
    """The provider forgets it."""
    region.fault(
        method="GET", path=r"/primary_ips/\d+", times=2, status=503, code="unavailable", message="come later"
    )
    error = region.refused()
    assert "come later (unavailable" in error
    # Also what is found by the next run, which is refused for another reason.
    region.configure(host={"serverType": "cx99"})
    region.refused()
    region.assert_nothing_orphaned()


def test_an_order_that_is_refused_leaves_only_what_is_known(region: FailingRegion) -> None:
    message = "unable to find a location with enough capacity"
    region.fault(method="POST", path="/servers", status=422, code="resource_unavailable", message=message)
    error = region.refused()
    assert f"{message} (resource_unavailable" in error
    assert error.count(message) == 1, error
    assert region.cloud.client.servers.get_all() == []
    region.assert_nothing_orphaned()


def test_an_order_whose_answer_is_lost(region: FailingRegion) -> None:
    """There is a server then that no state has, until the next run: the next test's."""
    message = "an internal error occurred"
    region.fault(
        method="POST", path="/servers", status=500, code="server_error", message=message, applied=True
    )
    error = region.refused()
    assert error.count(f"{message} (server_error") == 1, error
    assert ("server", str(region.server.id)) not in region.known()


def test_requests_beyond_the_limit_are_repeated_and_a_killed_order_is_no_second_server(
    region: FailingRegion,
) -> None:
    """It is not in the state: it was still being made when all was killed."""
    lost = region.server
    for method, path in (("GET", "/server_types"), ("POST", "/servers")):
        region.fault(
            method=method, path=path, status=429, code="rate_limit_exceeded", message="limit exceeded"
        )
    region.fault(action="create_server", seconds=15)

    def when_ordered(process: subprocess.Popen[bytes]) -> None:
        wait_for(region.cloud.client.servers.get_all, 60)
        kill_all(process)

    region.killed(when_ordered, at="Server host creating")
    asked = region.cloud.asked()
    assert "GET /server_types 429" in asked
    assert "POST /servers 429" in asked
    first = region.server
    assert first.id != lost.id
    assert ("server", str(first.id)) not in region.known()

    region.cloud.ask_sandbox("DELETE", "/faults")
    region.fault(action="create_server", error={"code": "server_error", "message": "creation failed"})
    # For the next test: cloud-init runs long enough to be killed at.
    with region.first_boot("sleep 15"):
        error = region.refused()
    assert error.count("creation failed (server_error") == 1, error
    assert region.server.id != first.id
    region.assert_nothing_orphaned()


def test_a_server_whose_creation_failed_is_switched_on_and_kills_do_not_matter(region: FailingRegion) -> None:
    """While cloud-init runs, and then while containers start."""
    server = region.server
    assert server.status == "off"
    said = region.killed(kill_all, at="cloud-init: ")
    assert f"Switching on the server {SERVER}" in said
    region.killed(kill_it, at="Container derper creating")
    region.up()
    assert region.server.id == server.id
    region.assert_whole()


def test_a_change_of_type_that_fails_is_taken_up_again(region: FailingRegion) -> None:
    server = region.server
    region.configure(host={"serverType": "cx33"})
    region.fault(action="change_server_type", error={"code": "server_error", "message": "no such luck"})
    error = region.refused()
    assert error.count("no such luck (server_error") == 1, error
    assert region.server.status == "off"
    region.up()
    assert region.server.id == server.id
    assert region.server.server_type.name == "cx33"
    region.assert_whole()


def test_errors_of_cloud_init_are_told_and_a_rebuild_mends_them_with_no_key_lost(
    region: FailingRegion,
) -> None:
    """The copies of the volumes wait on this machine until there is a server to put them on."""
    region.configure(host={"serverType": "cx33"})
    key = region.relay_key()
    with region.first_boot("echo 'the disk is on fire' >&2; exit 3"):
        error = region.refused("rebuild")
    assert "cloud-init failed on" in error
    assert "the disk is on fire" in error
    region.assert_nothing_orphaned()
    broken = region.server
    region.fault(action="create_server", seconds=10)
    region.relayctl("rebuild", STACK)
    assert region.server.id != broken.id
    assert region.relay_key() == key
    region.assert_whole()
