"""Finds the Docker engine; on Debian and Ubuntu, as root, installs and starts one where none is."""

from __future__ import annotations

import getpass
import grp
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import docker
import docker.errors
import psutil
import requests
from docker.context import ContextAPI
from docker.utils import kwargs_from_env

from images.recipe import cache_folder
from relayctl.prerequisites import cache, packages
from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import (
    CommandFailedError,
    DockerEngineError,
    DockerPermissionError,
    disk_full,
    disk_full_explained,
    indented,
    last_lines,
    says_disk_full,
)

if TYPE_CHECKING:
    from relayctl.prerequisites.progress import Progress

# where dockerd listens if it is told nothing else: https://docs.docker.com/reference/cli/dockerd/
SYSTEM_SOCKET = Path("/var/run/docker.sock")
DAEMON_CONFIG = Path("/etc/docker/daemon.json")
# dockerd's own default, and where Debian's init script sends what it prints
_PID_FILE = Path("/var/run/docker.pid")
_CONTAINERD_PID_FILE = Path("/var/run/docker/containerd/containerd.pid")
_LOG = Path("/var/log/docker.log")

# from this release on ip6tables is on by default and not experimental:
# https://docs.docker.com/engine/release-notes/27/
_IP6TABLES_BY_DEFAULT = 27
_IP6TABLES_CONFIG = {"experimental": True, "ip6tables": True}

_API_TIMEOUT = 20
# a first start makes keys, a database and firewall rules; slow disks take half a minute
_START_TIMEOUT = 120.0
# of Debian's init script for docker
_OPEN_FILES = 1048576

Silence = Literal["missing", "dead", "permission", "other"]


@dataclass(frozen=True)
class DockerEngine:
    """An engine that answers.

    ``host`` is its address as ``DOCKER_HOST`` takes it, ``origin`` says how it
    was found, ``version`` is such as ``20.10.24``, ``goarch`` its machine's
    architecture by Go's name. ``ipv6_publishing`` tells whether a port published
    over IPv6 keeps the sender's address: ``None`` where that cannot be told from
    here; ``ipv6_reason`` says why it does not, and what would mend it.
    """

    host: str
    origin: str
    version: str
    api_version: str
    goarch: str
    rootless: bool
    ipv6_publishing: bool | None
    ipv6_reason: str
    connection: dict[str, Any] = field(repr=False, compare=False)

    def client(self, timeout: float = 60) -> docker.DockerClient:
        """Return a new client for it; calls that last longer than ``timeout`` seconds fail."""
        return _client(self.connection, timeout)


@dataclass(frozen=True)
class _Endpoint:
    connection: dict[str, Any]
    origin: str

    @property
    def host(self) -> str:
        return str(self.connection["base_url"])

    @property
    def socket_path(self) -> Path | None:
        return Path(self.host.removeprefix("unix://")) if self.host.startswith("unix://") else None


