"""A real sshd on loopback: pinning, one connection for many sessions, an engine behind it, readiness."""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import re
import shutil
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors
import psutil
import pytest
from docker.utils.socket import frames_iter

from images.recipe import host_goarch
from ssh import connection as connection_module
from ssh.connection import Connection
from ssh.docker_socket import docker_socket
from ssh.keys import new_private_key, public_key
from ssh.readiness import HostNotReadyError, wait_until_ready
from tests.docker_host import DockerHost
from tests.requirements import require

SSHD = "/usr/sbin/sshd"


@dataclass
class Server:
    """An sshd of the test's own, whose sessions find programs in ``programs`` first."""

    folder: Path
    port: int
    host_key: str
    deploy_key: str

    @property
    def programs(self) -> Path:
        return self.folder / "programs"

    @property
    def connection(self) -> Connection:
        return Connection("eu", getpass.getuser(), "127.0.0.1", self.port)

    def connections(self) -> int:
        """Return how many connections were logged in so far."""
        return (self.folder / "log").read_text().count("Accepted publickey")

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a project's folder"
    folder.mkdir()
    monkeypatch.setattr(connection_module, "PROJECT_FOLDER", folder)
    return folder


@contextlib.contextmanager
def sshd(
    folder: Path, more: str = "", environment: str = "", host_key: str | None = None
) -> Iterator[Server]:
    require(Path(SSHD).exists(), "sshd is missing", "apt-get install openssh-server")
    require(shutil.which("ssh"), "ssh is missing", "apt-get install openssh-client")
    if os.geteuid() == 0:
        # where sshd, started as root, shuts its unprivileged half in
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(folder, port, host_key or new_private_key("host"), new_private_key("deploy"))
    server.programs.mkdir()
    for name, text in (
        ("host_key", server.host_key),
        ("authorized_keys", public_key(server.deploy_key) + "\n"),
        (
            "sshd_config",
            f"""\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
# the test's folders are under one that everybody writes to
StrictModes no
SetEnv PATH={server.programs}:{os.environ["PATH"]} {environment}
{more}
""",
        ),
    ):
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield server
    finally:
        # those of connections that a test left to end by themselves, too
        for each in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {log.read_text()}")


@pytest.fixture
def server(
    tmp_path: Path,
    project: Path,  # noqa: ARG001 - where the files go
) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder, more="MaxSessions 100\nMaxStartups 100") as made:
        made.connection.write(public_key(made.host_key), made.deploy_key, None)
        yield made
        made.connection.close()


def failure(connection: Connection, *, seconds: float = 30) -> HostNotReadyError:
    began = time.monotonic()
    with pytest.raises(HostNotReadyError) as caught:
        wait_until_ready(connection, cloud_init=True, seconds=seconds, say=lambda _: None)
    # at once, or when its time was over
    assert time.monotonic() - began < min(seconds, 10) + 5
    return caught.value


def test_words_arrive_as_they_are_and_codes_come_back(server: Server) -> None:
    words = ["printf", "%s|", "two  words", "it's", '"$HOME"', "{{json .}}", "ä"]
    done = server.connection.run(*words, timeout=30)
    assert (done.returncode, done.stdout) == (0, 'two  words|it\'s|"$HOME"|{{json .}}|ä|')
    assert server.connection.run("sh", "-c", "cat; exit 7", timeout=30, stdin="given").stdout == "given"
    assert server.connection.run("sh", "-c", "exit 7", timeout=30).returncode == 7


def test_all_sessions_share_one_connection_until_it_is_closed(server: Server, project: Path) -> None:
    for _ in range(3):
        assert server.connection.run("true", timeout=30).returncode == 0
    assert server.connections() == 1
    with ThreadPoolExecutor(30) as pool:
        codes = list(
            pool.map(lambda _: server.connection.run("sleep", "0.2", timeout=60).returncode, range(30))
        )
    assert codes == [0] * 30
    assert server.connections() == 1
    sockets = [path for path in (project / ".relayctl/ssh").iterdir() if stat.S_ISSOCK(path.stat().st_mode)]
    assert len(sockets) == 1

    server.connection.close()
    assert not sockets[0].exists()
    assert server.connection.run("true", timeout=30).returncode == 0
    assert server.connections() == 2
    server.connection.close()
    # with nothing to close
    server.connection.close()


