"""A relay on a server that somebody has already: its Docker is used, and what is wrong with that is told.

The tests are in the order of what the server's owner does: each goes on from the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType

from components.hetzner_host import first_address
from render.cloud_init import cloud_init
from settings import PROJECT
from ssh.keys import new_private_key, public_key
from tests.regions.cloud import Cloud, cloud

STACK = "home"
USER = "deploy"
VOLUMES = {"caddy_config", "caddy_data", "caddy_etc", "caddy_srv", "derp_certs", "derp_data"}


@dataclass(frozen=True)
class ServerYouHave:
    """A server that its owner ordered and set up; the stack knows its addresses and its host key."""

    cloud: Cloud
    server_id: int
    ipv4: str
    ipv6: str
    host_key: str
    owners_key: Path
    requests_before: int

    def settings(self, **host: Any) -> dict[str, Any]:
        values = self.cloud.settings(STACK, 904)
        values["host"] = {
            "kind": "ssh",
            "address": self.ipv4,
            "user": USER,
            "hostKey": self.host_key,
            "ipv4": self.ipv4,
            "ipv6": self.ipv6,
        }
        return {**values, "host": {**values["host"], **host}}

    def up(self, **host: Any) -> tuple[int, str]:
        """Run ``relayctl up`` with these settings of the host; return its exit code and output."""
        self.cloud.checkout.write_stack(self.settings(**host), STACK)
        return self.relayctl("up")

    def relayctl(self, command: str, *arguments: str) -> tuple[int, str]:
        """Run a command with the settings that are there; return its exit code and output."""
        done = self.cloud.checkout.relayctl(command, STACK, *arguments)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    @property
    def stack_file(self) -> Path:
        return self.cloud.checkout.folder / "stacks" / f"Pulumi.{STACK}.yaml"

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command at the server's console; the exit code is the caller's to judge."""
        command = self.cloud.machines.command(self.server_id, argv)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def script(self, script: str, *arguments: str) -> str:
        """Run lines of shell there, which must end well."""
        done = self.run("sh", "-ec", script, "sh", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def containers(self) -> list[str]:
        """Return the ids of all containers, whether they run or not."""
        return self.script("docker ps --all --quiet --no-trunc").split()

    def volumes(self) -> set[str]:
        return set(self.script("docker volume ls --quiet").split())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerYouHave]:
    folder = tmp_path_factory.mktemp("server")
    with cloud(folder) as made:
        host_key, owners_key = new_private_key("host"), new_private_key("owner")
        (folder / "id_ed25519").touch(mode=0o600)
        (folder / "id_ed25519").write_text(owners_key)
        (folder / "id_ed25519.pub").write_text(f"{public_key(owners_key)} owner@laptop\n")
        ordered = made.client.servers.create(
            name="home",
            server_type=ServerType(name="cx23"),
            image=Image(name="debian-13"),
            location=Location(name="nbg1"),
            user_data=cloud_init(
                host_private_key=host_key,
                host_public_key=public_key(host_key),
                deploy_public_keys=[public_key(owners_key)],
                image="debian-13",
            ),
        )
        for action in (ordered.action, *ordered.next_actions):
            action.wait_until_finished(600)
        server: Any = made.client.servers.get_by_name("home")
        yours = ServerYouHave(
            cloud=made,
            server_id=server.id,
            ipv4=server.public_net.ipv4.ip,
            ipv6=first_address(server.public_net.ipv6.ip),
            host_key=public_key(host_key),
            owners_key=folder / "id_ed25519",
            requests_before=len(asked_of_the_api(made)),
        )
        yours.script("cloud-init status --wait")
        yours.script('useradd --create-home --shell /bin/sh "$1"', USER)
        yield yours


def asked_of_the_api(made: Cloud) -> list[dict[str, Any]]:
    answer = requests.get(
        f"{made.api.sandbox}/requests", headers={"Authorization": f"Bearer {made.api.token}"}, timeout=10
    )
    answer.raise_for_status()
    return list(answer.json()["requests"])


def line_to_add(said: str) -> str:
    """Return the line for ``authorized_keys`` that was told."""
    found = re.search(rf"^ssh-ed25519 [A-Za-z0-9+/=]+ derp-relays-{STACK}$", said, re.MULTILINE)
    assert found, said
    return found[0]


def test_the_first_run_makes_a_key_and_says_where_to_put_it(server: ServerYouHave) -> None:
    code, said = server.up()
    assert code == 1, said
    assert f"~/.ssh/authorized_keys of {USER} on {server.ipv4}" in said
    assert line_to_add(said)
    kept = yaml.safe_load(server.stack_file.read_text())["config"]
    assert set(kept[f"{PROJECT}:sshDeployKey"]) == {"secure"}
    assert f"{PROJECT}:sshHostKey" not in kept