class _SilentError(Exception):
    def __init__(self, kind: Silence, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def find() -> DockerEngine | None:
    """Return the engine that this user's Docker settings point to, or ``None`` if none answers.

    Asked in this order: ``DOCKER_HOST``; the current Docker context; the system's
    socket; a rootless engine's socket. The first two, where set, are the only ones.

    Raises ``DockerPermissionError`` if one is there that this user may not speak
    to, ``DockerEngineError`` if the one named by ``DOCKER_HOST`` or a context
    does not answer.
    """
    endpoint = _named_endpoint()
    if endpoint is not None:
        try:
            return _ask(endpoint)
        except _SilentError as silent:
            if silent.kind == "permission" and endpoint.socket_path is not None:
                raise _permission_error(endpoint) from silent
            raise DockerEngineError(
                f"the Docker engine at {endpoint.host} ({endpoint.origin}) does not answer: {silent.reason}",
                f"start that engine, or leave {endpoint.origin} unset to use this machine's",
            ) from silent
    silences: list[tuple[_Endpoint, _SilentError]] = []
    for local in _local_endpoints():
        try:
            return _ask(local)
        except _SilentError as silent:
            silences.append((local, silent))
    for local, silence in silences:
        if silence.kind == "permission":
            raise _permission_error(local)
    return None


def ensure(progress: Progress) -> DockerEngine:
    """Return an engine that answers; install Debian's or Ubuntu's and start it where need be.

    That takes root; anybody else is told the commands. It says what it does
    before it does it. An engine that is started here outlives this process.

    Raises ``DockerEngineError``, ``DockerPermissionError``, and
    ``CommandFailedError`` (with its kinds) if apt fails.
    """
    engine = find()
    if engine is not None:
        return engine
    with cache.locked(cache_folder() / ".docker-engine.lock", progress):
        # another run may have started it meanwhile
        return find() or _bring(progress)


def _permission_error(endpoint: _Endpoint) -> DockerPermissionError:
    user = getpass.getuser()
    try:
        is_member = user in grp.getgrnam("docker").gr_mem
    except KeyError:
        is_member = False
    join = "" if is_member else f"sudo usermod -aG docker {shlex.quote(user)}, then "
    return DockerPermissionError(
        f"a Docker engine is there, but user {user} may not open {endpoint.socket_path}"
        + (" (this login is older than the membership of the group docker)" if is_member else ""),
        f"{join}log in again; or run this as root (members of the group docker are as good as root)",
    )


def _bring(progress: Progress) -> DockerEngine:
    if not sys.platform.startswith("linux"):
        raise DockerEngineError("no Docker engine answers", "start Docker Desktop, or another engine")
    installed = _dockerd() is not None
    if os.geteuid() != 0:
        commands = _commands_for_root(installed=installed)
        why = "Docker is installed, but does not run" if installed else "Docker is not installed"
        left = f" ({SYSTEM_SOCKET} is left over from an engine that ended)" if SYSTEM_SOCKET.exists() else ""
        raise DockerEngineError(
            f"no Docker engine answers: {why}{left}",
            "\n".join(["run these, then this again:", *(f"    {command}" for command in commands)]),
        )
    if not installed:
        _install(progress)
    return _start(progress)


def _commands_for_root(*, installed: bool) -> list[str]:
    if not installed and not packages.is_debian():
        return ["(install Docker: https://docs.docker.com/engine/install/)"]
    commands = [] if installed else ["sudo apt-get update", "sudo apt-get install -y docker.io"]
    if _systemd_runs():
        commands.append("sudo systemctl enable --now docker")
    else:
        commands.append("sudo sh -c 'setsid dockerd >>/var/log/docker.log 2>&1 </dev/null &'")
    return [*commands, f"sudo usermod -aG docker {shlex.quote(getpass.getuser())}    # then log in again"]


def _install(progress: Progress) -> None:
    if not packages.is_debian():
        raise DockerEngineError(
            "Docker is not installed, and this is neither Debian nor Ubuntu",
            "install it (https://docs.docker.com/engine/install/), then run this again",
        )
    progress.say("No Docker engine here: installing this system's docker.io with apt-get, then starting it.")
    # before the installation, which starts the engine where systemd runs
    wrote_config = _write_daemon_config()
    try:
        packages.install(["docker.io"], progress)
    except BaseException:
        if wrote_config and _dockerd() is None:
            DAEMON_CONFIG.unlink(missing_ok=True)
        raise


def _write_daemon_config() -> bool:
    if DAEMON_CONFIG.exists():
        return False
    with disk_full_explained(DAEMON_CONFIG):
        DAEMON_CONFIG.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = DAEMON_CONFIG.with_suffix(".new")
        temporary.write_text(json.dumps(_IP6TABLES_CONFIG, indent=2) + "\n")
        temporary.replace(DAEMON_CONFIG)
    return True


def _start(progress: Progress) -> DockerEngine:
    running = _dockerd_process()
    if running is not None:
        progress.say(f"dockerd runs (pid {running.pid}) and does not answer yet; waiting for it.")
        return _wait_for_answer(None, 0, progress)
    if _systemd_runs():
        progress.say("Starting the Docker engine: systemctl enable --now docker")
        try:
            run(
                ["systemctl", "enable", "--now", "docker"],
                title="starting the Docker engine",
                mend="see why: journalctl -u docker -n 50",
                timeout=_START_TIMEOUT,
                progress=progress,
            )
        except CommandFailedError as error:
            journal = _output("journalctl", "-u", "docker", "-n", "15", "--no-pager", "-o", "cat")
            raise DockerEngineError(f"{error.what}\n{indented(journal)}", error.mend) from error
        return _wait_for_answer(None, 0, progress)
    return _start_detached(progress)


def _start_detached(progress: Progress) -> DockerEngine:
    dockerd = _dockerd()
    if dockerd is None:
        raise DockerEngineError(
            "docker.io was installed, and there is no dockerd", "apt-get install --reinstall docker.io"
        )
    _remove_stale(_PID_FILE, "dockerd")
    _remove_stale(_CONTAINERD_PID_FILE, "containerd")
    arguments = [dockerd]
    if not DAEMON_CONFIG.exists() and _major(_output(dockerd, "--version")) < _IP6TABLES_BY_DEFAULT:
        arguments += ["--experimental", "--ip6tables"]
    progress.say(
        "Starting the Docker engine (no systemd runs here), which stays when this ends:"
        f" {shlex.join(arguments)}, log in {_LOG}"
    )
    with disk_full_explained(_LOG), _LOG.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(
            # containers have this limit from the engine
            ["/bin/sh", "-c", f'ulimit -n {_OPEN_FILES} 2>/dev/null; exec "$@"', "sh", *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # out of reach of this terminal's Ctrl-C and hang-up
            start_new_session=True,
        )
    return _wait_for_answer(process, offset, progress)


def _wait_for_answer(
    process: subprocess.Popen[bytes] | None, offset: int, progress: Progress
) -> DockerEngine:
    endpoint = _local_endpoints()[0]
    reason = ""
    with progress.step("waiting for the Docker engine to answer") as step:
        while step.seconds() < _START_TIMEOUT:
            try:
                return _ask(endpoint)
            except _SilentError as silent:
                reason = silent.reason
            if process is not None and process.poll() is not None:
                reason = f"dockerd ended with status {process.returncode}"
                break
            time.sleep(0.2)
        said = ""
        if process is not None and _LOG.exists():
            with _LOG.open("rb") as log:
                log.seek(offset)
                said = log.read().decode(errors="replace")
        if says_disk_full(said):
            raise disk_full(Path("/var/lib/docker"), last_lines(said))
        raise DockerEngineError(
            f"the Docker engine does not answer: {reason}\n{indented(last_lines(said))}".rstrip(),
            f"see why in {_LOG}" if process is not None else "see why: journalctl -u docker -n 50",
        )


def _remove_stale(path: Path, name: str) -> None:
    """Remove the pid file of a daemon that is gone; dockerd takes any live process for the daemon."""
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return
    try:
        alive = psutil.Process(pid).name() == name
    except psutil.Error:
        alive = False
    if not alive:
        path.unlink(missing_ok=True)


def _named_endpoint() -> _Endpoint | None:
    if os.environ.get("DOCKER_HOST"):
        return _Endpoint(kwargs_from_env(), "DOCKER_HOST")
    name = os.environ.get("DOCKER_CONTEXT")
    context = ContextAPI.get_context(name)
    if context is None:
        raise DockerEngineError(
            f"there is no Docker context {name or '(the current one)'}",
            "choose another with `docker context use`, or unset DOCKER_CONTEXT",
        )
    if context.Name == "default":
        return None
    return _Endpoint(ContextAPI.kwargs_from_context(name), f"the Docker context {context.Name}")


def _local_endpoints() -> list[_Endpoint]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    sockets = {
        "the system's engine": SYSTEM_SOCKET,
        # https://docs.docker.com/engine/security/rootless/ and Docker Desktop
        "this user's rootless engine": Path(runtime) / "docker.sock",
        "Docker Desktop": Path.home() / ".docker" / "run" / "docker.sock",
    }
    return [_Endpoint({"base_url": f"unix://{path}"}, origin) for origin, path in sockets.items()]


def _ask(endpoint: _Endpoint) -> DockerEngine:
    if endpoint.socket_path is not None:
        _knock(endpoint.socket_path)
    try:
        client = _client(endpoint.connection, _API_TIMEOUT)
        try:
            version = client.version()
            information = client.info()
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        # the operating system's words are at the end of three layers of libraries
        told = re.findall(r"\[Errno -?\d+\] [^\"')]+", str(error))
        raise _SilentError("other", told[-1] if told else str(error)) from error
    rootless = any("name=rootless" in option for option in information.get("SecurityOptions") or [])
    publishing, reason = _ipv6_publishing(endpoint, version["Version"], information, rootless=rootless)
    return DockerEngine(
        host=endpoint.host,
        origin=endpoint.origin,
        version=version["Version"],
        api_version=version["ApiVersion"],
        goarch=version["Arch"],
        rootless=rootless,
        ipv6_publishing=publishing,
        ipv6_reason=reason,
        connection=endpoint.connection,
    )


def _knock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as knocker:
        knocker.settimeout(_API_TIMEOUT)
        try:
            knocker.connect(str(path))
        except FileNotFoundError:
            raise _SilentError("missing", f"there is no {path}") from None
        except PermissionError:
            raise _SilentError("permission", f"no permission on {path}") from None
        except ConnectionRefusedError:
            raise _SilentError("dead", f"{path} is there, and no engine listens on it") from None
        except OSError as error:
            raise _SilentError("other", f"{path}: {error}") from error


def _client(connection: dict[str, Any], timeout: float) -> docker.DockerClient:
    # the library's own SSH needs a package and ignores ~/.ssh/config in part
    ssh = str(connection["base_url"]).startswith("ssh://")
    return docker.DockerClient(**connection, timeout=timeout, use_ssh_client=ssh)


def _ipv6_publishing(
    endpoint: _Endpoint, version: str, information: dict[str, Any], *, rootless: bool
) -> tuple[bool | None, str]:
    if rootless:
        return False, (
            "a rootless engine forwards published ports itself, so that every sender has its address;"
            " use the system's engine"
        )
    configured: object = None
    if endpoint.socket_path == SYSTEM_SOCKET:
        configured = _setting_of_running("ip6tables")
    if _major(version) >= _IP6TABLES_BY_DEFAULT:
        if configured is False:
            return (
                False,
                f'"ip6tables" is switched off in {DAEMON_CONFIG}; take that out and restart the engine',
            )
        return True, ""
    if configured and information.get("ExperimentalBuild"):
        return True, ""
    if endpoint.socket_path != SYSTEM_SOCKET:
        return None, f"engine {version} needs ip6tables and experimental set to true in its daemon.json"
    return False, (
        f"engine {version} carries IPv6 through its userland proxy, which hides the sender's address;"
        f' set "ip6tables": true and "experimental": true in {DAEMON_CONFIG} and restart it,'
        f" or use engine {_IP6TABLES_BY_DEFAULT} or newer"
    )


def _setting_of_running(name: str) -> object:
    """Return a setting of the running dockerd as its command line or configuration file has it."""
    process = _dockerd_process()
    config = DAEMON_CONFIG
    try:
        arguments = process.cmdline() if process else []
    except psutil.Error:
        arguments = []
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            return value.lower() not in ("false", "0") if equals else True
        if flag == "--config-file":
            config = Path(value if equals else arguments[position + 1])
    try:
        return json.loads(config.read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None


def _dockerd_process() -> psutil.Process | None:
    """Return the dockerd that has the system's socket, if there is one that runs."""
    try:
        process = psutil.Process(int(_PID_FILE.read_text()))
        return process if process.name() == "dockerd" else None
    except (OSError, ValueError, psutil.Error):
        return None


def _dockerd() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def _systemd_runs() -> bool:
    # https://www.freedesktop.org/software/systemd/man/latest/sd_booted.html
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def _major(version: str) -> int:
    match = re.search(r"(\d+)\.\d+", version)
    return int(match.group(1)) if match else 0


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return last_lines(done.stdout.strip())
