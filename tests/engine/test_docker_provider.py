"""The stand-in for the docker plugin under the real engine, against a real Docker Engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.progress import Progress
from tests.docker_host import DockerHost, docker_host
from tests.engine.stand_in import Project, stand_in
from tests.requirements import require

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "container_program"
IMAGE = "stand-in-test/program"
NAME = "stand-in-test"

# The resources and their options come from a file, so that a test can say them.
PULUMI_PROGRAM = """
import json, os
import pulumi, pulumi_docker as docker
with open("resources.json") as file:
    wanted = json.load(file)
provider = docker.Provider("local", host=wanted["host"], ssh_opts=wanted["ssh_opts"])
made = {}
for name, one in wanted["resources"].items():
    options = one.get("options", {})
    if "host" in one:
        own = docker.Provider(name, host=one["host"], ssh_opts=wanted["ssh_opts"])
        options = {**options, "provider": own}
    arguments = dict(one["args"])
    if arguments.get("image", "").startswith("@"):
        arguments["image"] = made[arguments["image"][1:]].name
    for secret in one.get("secrets", []):
        arguments[secret] = pulumi.Output.secret(arguments[secret])
    needed = list(made.values()) if options.pop("last", False) else []
    options = pulumi.ResourceOptions(**{"provider": provider, "depends_on": needed, **options})
    made[name] = getattr(docker, one["type"])(name, **arguments, opts=options)
    pulumi.export(name, made[name].id)
"""


LATER = """
import pulumi, pulumi_docker as docker
first = docker.Provider("first")
network = docker.Network("n", opts=pulumi.ResourceOptions(provider=first))
later = docker.Provider("later", host=network.id.apply(lambda made: f"unix:///nonexistent/{made}"))
docker.Volume("v", opts=pulumi.ResourceOptions(provider=later))
"""


@dataclass
class Stack(Project):
    """A Pulumi project of the test's own and its stack, with the stand-in attached."""

    host: str
    docker: docker.DockerClient
    touched: bool = False

    def write(
        self, resources: Mapping[str, Any], host: str | None = None, ssh_options: Sequence[str] = ()
    ) -> None:
        wanted = {"host": host or self.host, "ssh_opts": list(ssh_options) or None, "resources": resources}
        (self.folder / "resources.json").write_text(json.dumps(wanted))

    def run(self, *arguments: str, fails: bool = False, json_only: bool = False) -> str:
        self.touched = self.touched or arguments[0] in {"up", "import"}
        return super().run(*arguments, fails=fails, json_only=json_only)

    def container(self, name: str = NAME) -> Any:
        return self.docker.containers.get(name)


