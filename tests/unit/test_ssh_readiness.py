"""What a server answers, stage by stage, and what is said of it.

The answers are those of OpenSSH 9.2, cloud-init 22.4 and 25.1, and Docker 20.10 and 29.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ssh.connection import Connection
from ssh.keys import new_private_key, public_key
from ssh.readiness import HostEngine, HostNotReadyError, wait_until_ready

Answer = tuple[int, str, str]

OUTPUT_LOG = "Setting up docker-ce ...\nE: Failed to fetch https://download.docker.com/x  404  Not Found\n"


@dataclass(frozen=True)
class Played(Connection):
    """A connection whose server gives ``answers`` to each program, the last of them again and again."""

    answers: dict[str, list[Answer | Exception]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(
        self, *remote: str, timeout: float | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        assert timeout is not None
        assert stdin == ""
        text = " ".join(remote)
        program = next(name for name in self.answers if name in text)
        self.asked.append(program)
        queue = self.answers[program]
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(remote, *answer)

    def close(self) -> None:
        self.asked.append("close")


def docker(version: str = "29.1.3", arch: str = "amd64") -> Answer:
    server = {"Version": version, "ApiVersion": "1.52", "Arch": arch, "Os": "linux"}
    return 0, json.dumps({"Client": {"Version": "29.1.3"}, "Server": server}), ""


def cloud_init(status: dict[str, Any] | str, stages: dict[str, Any] | None = None, log: str = "") -> Answer:
    told = status if isinstance(status, str) else json.dumps(status, indent=2)
    file = json.dumps({"v1": stages}) if stages is not None else ""
    return 0, f"{told}\n==== status.json\n{file}\n==== log\n{log}", ""


def running(stage: str) -> Answer:
    return cloud_init({"status": "running", "errors": []}, {"stage": stage, "init": {"errors": []}})


DONE = cloud_init({"status": "done", "errors": [], "detail": "DataSourceHetzner"}, {"stage": None})

READY: dict[str, list[Answer | Exception]] = {
    "cloud-init": [DONE],
    "docker version": [docker()],
    "docker info": [(0, '["name=seccomp,profile=builtin","name=cgroupns"]', "")],
    "cmdline": [(0, "/usr/bin/dockerd\n-H\nfd://\n", "")],
    "/etc/docker/daemon.json": [(0, '{"live-restore": true}', "")],
}


def server(**answers: Answer | Exception | Sequence[Answer | Exception]) -> Played:
    """Return one that is ready, but for ``answers``: ``cloud_init``, ``docker``, ``info``, and so on."""
    names = {
        "cloud_init": "cloud-init",
        "docker": "docker version",
        "info": "docker info",
        "arguments": "cmdline",
        "file": "/etc/docker/daemon.json",
    }
    merged = {name: list(queue) for name, queue in READY.items()}
    for key, value in answers.items():
        merged[names[key]] = list(value) if isinstance(value, list) else [value]  # type: ignore[list-item]
    return Played("eu", "root", "203.0.113.7", answers=merged)


def wait(
    played: Played, *, new: bool = True, seconds: float = 0.05, sleep: Callable[[float], None] | None = None
) -> tuple[HostEngine, list[str]]:
    said: list[str] = []
    engine = wait_until_ready(
        played, cloud_init=new, seconds=seconds, say=said.append, sleep=sleep or (lambda _: None)
    )
    return engine, said


def failure(played: Played, *, new: bool = True) -> HostNotReadyError:
    with pytest.raises(HostNotReadyError) as caught:
        wait(played, new=new)
    assert caught.value.mend in str(caught.value)
    return caught.value


def ssh_says(text: str) -> Answer:
    return 255, "", text + "\r\n"


REFUSED = ssh_says("ssh: connect to host 203.0.113.7 port 22: Connection refused")


def test_each_new_state_is_said_once() -> None:
    played = server(
        cloud_init=[
            ssh_says("ssh: connect to host 203.0.113.7 port 22: Connection timed out"),
            ssh_says("ssh: connect to host 203.0.113.7 port 22: No route to host"),
            REFUSED,
            REFUSED,
            ssh_says("kex_exchange_identification: read: Connection reset by peer"),
            cloud_init({"status": "not run", "errors": []}),
            running("init"),
            running("modules-config"),
            running("modules-final"),
            running("modules-final"),
            running("modules-final"),
            DONE,
        ],
        docker=[(1, '{"Client":{},"Server":null}', "Cannot connect to the Docker daemon"), docker()],
    )
    slept: list[float] = []
    engine, said = wait(played, seconds=60, sleep=slept.append)
    assert engine == HostEngine("29.1.3", "1.52", "amd64", ipv6=True)
    assert said == [
        "ssh: no answer yet",
        "ssh: no route to the server yet",
        "ssh: connection refused; the server is up, and its sshd not yet",
        "ssh: the server resets the connection",
        "cloud-init: not run",
        "cloud-init: keys, users and files",
        "cloud-init: package sources and settings",
        "cloud-init: installing packages, Docker among them",
        "Docker does not answer yet",
        "Docker Engine 29.1.3 answers",
    ]
    # one for each answer that was not the last
    assert len(slept) == 12
    assert all(0 < seconds < 10 for seconds in slept)
    # a connection to the server that had the address before is not gone on with
    assert played.asked[0] == "close"


def test_server_that_exists_is_not_asked_for_cloud_init() -> None:
    played = server()
    engine, said = wait(played, new=False)
    assert engine.version == "29.1.3"
    assert said == ["Docker Engine 29.1.3 answers"]
    assert "cloud-init" not in played.asked


@pytest.mark.parametrize(
    ("words", "what", "mend"),
    [
        (
            (
                "@@@@@\r\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
                "Host key verification failed."
            ),
            "another host key than the one that is pinned",
            "do not go on before you know why",
        ),
        (
            (
                "No ED25519 host key is known for derp-relays-eu and you have requested strict checking.\r\n"
                "Host key verification failed."
            ),
            "another host key",
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        ),
        (
            (
                "Unable to negotiate with 203.0.113.7 port 22: no matching host key type found."
                " Their offer: rsa-sha2-512"
            ),
            "another host key",
            "do not go on",
        ),
        (
            "root@203.0.113.7: Permission denied (publickey).",
            "does not let this key in",
            "/.ssh/authorized_keys",
        ),
        (
            "Received disconnect from 203.0.113.7 port 22:2: Too many authentication failures",
            "does not let this key in",
            "host.deployKey",
        ),
        (".relayctl/ssh/eu/config: line 5: Bad configuration option: x", "does not take", "update OpenSSH"),
    ],
)
def test_what_no_waiting_mends_fails_at_once(words: str, what: str, mend: str) -> None:
    played = server(cloud_init=[ssh_says(words)])
    error = failure(played)
    assert what in error.what
    assert words.strip() in error.what
    assert mend in error.mend
    # what mends it may only show to a new login
    assert played.asked == ["close", "cloud-init", "close"]


def test_key_of_the_stacks_own_that_is_not_let_in_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssh.connection.PROJECT_FOLDER", tmp_path)
    played = server(docker=ssh_says("root@203.0.113.7: Permission denied (publickey)."))
    key = new_private_key("deploy")
    played.write(public_key(new_private_key("host")), key, None)
    error = failure(played, new=False)
    assert f"authorized_keys on the server:\n{public_key(key)} derp-relays-eu" in error.mend


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        ("ssh: connect to host 203.0.113.7 port 22: Connection refused", "listens on this port"),
        ("ssh: connect to host 203.0.113.7 port 22: Connection timed out", "firewall lets this machine"),
        ("Connection timed out during banner exchange", "firewall lets this machine"),
        ("ssh: Could not resolve hostname relay.example.com: Name or service not known", "DNS has the name"),
        ("ssh: connect to host 2001:db8::1 port 22: Network is unreachable", "has IPv6"),
        ("kex_exchange_identification: Connection closed by remote host", "journalctl -u ssh"),
        ("something else", "do what ssh says"),
    ],
)
def test_what_lasts_too_long_is_told_with_sshs_words(words: str, mend: str) -> None:
    played = server(docker=[ssh_says(words)])
    error = failure(played, new=False)
    assert words in error.what
    assert "(after 0 s)" in error.what
    assert mend in error.mend
    assert played.asked.count("docker version") > 1


def test_connection_that_hangs_is_told() -> None:
    error = failure(server(docker=[subprocess.TimeoutExpired("ssh", 60)]), new=False)
    assert "does not answer" in error.what


def test_missing_ssh_is_told() -> None:
    error = failure(server(docker=[FileNotFoundError(2, "No such file", "ssh")]), new=False)
    assert "apt-get install openssh-client" in error.mend


FAILED = "('package-update-upgrade-install', ProcessExecutionError('apt-get: exit 100'))"


@pytest.mark.parametrize(
    "answer",
    [
        # 22.4: an error in any stage is the status, while the others still run
        cloud_init(
            {"status": "error", "errors": [FAILED], "detail": FAILED},
            {"stage": "modules-final", "modules-final": {"errors": [FAILED]}},
            OUTPUT_LOG,
        ),
        # 25.1
        cloud_init(
            {"status": "error", "extended_status": "error - done", "errors": [FAILED]},
            {"stage": None, "modules-final": {"errors": [FAILED], "recoverable_errors": {}}},
            OUTPUT_LOG,
        ),
        # before 22.4 there is no JSON
        cloud_init(
            f"status: error\ntime: Fri, 01 Mar 2024 10:00:00 +0000\ndetail:\n{FAILED}", None, OUTPUT_LOG
        ),
        # a status that is not told of, as in the status file alone
        cloud_init({"status": "done", "errors": []}, {"modules-final": {"errors": [FAILED]}}, OUTPUT_LOG),
    ],
)
def test_errors_of_cloud_init_are_told_in_its_own_words(answer: Answer) -> None:
    error = failure(server(cloud_init=[running("init"), answer]))
    assert error.what.count(FAILED) == 1
    assert "E: Failed to fetch https://download.docker.com/x  404" in error.what
    assert "have the server replaced" in error.mend


def test_warnings_of_cloud_init_are_no_failure() -> None:
    status = {
        "status": "done",
        "extended_status": "degraded done",
        "errors": [],
        "recoverable_errors": {"WARNING": ["something is deprecated"]},
    }
    engine, _ = wait(server(cloud_init=[cloud_init(status, {"stage": None, "init": {"errors": []}})]))
    assert engine.version == "29.1.3"


def test_cloud_init_of_older_versions_is_understood() -> None:
    plain = [
        cloud_init("status: running\ndetail:\nRunning in stage: modules-final"),
        cloud_init("status: done\ntime: Fri\ndetail:\nDataSourceHetzner"),
    ]
    _, said = wait(server(cloud_init=plain), seconds=20)
    assert said == ["cloud-init: running", "Docker Engine 29.1.3 answers"]


def test_cloud_init_that_lasts_too_long_is_told_with_the_end_of_its_log() -> None:
    slow = cloud_init({"status": "running", "errors": []}, {"stage": "modules-final"}, OUTPUT_LOG)
    error = failure(server(cloud_init=[slow]))
    assert "installing packages" in error.what
    assert "Setting up docker-ce" in error.what


def test_image_without_cloud_init_is_told() -> None:
    assert "there is no cloud-init" in failure(server(cloud_init=[(127, "", "")])).what
    off = cloud_init({"status": "disabled", "detail": "disabled by /etc/cloud/cloud-init.disabled"})
    assert "/etc/cloud/cloud-init.disabled" in failure(server(cloud_init=[off])).what


@pytest.mark.parametrize(
    ("answer", "what", "mend", "at_once"),
    [
        ((127, "", "bash: docker: command not found"), "there is no docker", "docs.docker.com", True),
        (
            (
                1,
                '{"Client":{},"Server":null}',
                "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            ),
            "root may not use Docker",
            "sudo usermod -aG docker root",
            True,
        ),
        (
            (
                1,
                '{"Client":{},"Server":null}',
                "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            ),
            "Is the docker daemon running?",
            "sudo systemctl enable --now docker",
            False,
        ),
        ((0, "no JSON", ""), "no JSON", "systemctl", False),
        (docker("19.03.15"), "19.03.15, and 20.10 is the least", "install a newer one", True),
    ],
)
def test_engine_that_cannot_be_used_is_told_with_the_command_that_mends_it(
    answer: Answer,
    what: str,
    mend: str,
    at_once: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    played = server(docker=[answer])
    error = failure(played, new=False)
    assert what in error.what
    assert mend in error.mend
    assert (played.asked.count("docker version") == 1) == at_once


NO_FILE = (1, "", "cat: /etc/docker/daemon.json: No such file or directory")
CLOSED_FILE = (1, "", "cat: /etc/docker/daemon.json: Permission denied")
ON = (0, '{"ip6tables": true, "experimental": true}', "")


@pytest.mark.parametrize(
    ("version", "arguments", "file", "ipv6"),
    [
        ("29.1.3", "dockerd", NO_FILE, True),
        ("29.1.3", "dockerd", CLOSED_FILE, True),
        ("27.0.1", "dockerd", (0, '{"ip6tables": false}', ""), False),
        ("28.5.2", "dockerd --ip6tables=false", NO_FILE, False),
        ("26.1.5", "dockerd", NO_FILE, False),
        ("26.1.5", "dockerd", CLOSED_FILE, None),
        ("20.10.24", "dockerd", ON, True),
        ("20.10.24", "dockerd", (0, '{"ip6tables": true}', ""), False),
        ("20.10.24", "dockerd --experimental --ip6tables", NO_FILE, True),
        ("20.10.24", "dockerd --experimental=false", ON, False),
        ("20.10.24", "", NO_FILE, None),
    ],
)
def test_ipv6_is_told_by_what_the_engine_was_started_with(
    version: str,
    arguments: str,
    file: Answer,
    ipv6: bool | None,  # noqa: FBT001 - a parameter of the test
) -> None:
    words = arguments.replace(" ", "\n")
    engine, _ = wait(server(docker=docker(version), arguments=(0, words, ""), file=file), new=False)
    assert engine.ipv6 is ipv6
    assert any('"ip6tables": true' in warning for warning in engine.warnings) == (ipv6 is not True)
    assert any("is old" in warning for warning in engine.warnings) == (int(version[:2]) < 27)


def test_file_that_the_engine_was_named_is_read() -> None:
    played = server(
        docker=docker("20.10.24"), arguments=(0, "dockerd\n--config-file\n/srv/docker.json\n", "")
    )
    played.answers["/srv/docker.json"] = [ON]
    engine, _ = wait(played, new=False)
    assert engine.ipv6 is True
    assert "/etc/docker/daemon.json" not in played.asked


def test_rootless_engine_hides_senders() -> None:
    engine, _ = wait(server(info=(0, '["name=rootless","name=cgroupns"]', "")), new=False)
    assert engine.ipv6 is False
    assert len(engine.warnings) == 1


def test_default_bounds_are_for_a_new_server_and_for_one_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    for new, bound in ((True, 900), (False, 60)):
        clock = 0.0

        def sleep(seconds: float) -> None:
            nonlocal clock
            clock += seconds

        monkeypatch.setattr("tenacity.time.monotonic", lambda: clock)  # noqa: B023 - used within this turn
        with pytest.raises(HostNotReadyError, match=f"after {bound} s"):
            wait_until_ready(
                server(cloud_init=[REFUSED], docker=[REFUSED]),
                cloud_init=new,
                say=lambda _: None,
                sleep=sleep,
            )
        assert bound <= clock < bound + 10
