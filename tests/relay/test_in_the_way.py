"""What stands in the way of `up`: told by name, with what to do, nothing touched; and gone, it works."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relayctl import failure, preflight
from relayctl.prerequisites import image_contexts
from relayctl.prerequisites.progress import Progress
from relayctl.stack import UpdateFailedError
from settings import read_stack_file
from tests.checkout import STACK, Checkout
from tests.docker_host import DockerHost, docker_host

CADDY = "caddy-test"
DERPER = "derper-test"
NETWORK = "relay-test"
FILE = f"stacks/Pulumi.{STACK}.yaml"

SETTINGS: dict[str, Any] = {
    "domain": "derp.localhost",
    "region": {"id": 999, "code": "test", "name": "Test"},
    "host": {"ipv4": "127.0.0.1", "ipv6": "::1"},
    "network": {"name": NETWORK},
    "volumes": {"prefix": "relay-test_"},
    # without health checks `up` need not wait for them
    "derper": {"containerName": DERPER, "healthcheck": []},
    "caddy": {"image": "build", "containerName": CADDY, "healthcheck": []},
    "certificate": {"source": "internal"},
}


@pytest.fixture(scope="module")
def checkout(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout.make(tmp_path_factory.mktemp("way"), host)
    made.write_stack(SETTINGS)
    return made


@dataclass
class Refusal:
    """What `up` said when it refused."""

    said: str

    def names(self, *parts: str) -> None:
        missing = [part for part in parts if part not in self.said]
        assert not missing, f"{missing} not in:\n{self.said}"


def refused(checkout: Checkout, env: dict[str, str] | None = None) -> Refusal:
    """Run `up`, which must refuse and touch nothing."""
    before = (state(checkout), engine(checkout.host))
    kept = dict(checkout.environment)
    checkout.environment.update(env or {})
    try:
        done = checkout.relayctl("up", STACK)
    finally:
        checkout.environment = kept
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert said.count("to mend it:") == 1, said
    assert (state(checkout), engine(checkout.host)) == before
    return Refusal(said)


def engine(host: DockerHost) -> tuple[list[str], list[str], list[str]]:
    client = host.client()
    return (
        sorted(str(container.id) for container in client.containers.list(all=True)),
        sorted(str(network.id) for network in client.networks.list()),
        sorted(str(volume.id) for volume in client.volumes.list()),
    )


def state(checkout: Checkout) -> list[Any]:
    """Return the resources that the stack's state has, none for a stack that is only made."""
    found = list(checkout.folder.glob(f"state/.pulumi/stacks/*/{STACK}.json"))
    latest = [json.loads(path.read_text())["checkpoint"].get("latest") or {} for path in found]
    return [one.get("resources") for one in latest if one.get("resources")]