def test_a_key_that_is_not_authorised_yet_is_told_again(server: ServerYouHave) -> None:
    code, said = server.up()
    assert code == 1, said
    assert f"{USER}@{server.ipv4} port 22 does not let this key in" in said
    assert f"~{USER}/.ssh/authorized_keys" in said
    add = 'cd "/home/$1"; umask 077; mkdir .ssh; echo "$2" >.ssh/authorized_keys; chown -R "$1:" .ssh'
    server.script(add, USER, line_to_add(said))


def test_a_server_with_another_host_key_is_refused(server: ServerYouHave) -> None:
    """Although it would let the stack's key in."""
    code, said = server.up(hostKey=public_key(new_private_key("somebody else's")))
    assert code == 1, said
    assert "shows another host key than the one that is pinned" in said
    assert "/etc/ssh/ssh_host_ed25519_key.pub" in said
    assert server.containers() == []


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the Docker of a server, what is to be said of it, and what mends it."""

    made_by: str
    said: tuple[str, ...]
    mended_by: str


def _each_docker(command: str) -> str:
    return f"for file in /usr/bin/docker /usr/local/bin/docker; do {command}; done"


TROUBLES = {
    "closed to the user": Trouble(
        "true",
        (f"{USER} may not use Docker", f"sudo usermod -aG docker {USER}"),
        f"usermod -aG docker {USER}",
    ),
    "stopped": Trouble(
        "systemctl stop docker",
        ("does not answer", "sudo systemctl enable --now docker"),
        "systemctl enable --now docker",
    ),
    "missing": Trouble(
        _each_docker('if [ -e "$file" ]; then mv "$file" "$file.away"; fi'),
        ("there is no docker on", "https://docs.docker.com/engine/install/"),
        _each_docker('if [ -e "$file.away" ]; then mv "$file.away" "$file"; fi'),
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_what_is_wrong_with_docker_is_told_with_what_mends_it(
    server: ServerYouHave, trouble: Trouble
) -> None:
    server.script(trouble.made_by)
    code, said = server.up()
    server.script(trouble.mended_by)
    assert code == 1, said
    for words in trouble.said:
        assert words in said
    assert server.containers() == []


def test_it_comes_up_and_nothing_of_the_server_is_made(server: ServerYouHave) -> None:
    code, said = server.up()
    assert code == 0, said
    assert f"The relay is up: https://derp-{STACK}.example.com" in said
    assert len(server.containers()) == 2
    with server.cloud.checkout.pulumi() as pulumi:
        exported = json.loads(pulumi("stack", "export", "--stack", STACK).stdout)
    packages = {resource["type"].partition(":")[0] for resource in exported["deployment"]["resources"]}
    assert packages == {"pulumi", "derp-relays", "docker", "pulumi-python"}


def test_it_is_left_alone_when_nothing_has_changed(server: ServerYouHave) -> None:
    with server.cloud.checkout.pulumi() as pulumi:
        for arguments in (
            ("refresh", "--yes", "--skip-preview", "--stack", STACK),
            ("preview", "--diff", "--expect-no-changes", "--stack", STACK),
        ):
            done = pulumi(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_and_its_edit_reach_the_server_and_its_containers_run_on(server: ServerYouHave) -> None:
    folder = server.cloud.checkout.folder / "www"
    folder.mkdir()
    (folder / "large.bin").write_bytes(os.urandom(20 << 20))
    before = server.containers()
    read = 'docker cp caddy:/srv/.sites/www.example.com - | tar --extract --to-stdout --wildcards "*/$1"'
    for text in ("first", "second"):
        (folder / "page.txt").write_text(text)
        site = {"names": ["www.example.com"], "folder": str(folder)}
        server.cloud.checkout.write_stack({**server.settings(), "sites": [site]}, STACK)
        code, said = server.relayctl("up")
        assert code == 0, said
        assert server.script(read, "page.txt") == text
    wanted = hashlib.sha256((folder / "large.bin").read_bytes()).hexdigest()
    assert server.script(f"({read}) | sha256sum", "large.bin").startswith(wanted)
    assert server.containers() == before


def test_another_way_to_the_same_server_leaves_its_containers_alone(server: ServerYouHave) -> None:
    """Over IPv6, as another user, with a key that was there before."""
    before = server.containers()
    code, said = server.up(address=server.ipv6, user="root", deployKey=str(server.owners_key))
    assert code == 0, said
    assert server.containers() == before


def test_the_server_is_not_rebuilt(server: ServerYouHave) -> None:
    code, said = server.relayctl("rebuild")
    assert code == 1, said
    assert "nothing there can be made anew" in said


def test_down_leaves_the_server_alone(server: ServerYouHave) -> None:
    """The last test of this module: volumes first stay, and then go too."""
    prefix = f"derp-relays-{STACK}_"
    code, said = server.relayctl("down")
    assert code == 0, said
    assert server.containers() == []
    assert server.volumes() == {prefix + name for name in VOLUMES}
    code, said = server.relayctl("down", "--volumes")
    assert code == 0, said
    assert server.volumes() == set()
    assert len(asked_of_the_api(server.cloud)) == server.requests_before
    assert [each.status for each in server.cloud.client.servers.get_all()] == ["running"]
