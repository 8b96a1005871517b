"""A host of its own for a test: a network namespace with its own Docker Engine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors

from tests.requirements import require

_NAMESPACES = Path("/var/run/netns")
_PREFIX = "derp-host-"


@dataclass(frozen=True)
class DockerHost:
    """A namespace with nothing in it but loopback and a Docker Engine of its own.

    ``address`` is the engine's as ``DOCKER_HOST`` takes it: a socket's path,
    which processes of every namespace can use. Ports that its containers
    publish are the namespace's.
    """

    namespace: str
    address: str
    folder: Path

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.address, timeout=60)

    def command(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` as it runs in the namespace. ``ip netns exec`` would hide the control groups."""
        return ["nsenter", f"--net={_NAMESPACES / self.namespace}", *command]

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the namespace; the exit code is the caller's to judge."""
        return subprocess.run(
            self.command(command),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )


@contextlib.contextmanager
def docker_host(data_size: str | None = None) -> Iterator[DockerHost]:
    """Make a host, and remove it with all its containers at the end, whatever happened.

    With ``data_size``, such as ``30m``, the engine keeps its data on a disk of
    that size (a tmpfs at ``data`` in the host's folder). Skips the test where it cannot be made.
    """
    require(os.geteuid() == 0, "a Docker Engine of the test's own needs root", "sudo make test")
    for program, package in (("dockerd", "docker.io"), ("ip", "iproute2"), ("nsenter", "util-linux")):
        require(shutil.which(program), f"{program} is missing", f"apt-get install {package}")
    _remove_left_behind()
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(3)}"
    # A socket's path has at most 107 bytes, so the folder cannot be deep.
    folder = Path(tempfile.mkdtemp(prefix=name + "-"))
    subprocess.run(["ip", "netns", "add", name], check=True)
    process: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        host = DockerHost(name, f"unix://{folder}/docker.sock", folder)
        (folder / "data").mkdir()
        if data_size is not None:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={data_size}", name, folder / "data"], check=True
            )
        process = _start(host)
        _wait(host, process)
        yield host
    finally:
        with contextlib.suppress(docker.errors.DockerException):
            for container in docker.DockerClient(base_url=f"unix://{folder}/docker.sock").containers.list(
                all=True
            ):
                container.remove(force=True)
        if process is not None:
            _stop(process)
        subprocess.run(["ip", "netns", "delete", name], check=False)
        if (folder / "data").is_mount():
            subprocess.run(["umount", folder / "data"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _start(host: DockerHost) -> subprocess.Popen[bytes]:
    # Engines before 27 publish over IPv6 with the sender's address only if they are told so.
    (host.folder / "daemon.json").write_text(json.dumps({"ip6tables": True, "experimental": True}))
    script = (
        f"mkdir {host.folder}/run && mount --bind {host.folder}/run /run && exec dockerd"
        f" --host {host.address} --data-root {host.folder}/data --exec-root {host.folder}/exec"
        f" --pidfile {host.folder}/docker.pid --config-file {host.folder}/daemon.json"
    )
    with (host.folder / "dockerd.log").open("wb") as log:
        return subprocess.Popen(
            host.command(["unshare", "--mount", "sh", "-c", script]),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _wait(host: DockerHost, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(docker.errors.DockerException):
            host.client().ping()
            return
        time.sleep(0.2)
    log = (host.folder / "dockerd.log").read_text(errors="replace")
    raise RuntimeError(f"dockerd did not start:\n{log[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _remove_left_behind() -> None:
    """End the engines of test runs that were killed, and remove their namespaces and folders."""
    for path in _NAMESPACES.glob(f"{_PREFIX}*"):
        maker = path.name.removeprefix(_PREFIX).split("-")[0]
        if Path("/proc", maker).exists():
            continue
        pids = subprocess.run(["ip", "netns", "pids", path.name], capture_output=True, text=True, check=False)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", path.name], check=False)
        for folder in Path(tempfile.gettempdir()).glob(f"{path.name}-*"):
            if (folder / "data").is_mount():
                subprocess.run(["umount", folder / "data"], check=False)
            shutil.rmtree(folder, ignore_errors=True)
