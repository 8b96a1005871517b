"""The user data in the hands of what reads it: cloud-init, sshd, nft, apt's gpg, and a server that boots."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from relayctl.prerequisites.errors import PrerequisiteError
from render.cloud_init import DOCKER_KEY, cloud_init
from sandbox.machines import MachineError, MachineSpec
from sandbox.machines.cloud_init_package import cloud_init_command
from sandbox.machines.namespaces import NamespaceMachines
from ssh import connection as connection_module
from ssh.connection import Connection
from ssh.keys import new_private_key, public_key
from ssh.readiness import wait_until_ready
from tests.requirements import require

HOST_KEY = new_private_key("host")
DEPLOY_KEY = new_private_key("deploy")


def rendered(image: str = "debian-12") -> str:
    return cloud_init(
        host_private_key=HOST_KEY,
        host_public_key=public_key(HOST_KEY),
        deploy_public_keys=[public_key(DEPLOY_KEY)],
        image=image,
    )


def file(path: str) -> str:
    files: list[dict[str, Any]] = yaml.safe_load(rendered())["write_files"]
    (content,) = [entry["content"] for entry in files if entry["path"] == path]
    return str(content)


def schema(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Have Debian's own cloud-init judge ``text``."""
    try:
        command = cloud_init_command()
    except PrerequisiteError as error:
        require(None, error.what, error.mend)
        raise
    path = folder / "user-data"
    path.write_text(text)
    return subprocess.run(
        [*command, "schema", "--config-file", path], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("image", ["debian-12", "debian-13", "ubuntu-24.04"])
def test_cloud_init_takes_it(image: str, tmp_path: Path) -> None:
    done = schema(rendered(image), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Valid cloud-config")


@pytest.mark.parametrize(
    "mistake",
    [
        {"runcmd": "one text"},
        {"swap": {"size": []}},
        {"users": [{"name": "root", "lock_passwd": "perhaps"}]},
        {"write_files": [{"content": "no path"}]},
        {"apt": {"sources": {"docker.list": {"source": 7}}}},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_cloud_init_would_tell_of_a_mistake(mistake: dict[str, Any], tmp_path: Path) -> None:
    config = yaml.safe_load(rendered()) | mistake
    assert schema("#cloud-config\n" + yaml.safe_dump(config), tmp_path).returncode != 0


def test_gpg_knows_the_key_of_dockers_source(tmp_path: Path) -> None:
    require(shutil.which("gpg"), "gpg is missing", "apt-get install gnupg")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--no-autostart", "--batch", "--with-colons"]
    subprocess.run([*gpg, "--import", str(DOCKER_KEY)], check=True, capture_output=True)
    listed = subprocess.run([*gpg, "--check-sigs"], check=True, capture_output=True, text=True).stdout
    lines = [line.split(":") for line in listed.splitlines()]
    fingerprint, _of_subkey = (line[9] for line in lines if line[0] == "fpr")
    assert fingerprint == "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
    # the user's name and the key that signs are both the first key's word, and neither has an end
    assert [line[1] for line in lines if line[0] == "sig"] == ["!", "!"]
    assert [line[6] for line in lines if line[0] in ("pub", "sub")] == ["", ""]


def test_sshd_takes_its_settings(tmp_path: Path) -> None:
    sshd = "/usr/sbin/sshd"
    require(Path(sshd).exists(), "sshd is missing", "apt-get install openssh-server")
    require(os.geteuid() == 0, "sshd's own check needs root", "sudo make test")
    key = tmp_path / "host_key"
    key.touch(mode=0o600)
    key.write_text(HOST_KEY)
    settings = file("/etc/ssh/sshd_config.d/10-derp-relays.conf")
    (tmp_path / "own.conf").write_text(settings.replace("/etc/ssh/ssh_host_ed25519_key", str(key)))
    # what comes after it does not count
    (tmp_path / "sshd_config").write_text(
        f"Include {tmp_path}/own.conf\nPasswordAuthentication yes\nPermitRootLogin yes\nMaxSessions 10\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    done = subprocess.run(
        [sshd, "-T", "-f", tmp_path / "sshd_config"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert {
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin without-password",
        "maxsessions 200",
        "maxstartups 100:30:200",
    } <= set(lines)
    assert [line for line in lines if line.startswith("hostkey ")] == [f"hostkey {key}"]


# Says what becomes of a connection to port 80 of each address that it is given.
_CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 80), 2).close()
        print("answers")
    except OSError as error:
        print(type(error).__name__)
"""
_LISTEN = """
import socket
listener = socket.create_server(("0.0.0.0", 80))
print("listens", flush=True)
while True: listener.accept()[0].close()
"""


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


@contextlib.contextmanager
def cloud() -> Iterator[tuple[str, str]]:
    """Yield the namespaces of a server and of a container behind it; the metadata service is beyond."""
    require(os.geteuid() == 0, "namespaces need root", "sudo make test")
    for command, package in (("ip", "iproute2"), ("nft", "nftables")):
        require(shutil.which(command), f"{command} is missing", f"apt-get install {package}")
    prefix = f"ci-{os.getpid()}-{secrets.token_hex(2)}"
    container, server, beyond = (f"{prefix}-{name}" for name in ("c", "s", "b"))
    listener: subprocess.Popen[str] | None = None
    try:
        for namespace in (container, server, beyond):
            run("ip", "netns", "add", namespace)
        for near, near_address, far, far_address in (
            (container, "172.30.1.2/24", "in", "172.30.1.1/24"),
            (beyond, "172.31.1.1/24", "out", "172.31.1.2/24"),
        ):
            run("ip", "-n", near, "link", "add", "uplink", "type", "veth", "peer", far, "netns", server)
            for namespace, link, address in ((near, "uplink", near_address), (server, far, far_address)):
                run("ip", "-n", namespace, "address", "add", address, "dev", link)
                run("ip", "-n", namespace, "link", "set", link, "up")
        run("ip", "-n", beyond, "address", "add", "169.254.169.254/32", "dev", "uplink")
        run("ip", "-n", beyond, "route", "add", "172.30.1.0/24", "via", "172.31.1.2")
        run("ip", "-n", container, "route", "add", "default", "via", "172.30.1.1")
        run("ip", "-n", server, "route", "add", "default", "via", "172.31.1.1")
        run("ip", "netns", "exec", server, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        listener = subprocess.Popen(
            ["ip", "netns", "exec", beyond, sys.executable, "-c", _LISTEN], stdout=subprocess.PIPE, text=True
        )
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listens\n"
        yield server, container
    finally:
        if listener is not None:
            listener.kill()
            listener.communicate()
        for namespace in (container, server, beyond):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


def test_containers_do_not_reach_the_metadata_service_and_the_server_does(tmp_path: Path) -> None:
    rules = tmp_path / "containers.nft"
    rules.write_text(file("/etc/derp-relays/containers.nft"))
    with cloud() as (server, container):

        def asked(namespace: str) -> list[str]:
            addresses = ("169.254.169.254", "172.31.1.1")
            connect = ("ip", "netns", "exec", namespace, sys.executable, "-c", _CONNECT, *addresses)
            return run(*connect).split()

        assert asked(container) == ["answers", "answers"]
        # it is loaded at every start of the engine
        for _ in range(2):
            run("ip", "netns", "exec", server, "nft", "-f", rules)
            assert asked(container) == ["ConnectionRefusedError", "answers"]
            assert asked(server) == ["answers", "answers"]
        assert run("ip", "netns", "exec", server, "nft", "list", "ruleset").count("169.254.169.254") == 1


def test_server_boots_with_it_and_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(os.geteuid() == 0, "servers that are namespaces need root", "sudo make test")
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setattr(connection_module, "PROJECT_FOLDER", project)
    try:
        machines = NamespaceMachines(tmp_path / "machines", name="cloud-init")
    except MachineError as error:
        require(None, f"servers cannot be made: {error}", "apt-get install openssh-server nftables docker.io")
        raise
    try:
        address = str(IPv4Network(machines.ipv4_network)[10])
        ipv6 = next(
            net for n, net in enumerate(IPv6Network(machines.ipv6_network).subnets(new_prefix=64)) if n
        )
        machines.create(MachineSpec(1, "relay", address, str(ipv6), rendered(), (), "debian-12", 2048))
        connection = Connection("test", "root", address)
        connection.write(public_key(HOST_KEY), DEPLOY_KEY, None)
        said: list[str] = []
        engine = wait_until_ready(connection, cloud_init=True, seconds=120, say=said.append)
        assert said[-1] == f"Docker Engine {engine.version} answers"
        assert engine.ipv6 is True, engine.warnings
        _is_as_rendered(connection)
        connection.close()
    finally:
        machines.close()


def _is_as_rendered(connection: Connection) -> None:
    def told(*command: str) -> str:
        done = connection.run(*command, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert told("passwd", "--status", "root").split()[1] == "L"
    assert {"passwordauthentication no", "maxsessions 200"} <= set(told("sshd", "-T").splitlines())
    assert told("sh", "-c", "ls /etc/ssh/ssh_host_*_key").split() == ["/etc/ssh/ssh_host_ed25519_key"]
    information = json.loads(told("docker", "info", "--format", "{{json .}}"))
    assert information["LiveRestoreEnabled"] is True
    assert information["LoggingDriver"] == "local"
    (bridge,) = json.loads(told("docker", "network", "inspect", "bridge"))
    assert bridge["EnableIPv6"] is True
    assert "169.254.169.254" in told("nft", "list", "table", "inet", "derp-relays")
    assert told("cat", "/etc/apt/keyrings/docker.asc") == DOCKER_KEY.read_text()