@pytest.mark.usefixtures("project")
def test_server_that_allows_few_sessions_gets_more_connections(tmp_path: Path) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder, more="MaxSessions 3\nMaxStartups 100") as server:
        connection = server.connection
        connection.write(public_key(server.host_key), server.deploy_key, None)
        assert connection.run("true", timeout=30).returncode == 0
        with ThreadPoolExecutor(8) as pool:
            done = list(
                pool.map(lambda _: connection.run("sh", "-c", "sleep 1; echo in", timeout=60), range(8))
            )
        assert [each.stdout for each in done] == ["in\n"] * 8
        assert 1 < server.connections() <= 1 + 5
        connection.close()


def test_sessions_that_run_outlive_the_close(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.connection.run, "sh", "-c", "echo up >&2; sleep 1; echo done", timeout=30)
        while server.connections() < 1:
            time.sleep(0.02)
        time.sleep(0.3)
        server.connection.close()
        assert slow.result().stdout == "done\n"


def test_another_host_key_is_never_talked_to(server: Server) -> None:
    connection = server.connection
    assert connection.run("true", timeout=30).returncode == 0
    # the shared connection to the server of the old pin is not gone on with either
    connection.write(public_key(new_private_key("other")), server.deploy_key, None)
    before = server.connections()
    assert connection.run("true", timeout=30).returncode == 255
    error = failure(connection)
    assert "shows another host key than the one that is pinned" in error.what
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in error.what
    assert "do not go on before you know why" in error.mend
    assert server.connections() == before


def test_host_key_that_nothing_pins_is_not_learned(server: Server) -> None:
    known_hosts = server.connection.folder / "known_hosts"
    known_hosts.write_text("")
    error = failure(server.connection)
    assert "shows another host key" in error.what
    assert known_hosts.read_text() == ""
    assert server.connections() == 0


@pytest.mark.usefixtures("project")
def test_host_key_of_another_type_is_refused(tmp_path: Path) -> None:
    require(shutil.which("ssh-keygen"), "ssh-keygen is missing", "apt-get install openssh-client")
    folder = tmp_path / "sshd"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", folder / "rsa"], check=True)
    with sshd(folder, host_key=(folder / "rsa").read_text()) as server:
        connection = server.connection
        connection.write(public_key(new_private_key("ed25519")), server.deploy_key, None)
        assert "no matching host key type found" in failure(connection).what
        # the right one of that type is taken, with SHA-2
        connection.write((folder / "rsa.pub").read_text(), server.deploy_key, None)
        assert connection.run("true", timeout=30).returncode == 0
        connection.close()


def test_key_that_is_not_let_in_is_told(server: Server) -> None:
    connection = server.connection
    connection.write(public_key(server.host_key), new_private_key("stranger"), None)
    error = failure(connection)
    assert "does not let this key in" in error.what
    assert "Permission denied (publickey" in error.what
    assert "authorized_keys" in error.mend


