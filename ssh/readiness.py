"""A bounded wait until a server answers to ssh, cloud-init is done and Docker answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tenacity

from ssh.connection import Connection
from ssh.keys import public_key

# Seconds. A new server at Hetzner is done after five to ten minutes
# (https://github.com/atvirokodosprendimai/wgmesh/pull/297).
NEW_SERVER = 900.0
# One that exists may be restarting its engine.
EXISTING_SERVER = 60.0

# Seconds between two looks, and for one of them: ConnectTimeout is 10, and ServerAlive ends what hangs in 45.
_POLL = 3.0
_LOOK = 60.0
_SSH_FAILED = 255
_NOT_FOUND = 127

# The least that the network's options (gateway addresses of both families) work with.
_LEAST_ENGINE = (20, 10)
# From here on a port published over IPv6 keeps the sender's address without being told to:
# https://docs.docker.com/engine/release-notes/27/
_IP6TABLES_BY_DEFAULT = 27

# What cloud-init calls its stages: https://docs.cloud-init.io/en/latest/explanation/boot.html
_STAGES = {
    "init-local": "cloud-init: finding its data",
    "init": "cloud-init: keys, users and files",
    "modules-config": "cloud-init: package sources and settings",
    "modules-final": "cloud-init: installing packages, Docker among them",
}

# Its exit code tells of errors too, so what was printed is what counts.
_CLOUD_INIT_LOOK = """\
command -v cloud-init >/dev/null || exit 127
told=$(cloud-init status --format json 2>/dev/null)
case $told in
{*) printf '%s\\n' "$told" ;;
*) cloud-init status --long ;;
esac
echo ==== status.json
cat /run/cloud-init/status.json 2>/dev/null
echo
echo ==== log
tail -n 25 /var/log/cloud-init-output.log 2>/dev/null
exit 0
"""
# How the engine was started, and with what file.
_ENGINE_LOOK = """\
pid=$(cat /run/docker.pid 2>/dev/null || pidof -s dockerd)
tr '\\0' '\\n' <"/proc/$pid/cmdline"
"""


class HostNotReadyError(Exception):
    """A server cannot be used, or not yet: ``what`` is wrong, and how to ``mend`` it."""

    def __init__(self, what: str, mend: str) -> None:
        """Keep both; the message is ``what``, and ``mend`` on a line of its own."""
        super().__init__(f"{what}\n  {mend}")
        self.what = what
        self.mend = mend


@dataclass(frozen=True)
class HostEngine:
    """The Docker engine of a server.

    ``version`` is such as ``29.1.3``, ``api_version`` such as ``1.52``, ``goarch``
    its architecture by Go's name. ``ipv6`` tells whether a port published over
    IPv6 keeps the sender's address, ``None`` where that cannot be told;
    ``warnings`` has what works less well there, with what would mend it.
    """

    version: str
    api_version: str
    goarch: str
    ipv6: bool | None
    warnings: tuple[str, ...] = ()


class _NotYetError(Exception):
    """Worth another look; what it is by now, and what to say where that was the last one."""

    def __init__(self, now: str, failure: HostNotReadyError) -> None:
        super().__init__(now)
        self.now = now
        self.failure = failure


def wait_until_ready(
    connection: Connection,
    *,
    cloud_init: bool,
    say: Callable[[str], None],
    seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> HostEngine:
    """Wait until the server is ready, for at most ``seconds``, and return its engine.

    With ``cloud_init`` the server is a new one, and cloud-init has to be done
    first; ``seconds`` is then 15 minutes, else one. ``say`` is given each new state,
    once. Raises ``HostNotReadyError`` at once for what no waiting mends (another host
    key, a key that is not let in, an error of cloud-init, Docker missing or closed
    to the user), and after ``seconds`` for the rest.
    """
    # a connection to a server that was there before, at the same address
    connection.close()
    bound = seconds if seconds is not None else (NEW_SERVER if cloud_init else EXISTING_SERVER)
    said: list[str] = []

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _NotYetError) and said[-1:] != [error.now]:
            said.append(error.now)
            say(error.now)

    look = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_NotYetError),
        stop=tenacity.stop_after_delay(bound),
        wait=tenacity.wait_fixed(_POLL),
        before_sleep=tell,
        sleep=sleep,
        reraise=True,
    )
    try:
        engine = look(_look, connection, cloud_init=cloud_init)
    except _NotYetError as last:
        connection.close()
        raise HostNotReadyError(f"{last.failure.what} (after {bound:.0f} s)", last.failure.mend) from None
    except HostNotReadyError:
        # what mends it, such as a group of the user, shows only to a new login
        connection.close()
        raise
    say(f"Docker Engine {engine.version} answers")
    return engine


def _look(connection: Connection, *, cloud_init: bool) -> HostEngine:
    if cloud_init:
        _cloud_init(connection)
    return _engine(connection)


def _on_server(connection: Connection, *remote: str) -> subprocess.CompletedProcess[str]:
    """Run ``remote`` there; raise if ssh could not, ``_NotYetError`` where another try may help."""
    try:
        done = connection.run(*remote, timeout=_LOOK)
    except FileNotFoundError:
        raise HostNotReadyError(
            "there is no ssh on this machine", "install OpenSSH's client: apt-get install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        raise _NotYetError(
            "the server does not answer over ssh",
            HostNotReadyError(
                f"{_server(connection)} took the connection and does not answer",
                "look at its console: it may be out of memory or disk",
            ),
        ) from None
    if done.returncode == _SSH_FAILED:
        raise _ssh_failure(connection, done.stderr.strip())
    return done


def _server(connection: Connection) -> str:
    return f"{connection.user}@{connection.address} port {connection.port}"


def _ssh_failure(connection: Connection, stderr: str) -> HostNotReadyError | _NotYetError:
    """Return what ssh's own words mean: those of OpenSSH's sshconnect.c, sshconnect2.c and misc.c."""
    server, own = _server(connection), f"ssh says: {stderr or 'nothing'}"
    if re.search(
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED"
        r"|no matching host key type|host key is known for",
        stderr,
    ):
        return HostNotReadyError(
            f"{server} shows another host key than the one that is pinned. {own}",
            "do not go on before you know why. If the server was set up anew outside of this project, or"
            " the address is another server's by now, look at the fingerprint on the server's own"
            " console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub); then pin that key, or have"
            " the server replaced",
        )
    if "Permission denied" in stderr or "Too many authentication failures" in stderr:
        authorized_keys = f"~{connection.user}/.ssh/authorized_keys"
        made = connection.folder / "deploy_key"
        return HostNotReadyError(
            f"{server} does not let this key in. {own}",
            f"add this line to {authorized_keys} on the server:\n"
            f"{public_key(made.read_text())} {connection.alias}"
            if made.exists()
            else f"see that the public key is in {authorized_keys} on the server, and that"
            " the stack names the private one (host.deployKey, or your ssh agent has it)",
        )
    if re.search(r"Bad configuration option|Can't open user config file|terminating, \d+ bad", stderr):
        return HostNotReadyError(f"ssh does not take {connection.folder}/config. {own}", "update OpenSSH")
    for words, now, mend in (
        (
            "Connection refused",
            "ssh: connection refused; the server is up, and its sshd not yet",
            "see that sshd runs there and listens on this port",
        ),
        (
            "timed out",
            "ssh: no answer yet",
            "see that the server runs, and that its firewall lets this machine's address in",
        ),
        (
            "Could not resolve hostname",
            "ssh: the name leads to no address yet",
            "see that DNS has the name, or give the address itself",
        ),
        (
            "No route to host",
            "ssh: no route to the server yet",
            "see that the server runs, and that this machine has a network that leads there",
        ),
        (
            "Network is unreachable",
            "ssh: this machine has no network that leads to the server",
            "see that this machine has IPv6, where the address is IPv6",
        ),
        (
            "Connection closed",
            "ssh: the server closes the connection",
            "see its sshd's log: journalctl -u ssh",
        ),
        (
            "Connection reset",
            "ssh: the server resets the connection",
            "see its sshd's log: journalctl -u ssh",
        ),
    ):
        if words in stderr:
            return _NotYetError(now, HostNotReadyError(f"{server} cannot be reached. {own}", mend))
    return _NotYetError(
        f"ssh: {stderr.splitlines()[-1] if stderr else 'no connection'}",
        HostNotReadyError(f"{server} cannot be reached. {own}", "do what ssh says"),
    )


def _cloud_init(connection: Connection) -> None:
    """Return if cloud-init is done; raise ``_NotYetError`` while it works, else what went wrong."""
    done = _on_server(connection, "sh", "-c", _CLOUD_INIT_LOOK)
    if done.returncode == _NOT_FOUND:
        raise HostNotReadyError(
            f"there is no cloud-init on {connection.address}",
            "use an image that has it, such as Hetzner's debian-13, or host.kind: ssh",
        )
    answer, _, rest = done.stdout.partition("==== status.json\n")
    status_json, _, log = rest.partition("==== log\n")
    status = _status(answer)
    state = status.get("status")
    if state == "disabled":
        raise HostNotReadyError(
            f"cloud-init is switched off on {connection.address}: {status.get('detail')}",
            "use an image where it runs, or host.kind: ssh",
        )
    stages = _json(status_json).get("v1", {})
    errors = list(dict.fromkeys([*status.get("errors", []), *_stage_errors(stages)]))
    if state == "error" or errors:
        raise HostNotReadyError(
            f"cloud-init failed on {connection.address}:\n"
            + _indented("\n".join(map(str, errors)) or str(status.get("detail") or answer))
            + f"\n  the end of /var/log/cloud-init-output.log:\n{_indented(log)}",
            "mend what it says, then have the server replaced; or look at it:"
            f" {shlex.join(connection.command())} (in the project's folder)",
        )
    if state != "done":
        stage = stages.get("stage")
        now = _STAGES.get(str(stage), f"cloud-init: {stage or state}")
        raise _NotYetError(
            now,
            HostNotReadyError(
                f"cloud-init is not done on {connection.address}, its last word was: {now};"
                f" the end of /var/log/cloud-init-output.log:\n{_indented(log)}",
                "run this again to wait on, if that end moves",
            ),
        )


def _status(answer: str) -> Mapping[str, Any]:
    """Read what ``cloud-init status`` says, in JSON or, before 22.4, in lines."""
    told = _json(answer)
    if told:
        return told
    state = re.search(r"^status: (.+)$", answer, re.MULTILINE)
    detail = re.search(r"^detail:\n(.+)", answer, re.MULTILINE | re.DOTALL)
    return {
        "status": state[1].strip() if state else "unknown",
        "detail": detail[1].strip() if detail else answer.strip(),
    }


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stage_errors(stages: Mapping[str, Any]) -> list[str]:
    return [
        str(error)
        for stage in stages.values()
        if isinstance(stage, dict)
        for error in stage.get("errors") or []
    ]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def _engine(connection: Connection) -> HostEngine:
    """Return the engine, or raise what stands in its way."""
    address, user = connection.address, connection.user
    done = _on_server(connection, "docker", "version", "--format", "{{json .}}")
    said = done.stderr.strip()
    if done.returncode == _NOT_FOUND:
        raise HostNotReadyError(
            f"there is no docker on {address}",
            "install Docker Engine there: https://docs.docker.com/engine/install/",
        )
    if "permission denied" in said.lower():
        raise HostNotReadyError(
            f"{user} may not use Docker on {address}: {said}",
            f"run there: sudo usermod -aG docker {user} (who is in that group is as good as root)",
        )
    server = _json(done.stdout).get("Server") or {}
    if not server.get("Version"):
        raise _NotYetError(
            "Docker does not answer yet",
            HostNotReadyError(
                f"the Docker engine on {address} does not answer: {said or done.stdout.strip()}",
                "run there: sudo systemctl enable --now docker; and see why: journalctl -u docker -n 50",
            ),
        )
    version = str(server["Version"])
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _LEAST_ENGINE:
        raise HostNotReadyError(
            f"the Docker engine on {address} is {version}, and 20.10 is the least that works",
            "install a newer one there: https://docs.docker.com/engine/install/",
        )
    ipv6 = _keeps_ipv6_senders(connection, numbers[0])
    warnings = []
    if numbers[0] < _IP6TABLES_BY_DEFAULT:
        warnings.append(f"Docker Engine {version} on {address} is old: this project is made for 29 and newer")
    if not ipv6:
        warnings.append(
            f"the engine on {address} {'hides' if ipv6 is False else 'may hide'} the addresses of IPv6"
            ' clients, and the relay would tell them a wrong one; put "ip6tables": true and, before engine'
            f' {_IP6TABLES_BY_DEFAULT}, "experimental": true into /etc/docker/daemon.json there, then'
            " run: sudo systemctl restart docker; or set network.ipv6: false"
        )
    return HostEngine(version, str(server["ApiVersion"]), str(server["Arch"]), ipv6, tuple(warnings))


def _keeps_ipv6_senders(connection: Connection, major: int) -> bool | None:
    """Tell whether ports are published over IPv6 by rules of the kernel, ``None`` if that cannot be told.

    The engine's API does not tell: it is what its command line or its file says,
    and a file that is there may not be this user's to read. A rootless engine
    forwards by itself, whatever it is told.
    """
    options = _on_server(connection, "docker", "info", "--format", "{{json .SecurityOptions}}").stdout
    if "name=rootless" in options:
        return False
    arguments = _on_server(connection, "sh", "-c", _ENGINE_LOOK).stdout.splitlines()
    file = _argument(arguments, "--config-file") or "/etc/docker/daemon.json"
    read = _on_server(connection, "env", "LC_ALL=C", "cat", file)
    config = _json(read.stdout)

    def is_on(name: str) -> bool | None:
        """Return what was set; ``None`` where nothing was, as far as can be seen."""
        given = _argument(arguments, f"--{name}")
        return config.get(name) if given is None else given.lower() not in ("false", "0")

    wanted = is_on("ip6tables")
    if major >= _IP6TABLES_BY_DEFAULT:
        return wanted is not False
    if wanted and is_on("experimental"):
        return True
    seen = bool(arguments) and (read.returncode == 0 or "No such file" in read.stderr)
    return False if seen else None


def _argument(arguments: list[str], flag: str) -> str | None:
    """Return the value of ``flag``, ``"true"`` where it stands alone, ``None`` where it does not stand."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            following = arguments[position + 1 : position + 2]
            if equals:
                return value
            return following[0] if following and not following[0].startswith("-") else "true"
    return None
