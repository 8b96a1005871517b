"""The files for ssh, as OpenSSH's own client reads them, and the commands."""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ssh import connection as connection_module
from ssh.connection import Connection
from ssh.keys import new_private_key, public_key
from tests.requirements import require

HOST_KEY = public_key(new_private_key(""))
DEPLOY_KEY = new_private_key("")
# as long as Pulumi lets a stack's name be
LONG_NAME = "staging." + "x" * 92


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a project's folder"
    folder.mkdir()
    monkeypatch.setattr(connection_module, "PROJECT_FOLDER", folder)
    return folder


def understood(connection: Connection, project: Path) -> dict[str, str]:
    """Return what ssh makes of the options, without a connection."""
    require(shutil.which("ssh"), "ssh is missing", "apt-get install openssh-client")
    command = connection.command("true")
    printed = subprocess.run(
        ["ssh", "-G", *command[1:]], cwd=project, capture_output=True, text=True, check=True
    )
    assert printed.stderr == ""
    settings: dict[str, str] = {}
    for line in printed.stdout.splitlines():
        settings.setdefault(*line.partition(" ")[::2])
    return settings


@pytest.mark.parametrize(
    ("connection", "host"),
    [
        (Connection("eu", "root", "203.0.113.7"), "ssh://root@203.0.113.7"),
        (Connection("eu", "deploy", "relay.example.com", 2222), "ssh://deploy@relay.example.com:2222"),
        (Connection("eu", "root", "2001:db8::1"), "ssh://root@[2001:db8::1]"),
        (Connection("eu", "root", "2001:db8::1", 2222), "ssh://root@[2001:db8::1]:2222"),
    ],
    ids=str,
)
def test_docker_host(connection: Connection, host: str) -> None:
    assert connection.docker_host == host


@pytest.mark.parametrize("stack", ["eu-nuremberg", LONG_NAME])
def test_ssh_holds_the_server_to_the_pinned_key_alone(stack: str, project: Path) -> None:
    connection = Connection(stack, "root", "2001:db8::1", 2222)
    connection.write(HOST_KEY, DEPLOY_KEY, None)
    settings = understood(connection, project)
    folder = f".relayctl/ssh/{stack}"
    expected = {
        "hostname": "2001:db8::1",
        "user": "root",
        "port": "2222",
        "hostkeyalias": f"derp-relays-{stack}",
        "hostkeyalgorithms": "ssh-ed25519",
        "userknownhostsfile": f"{folder}/known_hosts",
        "globalknownhostsfile": "/dev/null",
        "stricthostkeychecking": "true",
        "updatehostkeys": "false",
        "verifyhostkeydns": "false",
        "checkhostip": "no",
        "identityfile": f"{folder}/deploy_key",
        "identitiesonly": "yes",
        "identityagent": "none",
        "batchmode": "yes",
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "forwardagent": "no",
        "clearallforwardings": "yes",
        "controlmaster": "auto",
        "controlpersist": "120",
    }
    assert {name: settings[name] for name in expected} == expected
    assert int(settings["connecttimeout"]) * int(settings["serveralivecountmax"]) > 0
    # sun_path, less what ssh adds while it begins to listen
    assert len(settings["controlpath"]) <= 107 - 17
    assert (project / folder / "known_hosts").read_text() == f"derp-relays-{stack} {HOST_KEY}\n"


def test_rsa_host_key_is_never_taken_with_sha1(project: Path) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    connection = Connection("old", "root", "203.0.113.7")
    connection.write(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(), DEPLOY_KEY, None)
    assert understood(connection, project)["hostkeyalgorithms"] == "rsa-sha2-512,rsa-sha2-256"


def test_shared_connection_is_another_one_for_other_keys_and_addresses(project: Path) -> None:
    paths = set()
    for host_key, deploy_key, address in (
        (HOST_KEY, DEPLOY_KEY, "203.0.113.7"),
        (HOST_KEY, DEPLOY_KEY, "203.0.113.8"),
        (HOST_KEY, new_private_key(""), "203.0.113.7"),
        (public_key(new_private_key("")), DEPLOY_KEY, "203.0.113.7"),
    ):
        connection = Connection("eu", "root", address)
        connection.write(host_key, deploy_key, None)
        paths.add(understood(connection, project)["controlpath"])
    other = Connection("us", "root", "203.0.113.7")
    other.write(HOST_KEY, DEPLOY_KEY, None)
    paths.add(understood(other, project)["controlpath"])
    assert len(paths) == 5