@pytest.fixture(scope="module")
def client(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> docker.DockerClient:
    """Build the test's image, under two tags, and return a client of the host's daemon."""
    go = shutil.which("go")
    require(go, "Go builds the program that the test's containers run", "apt-get install golang-go")
    assert go is not None
    folder = tmp_path_factory.mktemp("image")
    subprocess.run(
        [go, "build", "-o", str(folder / "program"), "."],
        cwd=PROGRAM,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"},
        check=True,
    )
    dockerfile = 'FROM scratch\nCOPY program /program\nENTRYPOINT ["/program"]\nCMD ["wait"]\n'
    (folder / "Dockerfile").write_text(dockerfile)
    made = host.client()
    for tag in ("1", "2"):
        made.images.build(path=str(folder), tag=f"{IMAGE}:{tag}", labels={"tag": tag}, rm=True)
    return made


@pytest.fixture(scope="module")
def shared(
    host: DockerHost, client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("engine")
    with stand_in("docker", folder / "stand-in.log", DOCKER_HOST=host.address) as (_, port):
        yield project(folder / "project", host.address, client, pulumi_cli.bring(Progress()), port)
    assert (folder / "stand-in.log").read_text() == ""


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    """Yield the stack with nothing in it, and see that nothing is left of what the test made."""
    shared.write({})
    yield shared
    if shared.touched:
        shared.run("destroy", "--yes", "--skip-preview")
        shared.touched = False
    left = [c.name for c in shared.docker.containers.list(all=True)]
    left += [n.name for n in shared.docker.networks.list() if n.name not in {"bridge", "host", "none"}]
    left += [v.name for v in shared.docker.volumes.list()]
    assert left == []


def project(
    folder: Path, host: str, client: docker.DockerClient, cli: pulumi_cli.PulumiCli, port: int
) -> Stack:
    folder.mkdir()
    (folder / "state").mkdir()
    (folder / "Pulumi.yaml").write_text("name: stand-in-test\nruntime: python\n")
    (folder / "__main__.py").write_text(PULUMI_PROGRAM)
    environment = {
        **cli.environment,
        "PULUMI_BACKEND_URL": f"file://{folder}/state",
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_DEBUG_PROVIDERS": f"docker:{port}",
        # else each call first tries to download the plugins of all SDKs that are installed
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    made = Stack(folder, environment, Path(cli.command), host, client)
    made.write({})
    made.run("stack", "init")
    return made


def one(**arguments: Any) -> dict[str, Any]:
    """Return a program of one container."""
    return {"c": {"type": "Container", "args": {"name": NAME, "image": f"{IMAGE}:1", **arguments}}}


def health(path: str, **more: Any) -> dict[str, Any]:
    return {"tests": ["CMD", "/program", "exists", path], "interval": "1s", "retries": 1, **more}


def everything(folder: Path) -> dict[str, Any]:
    """Return a program with all that the project uses, and more."""
    (folder / "www").mkdir(exist_ok=True)
    (folder / "source").write_text("from a file")
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(f"FROM {IMAGE}:1\nARG A\nLABEL argument=$A\n")
    return {
        "network": {
            "type": "Network",
            "args": {
                "name": f"{NAME}-network",
                "ipv6": True,
                "ipam_configs": [{"subnet": "fd00:5:5::/64"}],
                "labels": [{"label": "a", "value": "b"}],
            },
            "options": {"ignore_changes": ["ipamConfigs"]},
        },
        "plain": {"type": "Network", "args": {}},
        "volume": {"type": "Volume", "args": {"name": f"{NAME}-volume"}},
        "found": {"type": "RemoteImage", "args": {"name": f"{IMAGE}:1", "keep_locally": True}},
        "built": {
            "type": "RemoteImage",
            "args": {
                "name": f"{IMAGE}:built",
                "build": {
                    "context": str(context),
                    "use_legacy_builder": True,
                    "build_args": {"A": "1"},
                    "labels": {"from": "test"},
                    "tags": [f"{IMAGE}:also"],
                },
            },
        },
        "c": {
            "type": "Container",
            "args": {
                "name": NAME,
                "image": "@built",
                "networks_advanced": [{"name": f"{NAME}-network", "aliases": ["one", "two"]}],
                "capabilities": {"adds": ["CAP_NET_ADMIN"], "drops": ["CAP_MKNOD"]},
                "hosts": [{"host": "host.docker.internal", "ip": "host-gateway"}],
                "healthcheck": health("/etc/app/source", start_period="1m0s"),
                "wait": True,
                "wait_timeout": 30,
                "log_driver": "json-file",
                "log_opts": {"max-size": "10m", "max-file": "3"},
                "memory": 64,
                "memory_swap": 128,
                "restart": "unless-stopped",
                "labels": [{"label": "com.example.a", "value": "b"}],
                "envs": ["B=2", "A=1"],
                "ulimits": [{"name": "nofile", "soft": 1024, "hard": 2048}],
                "volumes": [
                    {"volume_name": f"{NAME}-volume", "container_path": "/data"},
                    {"host_path": str(folder / "www"), "container_path": "/srv", "read_only": True},
                ],
                "mounts": [{"type": "tmpfs", "target": "/scratch"}],
                "uploads": [
                    {"file": "/etc/app/config", "content": "hello\n", "permissions": "0640"},
                    {"file": "/etc/app/b64", "content_base64": "/w==", "executable": True},
                    {"file": "/etc/app/source", "source": str(folder / "source"), "source_hash": "1"},
                ],
                "ports": [
                    {"internal": 443, "external": 18443, "protocol": "tcp"},
                    {"internal": 443, "external": 18443, "protocol": "udp"},
                    {"internal": 80, "external": 18080, "ip": "127.0.0.1"},
                    {"internal": 8080},
                ],
                "destroy_grace_seconds": 5,
                "stop_timeout": 5,
                "init": True,
                "tmpfs": {"/run": "size=1m"},
                "security_opts": ["no-new-privileges:true"],
                "sysctls": {"net.core.somaxconn": "512"},
                "hostname": "app",
                "dns": ["192.0.2.1"],
                "user": "0",
                "working_dir": "/",
            },
            "secrets": ["envs"],
            "options": {"last": True},
        },
        "other": {"type": "Container", "args": {"image": f"{IMAGE}:1"}},
    }


def test_everything_is_made_as_said_and_then_left_alone(stack: Stack, tmp_path: Path) -> None:
    resources = everything(tmp_path)
    steps = stack.preview(resources)
    assert {step["op"] for step in steps.values()} == {"create"}
    assert stack.docker.containers.list(all=True) == [], "a preview touched Docker"
    assert "stand-in for the pulumi-docker plugin" in stack.up(resources)

    attributes = stack.container().attrs
    assert attributes["State"]["Health"]["Status"] == "healthy"
    assert sorted(attributes["Config"]["Env"])[:2] == ["A=1", "B=2"]
    assert list(attributes["NetworkSettings"]["Networks"]) == [f"{NAME}-network"]
    endpoint = attributes["NetworkSettings"]["Networks"][f"{NAME}-network"]
    assert {"one", "two"} <= set(endpoint["Aliases"])
    assert endpoint["GlobalIPv6Address"].startswith("fd00:5:5:")
    ports = attributes["NetworkSettings"]["Ports"]
    assert ports["443/udp"][0]["HostPort"] == ports["443/tcp"][0]["HostPort"] == "18443"
    assert ports["80/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "18080"}]
    assert int(ports["8080/tcp"][0]["HostPort"]) > 0
    assert {(m["Type"], m["Destination"], m["RW"]) for m in attributes["Mounts"]} >= {
        ("volume", "/data", True),
        ("bind", "/srv", False),
    }
    assert uploaded(stack, "/etc/app/config") == (b"hello\n", 0o640)
    assert uploaded(stack, "/etc/app/b64") == (b"\xff", 0o744)
    assert uploaded(stack, "/etc/app/source") == (b"from a file", 0o644)
    built = stack.docker.images.get(f"{IMAGE}:built")
    assert built.labels == {"tag": "1", "argument": "1", "from": "test"}
    assert f"{IMAGE}:also" in built.tags

    stack.unchanged()
    stack.refresh()
    stack.unchanged()
    exported = json.dumps(json.loads(stack.run("stack", "export", json_only=True)))
    assert "A=1" not in exported, "a secret is in the state in the clear"
    stack.docker.images.remove(f"{IMAGE}:also")


def uploaded(stack: Stack, path: str) -> tuple[bytes, int]:
    stream, _ = stack.container().get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        return content.read(), member.mode & 0o777


def test_only_what_docker_can_change_is_changed_in_place(stack: Stack) -> None:
    first = {
        "memory": 64,
        "memory_swap": 128,
        "tmpfs": {"/run": "size=1m"},
        "healthcheck": health("/program"),
    }
    stack.up(one(**first))
    before = stack.container()
    after_edit = one(
        memory=80,
        memory_swap=160,
        restart="always",
        init=True,
        tmpfs={"/run": "size=2m"},
        healthcheck=health("/other"),
    )
    steps = stack.preview(after_edit)
    assert steps["c"]["op"] == "update"
    assert set(steps["c"]["detailedDiff"]) == {
        "memory",
        "memorySwap",
        "restart",
        "init",
        'tmpfs["/run"]',
        "healthcheck.tests[3]",
    }
    stack.up(after_edit)
    after = stack.container()
    assert after.id == before.id
    settings = after.attrs["HostConfig"]
    assert (settings["Memory"], settings["MemorySwap"]) == (80 * 2**20, 160 * 2**20)
    assert settings["RestartPolicy"]["Name"] == "always"
    # the real plugin reports success for these and does nothing
    assert settings["Init"] is False
    assert settings["Tmpfs"] == {"/run": "size=1m"}
    assert after.attrs["Config"]["Healthcheck"]["Test"][-1] == "/program"
    stack.unchanged()
    # a refresh shows it
    stack.refresh()
    assert set(stack.preview(after_edit)["c"]["detailedDiff"]) == {
        "init",
        'tmpfs["/run"]',
        "healthcheck.tests[3]",
    }


def test_replace_on_changes_makes_an_update_a_replacement(stack: Stack) -> None:
    """Left to itself in an order that the name forbids: the plugin knows of its own replacements only."""
    resources = one(healthcheck=health("/program"))
    resources["c"]["options"] = {"replace_on_changes": ["healthcheck"]}
    stack.up(resources)
    before = stack.container().id
    resources["c"]["args"]["healthcheck"] = health("/other")
    assert "is already in use by container" in stack.up(resources, fails=True)
    resources["c"]["options"] = {"replace_on_changes": ["healthcheck"], "delete_before_replace": True}
    stack.up(resources)
    assert stack.container().id != before
    assert stack.container().attrs["Config"]["Healthcheck"]["Test"][-1] == "/other"


def test_a_replaced_container_goes_before_the_new_one_comes(stack: Stack) -> None:
    """They share the name and the port, so the other order would fail."""
    published = {"ports": [{"internal": 80, "external": 18081}]}
    stack.up(one(**published))
    before = stack.container().id
    edit = one(**published, image=f"{IMAGE}:2")
    step = stack.preview(edit)["c"]
    assert step["replaceReasons"] == ["image"]
    assert step["detailedDiff"] == {"image": {"kind": "update-replace", "inputDiff": False}}
    said = stack.up(edit)
    assert said.index("deleted original") < said.index("creating replacement")
    assert stack.container().id != before
    assert stack.container().attrs["Config"]["Image"] == f"{IMAGE}:2"


def test_a_replaced_network_of_a_given_name_goes_first_too(stack: Stack) -> None:
    def network(**arguments: Any) -> dict[str, Any]:
        return {"n": {"type": "Network", "args": {"name": NAME, **arguments}}}

    stack.up(network())
    before = stack.docker.networks.get(NAME).id
    said = stack.up(network(internal=True))
    assert said.index("deleted original") < said.index("creating replacement")
    assert stack.docker.networks.get(NAME).id != before
    unnamed = {"n": {"type": "Network", "args": {"internal": True, "labels": [{"label": "a", "value": "b"}]}}}
    # a name that is in the state is kept
    assert stack.preview(unnamed)["n"]["replaceReasons"] == ["labels"]


def test_an_ipv6_subnet_alone_would_replace_the_network_after_a_refresh(stack: Stack) -> None:
    resources = {
        "n": {
            "type": "Network",
            "args": {"name": NAME, "ipv6": True, "ipam_configs": [{"subnet": "fd00:6::/64"}]},
        }
    }
    stack.up(resources)
    stack.unchanged()
    stack.refresh()
    assert stack.preview(resources)["n"]["replaceReasons"] == ["ipamConfigs"]


def test_a_refresh_finds_what_was_changed_by_hand(stack: Stack) -> None:
    resources = one(memory=64, memory_swap=128, capabilities={"adds": ["NET_ADMIN"]})
    stack.up(resources)
    stack.unchanged()
    stack.container().update(mem_limit=96 * 2**20, memswap_limit=192 * 2**20)
    stack.refresh()
    differences = stack.preview(resources)["c"]["detailedDiff"]
    # Docker writes capabilities with the prefix
    assert set(differences) == {"memory", "memorySwap", "capabilities.adds[0]"}


def test_a_removed_resource_is_made_again_after_a_refresh(stack: Stack) -> None:
    resources = {
        "n": {"type": "Network", "args": {"name": NAME}},
        "v": {"type": "Volume", "args": {"name": NAME}},
        **one(),
    }
    stack.up(resources)
    stack.container().remove(force=True)
    stack.docker.networks.get(NAME).remove()
    stack.docker.volumes.get(NAME).remove()
    stack.refresh()
    assert {name: step["op"] for name, step in stack.preview(resources).items()} == dict.fromkeys(
        "nvc", "create"
    )
    stack.up(resources)
    assert stack.container().status == "running"


def test_a_stopped_container_is_started_again(stack: Stack) -> None:
    stack.up(one())
    before = stack.container()
    before.stop(timeout=1)
    stack.unchanged()
    stack.refresh()
    assert set(stack.preview(one())["c"]["detailedDiff"]) == {"mustRun"}
    stack.up(one())
    assert (stack.container().id, stack.container().status) == (before.id, "running")


def test_a_taken_port_is_told_and_the_next_update_mends_it(stack: Stack) -> None:
    other = stack.docker.containers.run(f"{IMAGE}:1", detach=True, ports={"80/tcp": 18082})
    resources = one(ports=[{"internal": 80, "external": 18082}])
    said = stack.up(resources, fails=True)
    assert "Unable to start container: Error response from daemon" in said
    assert "port is already allocated" in said
    assert stack.container().status == "created", "the container is kept, and known"
    other.remove(force=True)
    stack.up(resources)
    assert stack.container().status == "running"
    stack.unchanged()


def test_an_unhealthy_container_is_told_with_what_its_check_said(stack: Stack) -> None:
    said = stack.up(one(healthcheck=health("/missing"), wait=True, wait_timeout=3), fails=True)
    assert "the container did not become healthy in 3 seconds" in said
    assert "/missing: no such file" in said
    stack.up(one(healthcheck=health("/program"), wait=True, wait_timeout=30))
    assert stack.container().attrs["State"]["Health"]["Status"] == "healthy"


def test_a_container_with_command_and_entry_point_is_not_mended_by_the_next_update(stack: Stack) -> None:
    """As with the real plugin, which then sees nothing to replace: give one of the two only."""
    resources = one(
        entrypoints=["/program"], command=["wait"], healthcheck=health("/missing"), wait=True, wait_timeout=2
    )
    stack.up(resources, fails=True)
    before = stack.container().id
    stack.up(resources)
    assert stack.container().id == before


def test_failures_are_told_and_leave_nothing_unknown(stack: Stack) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": "registry.invalid/none:1"}, "unable to pull image registry.invalid/none:1"),
        ({"networks_advanced": [{"name": "nowhere"}]}, "network nowhere not found"),
        ({"uploads": [{"file": "/a", "source": "/nonexistent"}]}, "could not read file"),
        ({"wait": True}, "'wait' needs a health check"),
        ({"memory": 1}, "Minimum memory limit"),
        ({"entrypoints": ["/nonexistent"]}, "Unable to start container"),
    ]
    stack.write(
        {
            f"c{number}": {"type": "Container", "args": {"image": f"{IMAGE}:1", **arguments}}
            for number, (arguments, _) in enumerate(cases)
        }
    )
    said = stack.run("up", "--yes", "--skip-preview", "--continue-on-error", fails=True)
    assert [message for _, message in cases if message not in said] == []


def test_arguments_that_are_not_carried_are_refused_in_a_preview(stack: Stack) -> None:
    stack.write(one(gpus="all"))
    said = stack.run("preview", fails=True)
    assert "does not carry 'gpus'" in said
    assert "pulumi plugin install resource docker 5.2.0" in said


def test_other_resource_types_are_refused(stack: Stack) -> None:
    stack.write({"t": {"type": "Tag", "args": {"source_image": f"{IMAGE}:1", "target_image": f"{IMAGE}:t"}}})
    said = stack.run("preview", fails=True)
    assert "unrecognized resource type docker:index/tag:Tag" in said


def test_a_daemon_on_another_machine_is_reached_by_ssh_only(stack: Stack) -> None:
    stack.write(one(), host="tcp://192.0.2.1:2375")
    said = stack.run("preview", fails=True)
    assert "reaches Docker daemons at unix:///PATH, tcp://127.0.0.1:PORT and ssh://USER@HOST" in said
    assert "pulumi plugin install resource docker 5.2.0" in said
    stack.write(one())


def test_a_daemon_that_does_not_answer_is_told(stack: Stack, tmp_path: Path) -> None:
    stack.write(one(), host=f"unix://{tmp_path}/none.sock")
    said = stack.run("preview", fails=True)
    assert f"cannot talk to the Docker daemon at unix://{tmp_path}/none.sock" in said


# -- behind ssh


@dataclass
class SshServer:
    """An sshd on loopback, at which the Docker Engine of one host answers, with keys of its own."""

    folder: Path
    engine: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    @property
    def options(self) -> list[str]:
        return ["-F", str(self.folder / "config")]

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def start(self) -> None:
        for name in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True
            )
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"PermitRootLogin prohibit-password\nMaxSessions 100\nSetEnv DOCKER_HOST={self.engine}\n"
        )
        self.trust(self.folder / "host_key.pub")
        (self.folder / "config").write_text(
            f"IdentityFile {self.folder}/user_key\nIdentitiesOnly yes\nBatchMode yes\n"
            f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile none\n"
            f"StrictHostKeyChecking yes\nHostKeyAlias server\n"
            f"ControlMaster auto\nControlPath {self.folder}/%C\nControlPersist 30\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"sshd did not start: {self.log}")

    def trust(self, public_key: Path) -> None:
        (self.folder / "known_hosts").write_text(f"server {public_key.read_text()}")

    def ssh(self, *arguments: str) -> None:
        login = ["ssh", *self.options, "-l", "root", "-p", str(self.port)]
        subprocess.run([*login, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def stop(self) -> None:
        self.ssh("-O", "exit", "127.0.0.1")
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


def free_port() -> int:
    with socket.socket() as one_socket:
        one_socket.bind(("127.0.0.1", 0))
        return int(one_socket.getsockname()[1])


@contextlib.contextmanager
def ssh_server(engine: str) -> Iterator[SshServer]:
    require(Path("/usr/sbin/sshd").exists(), "sshd is missing", "apt-get install openssh-server")
    require(shutil.which("docker"), "Docker's command line is missing", "apt-get install docker.io")
    # the path of a connection's socket has at most 107 bytes, so the folder cannot be deep
    with tempfile.TemporaryDirectory(prefix="ssh-") as folder:
        made = SshServer(Path(folder), engine, free_port())
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def server(stack: Stack) -> Iterator[SshServer]:
    """Yield an sshd in front of the stack's engine; the stack's own way to it is there again afterwards."""
    with ssh_server(stack.host) as made:
        yield made
        stack.write({})
        if made.process is not None and stack.touched:
            stack.write({}, made.address, made.options)
            stack.run("up", "--yes", "--skip-preview")


def test_everything_works_behind_ssh(stack: Stack, server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    resources = everything(folder)
    stack.write(resources, server.address, server.options)
    stack.run("up", "--yes", "--skip-preview")
    assert stack.container().attrs["State"]["Health"]["Status"] == "healthy"
    assert uploaded(stack, "/etc/app/b64") == (b"\xff", 0o744)
    stack.unchanged()
    stack.refresh()
    stack.unchanged()
    stack.docker.images.remove(f"{IMAGE}:also")


def test_all_of_a_run_goes_through_one_connection_if_the_options_say_so(
    stack: Stack, server: SshServer
) -> None:
    resources = {f"c{n}": {"type": "Container", "args": {"image": f"{IMAGE}:1"}} for n in range(8)}
    stack.write(resources, server.address, server.options)
    # the first connection, which others then share; several at once would each be the first
    server.ssh("127.0.0.1", "true")
    stack.run("up", "--yes", "--skip-preview")
    assert len(stack.docker.containers.list()) == 8
    assert server.log.count("Accepted publickey") == 1, server.log


def test_a_server_that_cannot_be_trusted_or_reached_is_told_in_the_words_of_ssh(
    stack: Stack, server: SshServer
) -> None:
    stack.write(one(), server.address, server.options)
    server.trust(server.folder / "user_key.pub")
    said = stack.run("up", "--yes", "--skip-preview", fails=True)
    assert f"cannot talk to the Docker daemon at {server.address}: ssh: " in said
    assert "Host key verification failed" in said
    server.trust(server.folder / "host_key.pub")
    (server.folder / "authorized_keys").write_text("")
    assert "Permission denied (publickey" in stack.run("up", "--yes", "--skip-preview", fails=True)
    server.stop()
    assert "Connection refused" in stack.run("up", "--yes", "--skip-preview", fails=True)
    assert stack.docker.containers.list(all=True) == []


def test_a_server_that_is_gone_fails_what_needs_it_and_nothing_else(stack: Stack, server: SshServer) -> None:
    stack.write(one(), server.address, server.options)
    stack.run("up", "--yes", "--skip-preview")
    server.stop()
    stack.unchanged()
    assert "Connection refused" in stack.run("refresh", "--yes", "--skip-preview", fails=True)
    assert "Connection refused" in stack.run("destroy", "--yes", "--skip-preview", fails=True)
    # the server has moved, and the containers with it
    stack.write(one())
    stack.run("up", "--yes", "--skip-preview")
    stack.unchanged()
    assert stack.container().status == "running"


def test_hosts_are_told_apart_in_one_run(stack: Stack, server: SshServer) -> None:
    with docker_host() as second, ssh_server(second.address) as moved:
        client = second.client()
        for image in stack.docker.images.get(f"{IMAGE}:1"), stack.docker.images.get(f"{IMAGE}:2"):
            client.images.load(b"".join(image.save(named=True)))
        stack.write(one(), server.address, server.options)
        stack.run("up", "--yes", "--skip-preview")
        first = stack.container().id

        # the provider is updated in place: the host may be another one for what it made
        shutil.copy(server.folder / "authorized_keys", moved.folder / "authorized_keys")
        server.trust(moved.folder / "host_key.pub")
        stack.write(one(image=f"{IMAGE}:2"), moved.address, server.options)
        stack.run("up", "--yes", "--skip-preview")
        assert client.containers.get(NAME).attrs["Config"]["Image"] == f"{IMAGE}:2"
        assert stack.container().id == first, "left to the host that is given up, as with the real plugin"
        stack.container().remove(force=True)

        # two provider resources at once
        both = one(image=f"{IMAGE}:2") | {
            "other": {
                "type": "Container",
                "args": {"name": "other", "image": f"{IMAGE}:1"},
                "host": stack.host,
            }
        }
        stack.write(both, moved.address, server.options)
        stack.run("up", "--yes", "--skip-preview")
        assert [each.name for each in client.containers.list()] == [NAME]
        assert [each.name for each in stack.docker.containers.list()] == ["other"]
        stack.unchanged()
        stack.run("destroy", "--yes", "--skip-preview")
        assert client.containers.list(all=True) == stack.docker.containers.list(all=True) == []


def test_a_host_that_is_not_known_yet_is_not_asked(stack: Stack) -> None:
    program = (stack.folder / "__main__.py").read_text()
    (stack.folder / "__main__.py").write_text(LATER)
    try:
        steps = json.loads(stack.run("preview", "--json", json_only=True))["steps"]
        assert {step["urn"].rsplit("::", 1)[-1]: step["op"] for step in steps}["v"] == "create"
        assert "cannot talk to the Docker daemon" in stack.run("up", "--yes", "--skip-preview", fails=True)
    finally:
        (stack.folder / "__main__.py").write_text(program)


def seconds_to_die(stack: Stack, since: float) -> float:
    """Return the time between the asking and the end of the container that was stopped after ``since``."""
    at: dict[str, float] = {}
    events = stack.docker.events(
        since=since, until=time.time() + 1, decode=True, filters={"type": "container"}
    )
    for event in events:
        at.setdefault(event["Action"], event["timeNano"] / 1e9)
    return at["die"] - at["kill"]


def test_the_grace_period_decides_how_a_container_ends(stack: Stack) -> None:
    stack.up(one(command=["stubborn"], destroy_grace_seconds=2))
    began = time.time()
    stack.up({})
    assert 2 <= seconds_to_die(stack, began) < 4
    stack.up(one(command=["stubborn"], stop_timeout=20))
    began = time.time()
    stack.up({})
    assert seconds_to_die(stack, began) < 1, "without destroy_grace_seconds it is killed at once"


def test_logs_of_a_container_that_ends_are_kept(stack: Stack) -> None:
    stack.up(one(command=["exists", "/missing"], attach=True, logs=True, must_run=False))
    (state,) = [
        resource["outputs"]
        for resource in json.loads(stack.run("stack", "export", json_only=True))["deployment"]["resources"]
        if resource["type"].endswith(":Container")
    ]
    assert state["exitCode"] == 1
    assert "/missing: no such file" in state["containerLogs"]


def test_an_import_takes_over_what_is_there(stack: Stack) -> None:
    made = stack.docker.networks.create(NAME, labels={"a": "b"})
    stack.up({})
    said = stack.run(
        "import",
        "docker:index/network:Network",
        "n",
        str(made.id),
        "--yes",
        "--protect=false",
        "--generate-code=false",
    )
    assert "1 imported" in said
    resources = {"n": {"type": "Network", "args": {"name": NAME, "labels": [{"label": "a", "value": "b"}]}}}
    assert stack.preview(resources).get("n", {}).get("op") in {None, "update"}


def test_an_image_is_kept_only_if_asked(stack: Stack, client: docker.DockerClient) -> None:
    for tag in ("kept", "dropped"):
        client.images.get(f"{IMAGE}:1").tag(IMAGE, tag)
    stack.up(
        {
            "kept": {"type": "RemoteImage", "args": {"name": f"{IMAGE}:kept", "keep_locally": True}},
            "dropped": {"type": "RemoteImage", "args": {"name": f"{IMAGE}:dropped"}},
        }
    )
    stack.up({})
    client.images.remove(f"{IMAGE}:kept")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(f"{IMAGE}:dropped")


def test_a_failed_build_is_told_with_its_log(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY nothing /\n")
    build = {"context": str(tmp_path), "use_legacy_builder": True}
    said = stack.up(
        {"i": {"type": "RemoteImage", "args": {"name": f"{IMAGE}:bad", "build": build}}}, fails=True
    )
    assert "Error running legacy build" in said
    assert "COPY nothing" in said


def test_many_containers_are_made_at_once(stack: Stack) -> None:
    resources = {f"c{n}": {"type": "Container", "args": {"image": f"{IMAGE}:1"}} for n in range(12)}
    stack.up(resources)
    assert len(stack.docker.containers.list()) == 12


def test_cancelling_ends_a_wait(stack: Stack) -> None:
    stack.write(one(healthcheck=health("/missing"), wait=True, wait_timeout=600))
    stack.cancelled_once(stack.docker.containers.list)
    stack.up(one())
    assert stack.container().status == "running"


# -- the process


def wait_gone(pid: int, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if stat.rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_it_ends_when_its_standard_input_closes(tmp_path: Path) -> None:
    with stand_in("docker", tmp_path / "log") as (process, port):
        assert port > 0
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0


def test_it_ends_when_told_to(tmp_path: Path) -> None:
    with stand_in("docker", tmp_path / "log") as (process, _):
        process.send_signal(signal.SIGINT)  # Ctrl-C is for the engine
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(15) == 0


@pytest.mark.parametrize("stdin", ["pipe", "/dev/null"])
def test_it_ends_when_its_launcher_is_killed(stdin: str) -> None:
    """Even if someone else still holds the other end of its standard input."""
    launcher = f"""
import subprocess, sys, time
stdin = open("/dev/null") if {stdin!r} == "/dev/null" else sys.stdin
command = [sys.executable, "-m", "sandbox.docker_provider"]
process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not wait_gone(pid, 1)
        process.kill()
        process.wait()
        assert wait_gone(pid), "the stand-in outlived its launcher"
