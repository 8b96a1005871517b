"""The two services that a server really runs: the SSH server and Docker."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What was asked for and not done, with the reason; a person who wonders looks here first.
LOG = Path("/var/log/sandbox.log")

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
_INTERVAL = 0.05
# what a service, and a command at the console, has of an environment
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}
_SSHD = "/usr/sbin/sshd"
# Debian's package has it in /usr/sbin, Docker's own in /usr/bin
_DOCKERD = shutil.which("dockerd", path=ENVIRONMENT["PATH"]) or "/usr/sbin/dockerd"
_DOCKER_CONFIG = Path("/etc/docker/daemon.json")
_DOCKER_SOCKET = "/var/run/docker.sock"
# where a unit is added to: systemd.unit(5), later ones after earlier ones
_DROP_INS = tuple(map(Path, ("/usr/lib/systemd/system", "/etc/systemd/system")))
# the first engine that does IPv6 without being told so: docs.docker.com/engine/release-notes/27
_IPV6_BY_ITSELF = 27


class ServiceError(Exception):
    """A service did not start, stop or reload; the text says why."""


@dataclass(frozen=True)
class Service:
    """A program that runs in the background.

    ``options`` gives what its program is started with, ``check`` what must
    succeed before it is started or reloaded, ``answers`` whether it serves.
    """

    name: str
    pid_file: Path
    program: str
    options: Callable[[], Sequence[str]]
    check: Sequence[str]
    answers: Callable[[], bool]

    def pid(self) -> int | None:
        """Return the process's number, or ``None`` if it does not run."""
        try:
            pid = int(self.pid_file.read_text())
            # a file that an ended process left behind may name another one by now
            running = Path(f"/proc/{pid}/comm").read_text().strip() == Path(self.program).name
        except (OSError, ValueError):
            return None
        return pid if running else None

    def start(self) -> None:
        """Start it and return when it answers. Nothing happens if it runs. Raises ``ServiceError``."""
        if self.pid():
            return
        for folder in _DROP_INS:
            for file in sorted(folder.glob(f"{self.name}.service.d/*.conf")):
                self._prepare(file)
        self._checked()
        output = Path(f"/var/log/{self.name}.log")
        with output.open("ab") as log:
            process = subprocess.Popen(
                [self.program, *self.options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self.answers():
            # a program that puts itself in the background ends at once, and well
            if process.poll() or time.monotonic() > deadline:
                raise ServiceError(f"{self.name} does not start:\n{_end(output)}")
            time.sleep(_INTERVAL)

    def stop(self) -> None:
        """End it and what belongs to it. Nothing happens if it does not run. Raises ``ServiceError``."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self.pid() == pid:
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} does not end")
            time.sleep(_INTERVAL)

    def reload(self) -> None:
        """Have it read its configuration again. Raises ``ServiceError``, also if it does not run."""
        pid = self.pid()
        if pid is None:
            raise ServiceError(f"{self.name} is not active, cannot reload")
        self._checked()
        os.kill(pid, signal.SIGHUP)

    def _prepare(self, file: Path) -> None:
        commands, others = drop_in(file.read_text())
        for line in others:
            log(f"{file}: not done, the sandbox starts {self.name} in its own way: {line}")
        for command, may_fail in commands:
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
            if done.returncode and not may_fail:
                raise ServiceError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")

    def _checked(self) -> None:
        if self.check:
            done = subprocess.run(self.check, capture_output=True, text=True, env=ENVIRONMENT, check=False)
            if done.returncode:
                raise ServiceError(f"{self.name}: {done.stderr.strip()}")


def log(what: str) -> None:
    """Write a line to the log of what the sandbox does in another way than a server."""
    with contextlib.suppress(OSError), LOG.open("a") as file:
        file.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def drop_in(text: str) -> tuple[list[tuple[list[str], bool]], list[str]]:
    """Return what a drop-in has run before its unit, each with whether it may fail, and all else it sets.

    The syntax is that of systemd.service(5), without its escapes and specifiers.
    """
    commands: list[tuple[list[str], bool]] = []
    others = []
    for line in (line.strip() for line in text.replace("\\\n", " ").splitlines()):
        key, _, value = line.partition("=")
        if not line or line[0] in "#;[":
            continue
        if key.strip() != "ExecStartPre":
            others.append(line)
        elif not value.strip():
            commands.clear()
        else:
            command = value.strip().lstrip("-@:+!")
            commands.append((shlex.split(command), "-" in value.strip()[: len(value.strip()) - len(command)]))
    return commands, others


def _end(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").splitlines()[-5:])


def _ssh_answers() -> bool:
    # The port may be another one, but a server whose API opens 22 is expected there.
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 22), timeout=1) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def _docker_options() -> list[str]:
    version = subprocess.run(
        [_DOCKERD, "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    try:
        configured = json.loads(_DOCKER_CONFIG.read_text())
    except FileNotFoundError:
        configured = {}
    except (OSError, ValueError):
        configured = None  # the engine says best what is wrong with it
    return docker_options(version.stdout, configured)


def docker_options(version: str, configured: object) -> list[str]:
    """Return the options that the engine needs here beside its file.

    ``version`` is what ``dockerd --version`` prints, ``configured`` what its file
    holds. An option that is in the file too would keep the engine from starting.
    """
    # There is no systemd to make control groups, and those of all servers must not be mixed up.
    parent = Path("/etc/sandbox/cgroup_parent")
    options = ["--exec-opt", "native.cgroupdriver=cgroupfs"]
    if parent.exists():
        options += ["--cgroup-parent", parent.read_text().strip()]
    major = re.search(r"version (\d+)\.", version)
    if major and int(major[1]) < _IPV6_BY_ITSELF and isinstance(configured, dict):
        options += [f"--{option}" for option in ("experimental", "ip6tables") if option not in configured]
    return options


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(_DOCKER_SOCKET)


def _docker_answers() -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = _UnixConnection("localhost")
        connection.request("GET", "/_ping")
        return connection.getresponse().status == http.client.OK
    return False


SERVICES = {
    service.name: service
    for service in (
        Service("ssh", Path("/run/sshd.pid"), _SSHD, list, (_SSHD, "-t"), _ssh_answers),
        Service("docker", Path("/run/docker.pid"), _DOCKERD, _docker_options, (), _docker_answers),
    )
}