@pytest.mark.parametrize("name", ["id_ed25519", "my keys/100%h key", "über"])
def test_key_file_of_any_name_is_read_as_it_is_named(name: str, project: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    connection = Connection("eu", "root", "203.0.113.7")
    connection.write(HOST_KEY, None, str(path))
    settings = understood(connection, project)
    # -G shows tokens unexpanded: what was doubled is one percent sign to who opens it
    assert settings["identityfile"].strip('"').replace("%%", "%") == str(path)
    assert settings["identitiesonly"] == "yes"
    assert settings.get("identityagent") != "none"


@pytest.mark.parametrize("name", ['a"key', "a${HOME}key", "two\nlines"])
def test_key_file_that_ssh_cannot_name_is_refused(name: str, project: Path) -> None:
    with pytest.raises(ValueError, match="ssh takes no quotes"):
        Connection("eu", "root", "203.0.113.7").write(HOST_KEY, None, str(project / name))


def test_without_a_key_the_agent_is_asked(project: Path) -> None:
    connection = Connection("eu", "deploy", "203.0.113.7")
    connection.write(HOST_KEY, None, None)
    settings = understood(connection, project)
    assert settings["identitiesonly"] == "no"
    assert settings["identityfile"].startswith("~/.ssh/")


def test_files_are_this_users_alone_and_change_only_with_what_is_in_them(project: Path) -> None:
    connection = Connection("eu", "root", "203.0.113.7")
    connection.write(HOST_KEY, DEPLOY_KEY, None)
    files = sorted(path for path in connection.folder.iterdir())
    assert [path.name for path in files] == ["config", "deploy_key", "known_hosts"]
    before = {path: path.stat() for path in files}
    for path, status in before.items():
        assert stat.S_IMODE(status.st_mode) == 0o600, path
    for folder in (connection.folder, connection.folder.parent, project / ".relayctl"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (connection.folder.parent / ".gitignore").read_text() == "*\n"

    Connection("eu", "deploy", "198.51.100.9", 2222).write(HOST_KEY, DEPLOY_KEY, None)
    assert {path: path.stat().st_ino for path in files} == {path: old.st_ino for path, old in before.items()}

    (connection.folder / "deploy_key").chmod(0o644)
    connection.write(HOST_KEY, DEPLOY_KEY, None)
    assert stat.S_IMODE((connection.folder / "deploy_key").stat().st_mode) == 0o600

    connection.write(HOST_KEY, None, None)
    assert sorted(path.name for path in connection.folder.iterdir()) == ["config", "known_hosts"]


def test_what_is_no_host_key_writes_nothing_that_ssh_would_take(project: Path) -> None:
    connection = Connection("eu", "root", "203.0.113.7")
    with pytest.raises(ValueError, match="no base64"):
        connection.write("ssh-ed25519 ???", DEPLOY_KEY, None)
    assert not (project / ".relayctl/ssh/eu/config").exists()


def test_options_are_the_same_on_every_machine() -> None:
    assert Connection("eu", "", "").options() == ["-F", ".relayctl/ssh/eu/config"]


def test_command_carries_each_word_as_it_stands() -> None:
    connection = Connection("eu", "deploy", "-oProxyCommand=id", 2222)
    command = connection.command("docker", "version", "--format", "{{json .}}", "it's")
    assert command[:-1] == [
        *("ssh", "-F", ".relayctl/ssh/eu/config", "-l", "deploy", "-p", "2222"),
        # what begins with a hyphen is an address all the same
        *("--", "-oProxyCommand=id"),
    ]
    assert shlex.split(command[-1]) == ["docker", "version", "--format", "{{json .}}", "it's"]
    assert connection.command() == command[:-1]