def test_key_file_with_blanks_and_percent_signs_in_its_name_logs_in(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "my 100%h key"
    path.write_text(server.deploy_key)
    path.chmod(0o600)
    server.connection.write(public_key(server.host_key), None, str(path))
    done = server.connection.run("echo", "in", timeout=30)
    assert (done.stdout, done.stderr) == ("in\n", "")


@pytest.mark.usefixtures("project")
def test_server_that_refuses_connections_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    connection = Connection("eu", "root", "127.0.0.1", port)
    connection.write(public_key(new_private_key("")), new_private_key(""), None)
    error = failure(connection, seconds=1)
    assert "Connection refused" in error.what
    assert "(after 1 s)" in error.what


def test_new_server_is_followed_until_its_engine_answers(server: Server) -> None:
    """Programs of the test's own stand for cloud-init and docker; ssh and the shell are real."""
    state = server.folder / "state"
    state.write_text("0")
    server.program(
        "cloud-init",
        f"""\
[ "$3" = json ] || exit 2
count=$(cat {state}); echo $((count + 1)) >{state}
case $count in
0) echo '{{"status": "running", "errors": []}}' ;;
*) echo '{{"status": "done", "errors": []}}'; exit 2 ;;
esac""",
    )
    server.program(
        "docker",
        """\
case $1 in
version) echo '{"Server": {"Version": "29.1.3", "ApiVersion": "1.52", "Arch": "arm64"}}' ;;
info) echo '["name=seccomp"]' ;;
esac""",
    )
    said: list[str] = []
    engine = wait_until_ready(
        server.connection, cloud_init=True, say=said.append, sleep=lambda _: time.sleep(0.1)
    )
    assert (engine.version, engine.api_version, engine.goarch) == ("29.1.3", "1.52", "arm64")
    assert said[0].startswith("cloud-init: ")
    assert said[-1] == "Docker Engine 29.1.3 answers"
    assert server.connections() == 1


def test_failure_of_cloud_init_is_told_by_its_own_lines(server: Server) -> None:
    server.program("cloud-init", """echo '{"status": "error", "errors": ["scripts_user: exit 1"]}'; exit 1""")
    # which the shell reads a log with that is not the test's to write
    server.program("tail", "echo 'derp-relays: Docker Engine 28.5.2 was installed'")
    error = failure(server.connection)
    assert "scripts_user: exit 1" in error.what
    assert "derp-relays: Docker Engine 28.5.2 was installed" in error.what


def test_server_without_cloud_init_or_docker_is_told(server: Server) -> None:
    require(not shutil.which("cloud-init"), "cloud-init is installed on this machine", "a machine without")
    assert "there is no cloud-init" in failure(server.connection).what
    server.program("docker", "echo 'sh: 1: docker: not found' >&2; exit 127")
    with pytest.raises(HostNotReadyError, match="there is no docker"):
        wait_until_ready(server.connection, cloud_init=False, seconds=20, say=lambda _: None)


@pytest.fixture
def behind(
    tmp_path: Path,
    project: Path,  # noqa: ARG001 - where the files go
    host: DockerHost,
) -> Iterator[Server]:
    """Yield a server whose ``docker`` is that of the host's engine."""
    require(shutil.which("docker"), "docker is missing", "apt-get install docker.io")
    folder = tmp_path / "sshd"
    folder.mkdir()
    with sshd(folder, more="MaxSessions 100", environment=f"DOCKER_HOST={host.address}") as made:
        made.connection.write(public_key(made.host_key), made.deploy_key, None)
        yield made
        made.connection.close()


def test_engine_is_ready_and_used_through_the_socket(
    behind: Server, host: DockerHost, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    said: list[str] = []
    engine = wait_until_ready(behind.connection, cloud_init=False, seconds=30, say=said.append)
    told = host.client().version()
    assert (engine.version, engine.api_version) == (told["Version"], told["ApiVersion"])
    assert engine.goarch == host_goarch()
    assert behind.connections() == 1

    monkeypatch.chdir(project)
    with docker_socket(behind.connection.command()) as made:
        clients = [docker.DockerClient(base_url=made.address, timeout=60) for _ in range(12)]
        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(lambda client: client.ping(), clients))
        # each a session of its own, all on the connection that was there
        assert behind.connections() == 1
        _use(clients[0])
        assert made.said == ""


def _use(client: docker.DockerClient) -> None:
    """Send an image, run it and speak with it: much goes in both directions, each ends by itself."""
    program = shutil.which("cat")
    assert program is not None
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    large = os.urandom(3_000_000)
    files = {path: Path(path).read_bytes() for path in [program, *re.findall(r"(/\S+) \(0x", linked)]}
    client.api.import_image_from_data(_archive({**files, "large": large}), repository="ssh-test-cat")
    container = client.containers.create("ssh-test-cat", [program, "-", "/large"], stdin_open=True)
    stream = client.api.attach_socket(
        container.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    )
    container.start()
    stream._sock.sendall(b"hello\n" * 100_000)
    stream._sock.shutdown(socket.SHUT_WR)
    # which cat begins with only when what it is sent has ended
    assert b"".join(part for _, part in frames_iter(stream, tty=False)) == b"hello\n" * 100_000 + large
    assert container.wait(timeout=30)["StatusCode"] == 0


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.removeprefix("/"))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_socket_tells_why_there_is_no_engine(
    server: Server, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.chdir(project)
    server.connection.write(public_key(new_private_key("other")), server.deploy_key, None)
    with docker_socket(server.connection.command()) as made:
        with pytest.raises(docker.errors.DockerException):
            docker.DockerClient(base_url=made.address, timeout=30).ping()
        assert "Host key verification failed" in made.said


def test_connections_that_begin_together_all_get_through(
    behind: Server, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    """Each tries to be the one that the others share; who is late uses a connection of its own."""
    monkeypatch.chdir(project)
    with docker_socket(behind.connection.command()) as made, ThreadPoolExecutor(8) as pool:
        clients = [docker.DockerClient(base_url=made.address, timeout=60) for _ in range(8)]
        assert all(pool.map(lambda client: client.ping(), clients))
        assert all(pool.map(lambda client: client.ping(), clients))