def works(checkout: Checkout) -> str:
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def bound(host: DockerHost, protocol: str, port: int) -> Iterator[int]:
    """Hold a port of the host with a process; yield its number."""
    kind = {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}[protocol]
    code = (
        f"import socket, time; s = socket.socket(socket.AF_INET, socket.{kind}); s.bind(('0.0.0.0', {port}))"
        f"; {'s.listen()' if protocol == 'tcp' else 'pass'}; print('bound', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen(host.command([sys.executable, "-c", code]), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def foreign_image(host: DockerHost) -> str:
    """Return an image that is not of this project, for containers of somebody else's."""
    context = image_contexts.fill("derper", Progress(), goarch=_goarch(host))
    host.client().images.build(path=str(context.context), tag="somebody/else:1")
    return "somebody/else:1"


def _goarch(host: DockerHost) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[host.client().info()["Architecture"]]


def test_no_docker_socket(checkout: Checkout) -> None:
    address = "unix:///nowhere/docker.sock"
    refused(checkout, {"DOCKER_HOST": address}).names(
        address, "DOCKER_HOST", "there is no /nowhere/docker.sock"
    )


def test_docker_socket_that_this_user_may_not_use(checkout: Checkout) -> None:
    """Without the capability that lets root pass by the modes of files, on a socket of somebody else."""
    socket = Path(checkout.host.address.removeprefix("unix://"))
    mode = socket.stat().st_mode
    os.chown(socket, 65534, 65534)
    socket.chmod(0o600)
    try:
        done = checkout.host.run(
            [
                *["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"],
                *[sys.executable, "-m", "relayctl", "up", STACK],
            ],
            timeout=60,
            env=checkout.environment,
            cwd=checkout.folder,
        )
    finally:
        os.chown(socket, 0, 0)
        socket.chmod(mode & 0o777)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert str(socket) in said
    assert "may not open" in said
    assert "the group docker" in said.partition("to mend it:")[2], said


@pytest.mark.parametrize(
    ("protocol", "port", "key"),
    [
        ("tcp", 80, "caddy.httpPort"),
        ("tcp", 443, "caddy.httpsPort"),
        ("udp", 443, "caddy.httpsPort"),
        ("udp", 3478, "derper.stunPort"),
    ],
)
def test_port_that_a_process_holds(checkout: Checkout, protocol: str, port: int, key: str) -> None:
    with bound(checkout.host, protocol, port) as pid:
        refused(checkout).names(FILE, f"port {port}/{protocol} is taken by python", f"(pid {pid})", key)


def test_port_and_names_that_others_have_are_told_at_once(checkout: Checkout, foreign_image: str) -> None:
    client = checkout.host.client()
    network = client.networks.create(NETWORK)
    named = client.containers.create(foreign_image, name=DERPER)
    port = client.containers.run(
        foreign_image,
        ["-hostname=x", "-a=:80", "-c=/k"],
        name="neighbour",
        ports={"80/tcp": 80},
        detach=True,
    )
    try:
        refused(checkout).names(
            FILE,
            f"container {DERPER} already",
            "somebody/else:1",
            "derper.containerName",
            f"network {NETWORK} already",
            "network.external: true",
            "port 80/tcp is taken by the container neighbour",
            "caddy.httpPort",
        )
    finally:
        for container in (named, port):
            container.remove(force=True)
        network.remove()


def test_network_that_is_said_to_exist(checkout: Checkout) -> None:
    checkout.write_stack({**SETTINGS, "network": {"name": NETWORK, "external": True}})
    try:
        refused(checkout).names(FILE, f"no network {NETWORK}", "network.external", "docker network create")
    finally:
        checkout.write_stack(SETTINGS)


@pytest.mark.parametrize("proxy", ["", "http://user:secret@127.0.0.1:9"])
def test_image_that_no_network_brings(checkout: Checkout, proxy: str) -> None:
    caddy = {**SETTINGS["caddy"], "image": "registry.invalid/caddy:2", "allowUnpinned": True}
    checkout.write_stack({**SETTINGS, "caddy": caddy})
    try:
        refusal = refused(checkout, {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy} if proxy else None)
    finally:
        checkout.write_stack(SETTINGS)
    refusal.names(FILE, "caddy.image", "registry.invalid", "does not answer", "caddy.image to build")
    assert ("through the proxy 127.0.0.1:9" in refusal.said) == bool(proxy)
    assert "secret" not in refusal.said


def test_with_all_out_of_the_way_it_works_even_behind_a_broken_proxy(checkout: Checkout) -> None:
    """The program and the plugins talk to Pulumi by loopback, which no proxy may come between."""
    broken = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_PROXY": ".corp"}
    kept = dict(checkout.environment)
    checkout.environment.update(broken)
    try:
        works(checkout)
    finally:
        checkout.environment = kept


def test_others_on_the_network_that_has_to_go_are_told_before_anything_goes(
    checkout: Checkout, foreign_image: str
) -> None:
    docker = checkout.host.client()
    other = docker.containers.create(foreign_image, name="blog", network=NETWORK)
    other.start()
    before = engine(checkout.host)
    remedy = f"docker network disconnect {NETWORK} blog"
    try:
        checkout.write_stack(
            {**SETTINGS, "network": {"name": NETWORK, "ipv6Subnet": "fd12:3456:789a:1::/64"}}
        )
        refused(checkout).names("containers of others are on it", remedy)
        checkout.write_stack(SETTINGS)
        done = checkout.relayctl("down", STACK)
        assert done.returncode == 1
        assert remedy in done.stdout
        assert engine(checkout.host) == before
        # What keeps the network is left alone.
        done = checkout.relayctl("up", STACK)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        checkout.write_stack(SETTINGS)
        other.remove(force=True)


def test_a_stack_of_the_same_name_that_another_state_knows_is_left_alone(
    checkout: Checkout, tmp_path: Path
) -> None:
    """Another user of the machine, say: its containers carry the same label, and are no leftovers."""
    kept = dict(checkout.environment)
    containers = {c.id for c in checkout.host.client().containers.list()}
    assert len(containers) == 2
    checkout.environment["PULUMI_BACKEND_URL"] = f"file://{tmp_path}"
    try:
        for command in ("up", "down"):
            done = checkout.relayctl(command, STACK)
            assert "Removing" not in done.stdout
            assert {c.id for c in checkout.host.client().containers.list()} == containers
            if command == "up":
                assert done.returncode == 1
                said = done.stdout + done.stderr
                assert (
                    f"container {DERPER} already, which the stack {STACK} made, here or for another" in said
                )
    finally:
        checkout.environment = kept


def test_stopped_and_removed_by_hand(checkout: Checkout) -> None:
    client = checkout.host.client()
    client.containers.get(DERPER).stop()
    client.containers.get(CADDY).remove(force=True)
    works(checkout)
    assert {container.name for container in client.containers.list()} == {DERPER, CADDY}


def test_bad_settings_do_not_keep_a_stack_up_and_down_twice_is_no_error(checkout: Checkout) -> None:
    checkout.write_stack({**SETTINGS, "domain": "no"})
    done = checkout.relayctl("down", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'no' is a name without a domain" in done.stdout
    assert {DERPER, CADDY}.isdisjoint(c.name for c in checkout.host.client().containers.list(all=True))
    checkout.write_stack(SETTINGS)
    for said in ("Its volumes are gone too", "there is nothing to take down"):
        done = checkout.relayctl("down", STACK, "--volumes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
    assert not [v.name for v in checkout.host.client().volumes.list() if v.name.startswith("relay-test_")]


def test_volumes_that_were_there_are_told(checkout: Checkout) -> None:
    checkout.host.client().volumes.create("relay-test_derp_data")
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    said = "Volumes that are there already are used, with what is in them: relay-test_derp_data."
    assert said in " ".join(done.stdout.split())
    again = checkout.relayctl("up", STACK)
    assert "there already" not in again.stdout


def test_the_copy_of_the_state_is_for_its_owner_alone(checkout: Checkout) -> None:
    copies = list((checkout.folder / ".relayctl").glob("*.json"))
    assert copies
    assert all(path.stat().st_mode & 0o077 == 0 for path in copies)


def test_containers_that_do_not_run_well_show_their_last_words(host: DockerHost, foreign_image: str) -> None:
    """As after an update in which they did not become healthy, which takes two minutes to be told."""
    client = host.client()
    labels = {preflight.STACK_LABEL: "sick"}
    ended = client.containers.run(
        foreign_image, ["-hostname=x", "-nonsense"], name="ended", labels=labels, detach=True
    )
    sick = client.containers.run(
        foreign_image,
        ["-hostname=x", "-a=:80", "-c=/k"],
        name="sick",
        labels=labels,
        healthcheck={"test": ["CMD", "/nothing"], "interval": 10**9, "retries": 1},
        detach=True,
    )
    try:
        deadline = time.monotonic() + 30
        while client.containers.get("sick").attrs["State"]["Health"]["Status"] != "unhealthy":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert ended.wait()["StatusCode"] == 2
        failed = UpdateFailedError("what Docker said", "run it again")
        error = failure.explained(failed, "sick", read_stack_file("article"), client)
    finally:
        for container in (ended, sick):
            container.remove(force=True)
    assert error.what.startswith("what Docker said\n")
    assert "sick is unhealthy; the end of its log (docker logs sick):" in error.what
    assert "derper: serving on :80" in error.what
    assert "ended is exited with status 2; the end of its log (docker logs ended):" in error.what
    assert "print version and exit" in error.what


def test_state_and_lock_that_a_full_disk_cut_short(checkout: Checkout) -> None:
    """The file backend puts what it could write of a file in place of the whole one."""
    works(checkout)
    ids = engine(checkout.host)
    path = next(iter(checkout.folder.glob(f"state/.pulumi/stacks/*/{STACK}.json")))
    with path.open("r+b") as file:
        file.truncate(4096)
    lock = checkout.folder / "state/.pulumi/locks/organization/derp-relays" / STACK
    lock.mkdir(parents=True, exist_ok=True)
    (lock / "cut-short.json.tmp").touch()
    said = works(checkout)
    assert "is damaged" in said
    assert "a lock of test that was not written to its end" in said
    assert engine(checkout.host) == ids


def test_a_state_file_that_a_kill_left_empty(checkout: Checkout) -> None:
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    before = engine(checkout.host)
    next(iter(checkout.folder.glob(f"state/.pulumi/stacks/*/{STACK}.json"))).write_bytes(b"")
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"The state of {STACK}" in done.stdout
    assert engine(checkout.host) == before


def test_notes_beside_the_state_that_a_kill_left_empty(checkout: Checkout) -> None:
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    before = engine(checkout.host)
    for path in (checkout.folder / "state" / ".pulumi").rglob("*.attrs"):
        path.write_bytes(b"")
    done = checkout.relayctl("up", STACK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert engine(checkout.host) == before


def test_disk_full_where_pulumi_keeps_the_state(checkout: Checkout, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "state", tmp_path], check=True)
    kept = dict(checkout.environment)
    checkout.environment["PULUMI_BACKEND_URL"] = f"file://{tmp_path}"
    try:
        subprocess.run(["cp", "-a", f"{checkout.folder}/state/.", tmp_path], check=True)
        filler = tmp_path / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"\0" * 4096)
        done = checkout.relayctl("up", STACK)
        assert done.returncode == 1, done.stdout
        assert "no space left on device" in done.stdout
        assert "make room where Pulumi keeps the state" in done.stdout
        filler.unlink()
        works(checkout)
    finally:
        checkout.environment = kept
        subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def small_host() -> Iterator[DockerHost]:
    with docker_host(data_size="30m") as made:
        yield made


def test_disk_full_where_docker_keeps_its_data(small_host: DockerHost, tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "checkout", small_host)
    checkout.write_stack(SETTINGS)
    done = checkout.relayctl("up", STACK)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "no space left on device" in said
    assert f"make room where Docker keeps its data ({small_host.folder}/data)" in said
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,size=500m", small_host.folder / "data"], check=True)
    works(checkout)


def test_a_stack_without_a_passphrase(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE", raising=False)
    kept = dict(checkout.environment)
    del checkout.environment["PULUMI_CONFIG_PASSPHRASE"]
    try:
        checkout.write_stack(SETTINGS, "secretive")
        done = checkout.relayctl("up", "secretive")
    finally:
        checkout.environment.clear()
        checkout.environment.update(kept)
    assert done.returncode == 1
    assert "to mend it: export PULUMI_CONFIG_PASSPHRASE=..." in done.stdout
