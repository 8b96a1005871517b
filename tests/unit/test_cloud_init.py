"""The user data: what a server is told, and what is refused before one is made."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from render.cloud_init import DOCKER_KEY, LIMIT, cloud_init
from ssh.keys import new_private_key, public_key
from tests.requirements import require

HOST_KEY = new_private_key("host")
DEPLOY_KEY = new_private_key("deploy")


def rendered(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "host_private_key": HOST_KEY,
        "host_public_key": public_key(HOST_KEY),
        "deploy_public_keys": [public_key(DEPLOY_KEY)],
        "image": "debian-13",
    }
    return cloud_init(**arguments | changes)


def config(**changes: Any) -> dict[str, Any]:
    loaded = yaml.safe_load(rendered(**changes))
    assert isinstance(loaded, dict)
    return loaded


def file(path: str) -> str:
    (content,) = [entry["content"] for entry in config()["write_files"] if entry["path"] == path]
    return str(content)


def test_it_is_a_cloud_config_that_reads_back_as_it_was_meant() -> None:
    assert rendered().startswith("#cloud-config\n")
    keys = config()["ssh_keys"]
    assert keys == {"ed25519_private": HOST_KEY, "ed25519_public": public_key(HOST_KEY)}
    assert config()["ssh_deletekeys"] is True
    for entry in config()["write_files"]:
        # YAML would make 420 of a mode that is no text
        assert entry["permissions"] == "0644"
        assert entry["owner"] == "root:root"


def test_same_arguments_give_the_same_text() -> None:
    assert rendered() == rendered()


def test_only_keys_let_in_and_only_those_that_were_given() -> None:
    other = public_key(new_private_key("other"))
    data = config(deploy_public_keys=[f"{public_key(DEPLOY_KEY)} me@laptop", other])
    (root,) = data["users"]
    assert root["name"] == "root"
    assert root["lock_passwd"] is True
    assert root["ssh_authorized_keys"] == [public_key(DEPLOY_KEY), other]
    assert data["ssh_pwauth"] is False
    assert data["disable_root"] is False


def test_host_key_is_the_only_secret() -> None:
    text = rendered().replace(HOST_KEY.strip().replace("\n", "\n    "), "")
    assert "PRIVATE KEY" not in text
    assert DEPLOY_KEY.splitlines()[2] not in text


def test_docker_comes_from_its_own_source_by_a_key_that_comes_along() -> None:
    for image, distribution in (("debian-12", "debian"), ("ubuntu-24.04", "ubuntu")):
        source = config(image=image)["apt"]["sources"]["docker.list"]["source"]
        assert f"https://download.docker.com/linux/{distribution} $RELEASE stable" in source
        assert "[signed-by=/etc/apt/keyrings/docker.asc]" in source
    assert {"docker-ce", "docker-ce-cli", "containerd.io", "unattended-upgrades"} <= set(config()["packages"])
    assert file("/etc/apt/keyrings/docker.asc") == DOCKER_KEY.read_text()


def test_key_of_dockers_source_has_its_published_fingerprint() -> None:
    body = DOCKER_KEY.read_text().split("\n\n", 1)[1].partition("\n=")[0]
    blob = base64.b64decode(body)
    # RFC 4880 sections 4.2.1 and 12.2: an old-format packet with a length of two bytes, and what is hashed
    assert blob[0] == 0x99
    length = int.from_bytes(blob[1:3], "big")
    fingerprint = hashlib.sha1(blob[: 3 + length], usedforsecurity=False).hexdigest().upper()
    assert fingerprint == "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"


def test_engine_has_ipv6_and_keeps_containers_running() -> None:
    daemon = json.loads(file("/etc/docker/daemon.json"))
    assert daemon["ipv6"] is True
    subnet = ipaddress.IPv6Network(daemon["fixed-cidr-v6"])
    assert subnet.prefixlen == 64
    assert subnet.subnet_of(ipaddress.IPv6Network("fd00::/8"))
    assert daemon["live-restore"] is True
    assert daemon["log-driver"] == "local"
    # which engines before 27 refuse without each other, and later ones do by themselves
    assert not {"ip6tables", "experimental"} & set(daemon)


def test_kernel_has_room_for_quic_and_stun() -> None:
    lines = file("/etc/sysctl.d/60-derp-relays.conf").splitlines()
    settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    assert int(settings["net.core.rmem_max"]) >= 7_500_000
    assert int(settings["net.core.wmem_max"]) >= 7_500_000
    assert int(settings["net.netfilter.nf_conntrack_max"]) >= 262_144
    assert int(settings["net.netfilter.nf_conntrack_udp_timeout"]) < 30
    # a server that is restarted sets them before Docker has loaded the module
    assert file("/etc/modules-load.d/derp-relays.conf") == "nf_conntrack\n"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder of stand-ins for what the commands at the end call."""
    folder = tmp_path / "programs"
    folder.mkdir()
    answers = {
        "sshd": "echo passwordauthentication no",
        "dpkg-query": "printf %s '5:29.1.3-1~debian.13~trixie'",
    }
    for name in ("nft", "systemctl", "sysctl", "mkdir", "sshd", "dpkg-query"):
        program(folder, name, answers.get(name, ":"))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {name} >>{folder}/called\n{script}\n")
    path.chmod(0o755)


