"""The socket, with programs of the test's own in ssh's place."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ssh.docker_socket import DockerSocket, docker_socket

# prints what it was asked to run, then gives back what it gets until that ends
ECHO = ["sh", "-c", 'echo "$@"; exec cat', "ssh"]


def connect(made: DockerSocket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(made.address.removeprefix("unix://"))
    return client


def read_to_end(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_each_connection_is_a_process_that_dials_docker() -> None:
    with docker_socket([*ECHO, "-p", "2222", "--", "203.0.113.7"]) as made, connect(made) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b"-p 2222 -- 203.0.113.7 docker system dial-stdio\n"


def test_answer_goes_on_after_the_question_ended() -> None:
    with docker_socket(["sh", "-c", "sent=$(cat | wc -c); sleep 0.3; echo got $sent", "ssh"]) as made:
        with connect(made) as client:
            client.sendall(b"x" * 300_000)
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client).split() == [b"got", b"300000"]
        assert made.said == ""


def test_end_of_the_process_is_the_end_of_the_connection() -> None:
    with docker_socket(["sh", "-c", "echo bye", "ssh"]) as made, connect(made) as client:
        assert read_to_end(client) == b"bye\n"


def test_end_of_the_client_is_the_end_of_the_process() -> None:
    with docker_socket(ECHO) as made:
        with connect(made) as client:
            assert client.recv(100)
        deadline = time.monotonic() + 10
        while psutil.Process().children() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert psutil.Process().children() == []


def test_many_at_once_are_kept_apart() -> None:
    def ask(number: int) -> bool:
        with connect(made) as client:
            text = f"{number}|".encode() * 5000
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            return read_to_end(client) == b"docker system dial-stdio\n" + text

    with docker_socket(ECHO) as made, ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(24)))


def test_what_ssh_said_is_there_when_the_connection_ends() -> None:
    words = "ssh: connect to host 203.0.113.7 port 22: Connection refused"
    with docker_socket(["sh", "-c", f"cat >/dev/null; echo '{words}' >&2; exit 255", "ssh"]) as made:
        for _ in range(20):
            with connect(made) as client:
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client) == b""
                assert made.said == words


def test_silent_failure_is_told_by_its_status() -> None:
    with docker_socket(["sh", "-c", "exit 3", "ssh"]) as made:
        with connect(made) as client:
            assert read_to_end(client) == b""
        assert made.said == "sh ended with status 3"


def test_missing_ssh_is_told() -> None:
    with docker_socket(["/nowhere/ssh"]) as made:
        with connect(made) as client:
            assert read_to_end(client) == b""
        assert "/nowhere/ssh" in made.said


@pytest.mark.parametrize("command", [ECHO, [sys.executable, "-c", "import time; time.sleep(600)"]])
def test_nothing_is_left_at_the_end(command: list[str]) -> None:
    with docker_socket(command) as made:
        clients = [connect(made) for _ in range(3)]
        deadline = time.monotonic() + 10
        while len(psutil.Process().children()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(psutil.Process().children()) == 3
    assert psutil.Process().children() == []
    assert not Path(made.address.removeprefix("unix://")).parent.exists()
    for client in clients:
        client.close()


def test_socket_is_this_users_alone() -> None:
    with docker_socket(ECHO) as made:
        folder = Path(made.address.removeprefix("unix://")).parent
        assert folder.stat().st_mode & 0o077 == 0


def test_interrupt_at_the_terminal_is_not_the_processes() -> None:
    with docker_socket(ECHO) as made, connect(made):
        deadline = time.monotonic() + 10
        while not psutil.Process().children() and time.monotonic() < deadline:
            time.sleep(0.02)
        (process,) = psutil.Process().children()
        groups = subprocess.run(
            ["ps", "-o", "pgid=", "-p", str(process.pid)], capture_output=True, text=True, check=True
        )
        assert int(groups.stdout) == process.pid