def at_the_end(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands as cloud-init does: as one script of sh's."""
    commands = config()["runcmd"]
    assert all(isinstance(command, str) for command in commands)
    return subprocess.run(
        ["sh", "-c", "\n".join(commands)],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_commands_at_the_end_succeed_where_all_is_well(programs: Path) -> None:
    require(shutil.which("dpkg"), "dpkg is missing", "a system with dpkg")
    done = at_the_end(programs)
    assert (done.returncode, done.stderr) == (0, "")
    called = (programs / "called").read_text().split()
    assert called.index("nft") < called.index("systemctl") < called.index("sysctl")


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("5:29.0.0-1~debian.12~bookworm", 0),
        ("5:30.1.0-1~ubuntu.24.04~noble", 0),
        ("5:28.5.2-1~debian.12~bookworm", 1),
        ("5:20.10.24~3-0~debian-bookworm", 1),
    ],
)
def test_old_engine_of_dockers_source_is_an_error(programs: Path, version: str, code: int) -> None:
    require(shutil.which("dpkg"), "dpkg is missing", "a system with dpkg")
    program(programs, "dpkg-query", f"printf %s '{version}'")
    done = at_the_end(programs)
    assert done.returncode == code
    assert (f"Docker Engine {version} was installed; 29 is the least" in done.stderr) == (code != 0)


@pytest.mark.parametrize(
    ("name", "script", "words"),
    [
        ("nft", "echo 'nft: no such table' >&2; exit 1", "nft: no such table"),
        ("systemctl", "echo 'Unit docker.service not found.' >&2; exit 5", "docker.service not found"),
        ("sysctl", "echo 'sysctl: cannot stat' >&2; exit 255", "sysctl: cannot stat"),
        ("sshd", "echo passwordauthentication yes", "lets users in by password"),
        ("sshd", "exit 1", "lets users in by password"),
    ],
)
def test_command_that_fails_is_an_error(programs: Path, name: str, script: str, words: str) -> None:
    program(programs, name, script)
    done = at_the_end(programs)
    assert done.returncode != 0
    assert words in done.stderr


def test_keys_that_would_lock_everybody_out_are_refused() -> None:
    other = new_private_key("")
    with pytest.raises(ValueError, match="is not the private one's"):
        rendered(host_public_key=public_key(other))
    with pytest.raises(ValueError, match="no key that may log in"):
        rendered(deploy_public_keys=[])
    with pytest.raises(ValueError, match="begins with 'me@laptop'"):
        rendered(deploy_public_keys=["me@laptop"])
    with pytest.raises(ValueError, match="it is a private key"):
        rendered(deploy_public_keys=[DEPLOY_KEY])


def test_host_key_of_another_type_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    with pytest.raises(ValueError, match="of type ecdsa-sha2-nistp256, not ssh-ed25519"):
        rendered(host_private_key=private, host_public_key=public_key(private))


@pytest.mark.parametrize("image", ["fedora-42", "docker-ce", "12345", ""])
def test_image_of_another_system_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="no image of Debian or Ubuntu"):
        rendered(image=image)


def test_more_than_hetzner_takes_is_refused() -> None:
    one = rendered()
    assert len(one.encode()) < LIMIT / 3
    keys = [public_key(DEPLOY_KEY)] * 400
    with pytest.raises(ValueError, match=f"bytes long, and Hetzner takes {LIMIT}"):
        rendered(deploy_public_keys=keys)
    each = len(rendered(deploy_public_keys=keys[:2])) - len(one)
    most = 1 + (LIMIT - len(one)) // each
    assert LIMIT - each < len(rendered(deploy_public_keys=keys[:most])) <= LIMIT
