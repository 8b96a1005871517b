"""What is on this machine is found, and told from what only looks like it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from images.recipe import ROOT, host_goarch, pinned_version
from relayctl.prerequisites import docker_engine, go_programs, provider_plugins, pulumi_cli
from relayctl.prerequisites.cache import RememberedFailure
from relayctl.prerequisites.errors import (
    CommandFailedError,
    DockerEngineError,
    PrerequisiteError,
    VersionNotFoundError,
)
from relayctl.prerequisites.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = Progress(Console(quiet=True))
DOCKER_PLUGIN = importlib.metadata.version("pulumi-docker")
SDK = importlib.metadata.version("pulumi")


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on PATH, an empty cache, and no way out: the proxy is a port where nobody listens."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DERP_RELAYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "pulumi"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for name in (
        "DOCKER_HOST",
        "DOCKER_CONTEXT",
        "DOCKER_CONFIG",
        "PULUMI_DEBUG_PROVIDERS",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, says: str, folder: str = "bin", status: int = 0) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
        path.chmod(0o755)
        return path

    return write


# --- Go


def brought_go(program: Callable[..., Path]) -> Path:
    return program("go", "go version go1.27.3 linux/amd64", f"cache/go/1.27.3-{host_goarch()}/go/bin")


@pytest.mark.parametrize("version", ["1.26.6", "1.26.10", "1.27", "2.0"])
def test_go_on_path_is_taken_if_new_enough(program: Callable[..., Path], version: str) -> None:
    path = program("go", f"go version go{version} linux/amd64")
    assert go_programs.toolchain("1.26.6", QUIET) == go_programs.Go(path, version)


@pytest.mark.parametrize(
    ("says", "status"),
    [
        ("go version go1.26.5 linux/amd64", 0),
        ("go version go1.9 linux/amd64", 0),
        ("go version go1.27rc1 linux/amd64", 0),
        ("go version devel go1.28-abcdef linux/amd64", 0),
        ("Go is a board game", 0),
        ("go version go1.27.0 linux/amd64", 1),
    ],
)
def test_go_that_will_not_do_is_passed_over(program: Callable[..., Path], says: str, status: int) -> None:
    program("go", says, status=status)
    brought = brought_go(program)
    assert go_programs.toolchain("1.26.6", QUIET) == go_programs.Go(brought, "1.27.3")


def test_go_newer_than_the_one_on_pypi_has_to_be_installed(program: Callable[..., Path]) -> None:
    program("go", "go version go1.26.8 linux/amd64")
    brought_go(program)
    with pytest.raises(
        PrerequisiteError, match=r"Go 9\.1 or newer is needed, and .*/bin/go is 1\.26\.8"
    ) as caught:
        go_programs.toolchain("9.1", QUIET)
    assert "https://go.dev/doc/install" in caught.value.mend


def test_every_program_is_pinned_and_its_go_can_be_brought() -> None:
    for name, one in go_programs.PROGRAMS.items():
        assert bool(go_programs.version_of(name)) == bool(one.module)
        assert go_programs._numbers(go_programs._go_directive(ROOT / one.folder / "go.mod")) <= (1, 27, 3)
    assert go_programs.version_of("derper") == pinned_version("derper")
    assert go_programs.version_of("caddy") == pinned_version("caddy")
    assert go_programs._numbers(go_programs.version_of("pulumi")) == pulumi_cli.MINIMUM


@pytest.mark.parametrize(
    ("client", "relay", "module"),
    [
        ("bench/sessions", "tools/derper", "tailscale.com"),
        ("bench/http3", "tools/caddy", "github.com/quic-go/quic-go"),
    ],
)
def test_clients_of_the_tests_are_made_of_the_versions_that_relays_run(
    client: str, relay: str, module: str
) -> None:
    def versions(folder: str) -> dict[str, str]:
        text = (ROOT / folder / "go.mod").read_text()
        return dict(re.findall(r"^(?:require)?\s*(\S+\.\S+) (v\S+)", text, re.MULTILINE))

    theirs, ours = versions(relay), versions(client)
    assert ours[module] == theirs[module]
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} == set()


def test_where_a_program_is_built_to_tells_all_that_goes_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        go_programs.built_path(name, goarch, version)
        for name in go_programs.PROGRAMS
        for goarch in ("amd64", "arm64")
        for version in (None, "9.9.9")
    }
    assert len(paths) == 4 * len(go_programs.PROGRAMS)
    before = go_programs.built_path("derper")
    monkeypatch.setattr(go_programs, "_flags", lambda *_: ["-race"])
    assert go_programs.built_path("derper") != before


@pytest.mark.parametrize("version", ["", "latest", "1.2.3; true", "../1", "@1"])
def test_version_that_is_none(version: str) -> None:
    with pytest.raises(VersionNotFoundError, match="is no version of derper"):
        go_programs.build("derper", QUIET, version=version)


def test_built_program_is_not_built_again() -> None:
    path = go_programs.built_path("caddy", "arm64")
    path.parent.mkdir(parents=True)
    path.write_text("x")
    path.chmod(0o755)
    # nothing could build it here: there is no Go and no way to one
    assert go_programs.build("caddy", QUIET, goarch="arm64") == path


# --- Pulumi


def language_host(program: Callable[..., Path], folder: str = "bin") -> None:
    program("pulumi-language-python", "", folder)
    program("pulumi-language-python-exec", "", folder)
    program("pulumi-resource-pulumi-python", "", folder)


def test_pulumi_on_path_with_its_language_host(program: Callable[..., Path]) -> None:
    path = program("pulumi", "v3.260.1")
    language_host(program)
    cli = pulumi_cli.bring(QUIET)
    assert (cli.command, cli.version, cli.origin) == (path, "3.260.1", f"found at {path}")
    assert cli.environment["PATH"].split(os.pathsep)[:2] == [str(Path(sys.prefix) / "bin"), str(path.parent)]


def test_language_host_beside_the_file_that_a_link_points_to(
    program: Callable[..., Path], tmp_path: Path
) -> None:
    real = program("pulumi", "v3.260.1", "opt/pulumi")
    language_host(program, "opt/pulumi")
    (tmp_path / "bin" / "pulumi").symlink_to(real)
    cli = pulumi_cli.bring(QUIET)
    assert cli.language_host == real.parent / "pulumi-language-python"
    assert str(real.parent) in cli.environment["PATH"].split(os.pathsep)


@pytest.mark.parametrize(("says", "status"), [("v3.249.9", 0), ("v3.260.0", 1), ("hello", 0)])
def test_pulumi_that_will_not_do_gives_way_to_the_cache(
    program: Callable[..., Path], says: str, status: int
) -> None:
    program("pulumi", says, status=status)
    folder = f"cache/pulumi/{SDK}-{host_goarch()}/bin"
    official = program("pulumi", f"v{SDK}", folder)
    language_host(program, folder)
    cli = pulumi_cli.bring(QUIET)
    assert (cli.command, cli.version) == (official, SDK)


def test_no_pulumi_and_no_network_names_both(program: Callable[..., Path]) -> None:
    go = program("go", "go version go1.27.3 linux/amd64")
    go.write_text(go.read_text() + "[ $1 = version ] || { echo 'go: lookup x: no such host'; exit 1; }\n")
    go.write_text(go.read_text().replace("exit 0\n", ""))
    with pytest.raises(PrerequisiteError, match="could be neither downloaded nor built") as caught:
        pulumi_cli.bring(QUIET)
    assert "https://www.pulumi.com/docs/install/" in caught.value.mend


# --- provider plugins


def cli_of(program: Callable[..., Path], status: int = 0) -> pulumi_cli.PulumiCli:
    path = program("pulumi", "v3.260.1", status=status)
    return pulumi_cli.PulumiCli(path, "3.260.1", path, "", {"PATH": str(path.parent)})


def test_installed_plugin_is_found(program: Callable[..., Path]) -> None:
    program("pulumi-resource-docker", "", f"pulumi/plugins/resource-docker-v{DOCKER_PLUGIN}")
    found = provider_plugins.find("docker", cli_of(program), QUIET)
    assert (found.installed, found.version) == (True, DOCKER_PLUGIN)
    with provider_plugins.attached([found], QUIET) as environment:
        assert "PULUMI_DEBUG_PROVIDERS" not in environment
        assert environment["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] == "true"


@pytest.mark.parametrize("left", ["partial", "other version"])
def test_plugin_that_is_not_there_is_told_with_the_reason(
    program: Callable[..., Path], tmp_path: Path, left: str
) -> None:
    version = DOCKER_PLUGIN if left == "partial" else "1.0.0"
    program("pulumi-resource-docker", "", f"pulumi/plugins/resource-docker-v{version}")
    (tmp_path / "pulumi" / "plugins" / f"resource-docker-v{version}.partial").touch()
    found = provider_plugins.find("docker", cli_of(program), QUIET)
    assert not found.installed
    assert found.reason == "get.pulumi.com: Connection refused"


def test_failed_download_is_remembered_until_it_is_forgotten(
    program: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = cli_of(program)
    assert not provider_plugins.find("docker", cli, QUIET).installed
    monkeypatch.setattr(provider_plugins, "_download", lambda *_: None)
    assert not provider_plugins.find("docker", cli, QUIET).installed
    provider_plugins.forget_failure("docker")
    assert provider_plugins.find("docker", cli, QUIET).installed
    assert RememberedFailure(f"plugin-docker-{DOCKER_PLUGIN}").reason() is None


def test_plugin_without_a_stand_in_is_an_error() -> None:
    absent = provider_plugins.ProviderPlugin("nebula", "1.0.0", installed=False, reason="no such host")
    with (
        pytest.raises(PrerequisiteError, match="has no stand-in") as caught,
        provider_plugins.attached([absent], QUIET),
    ):
        pass
    assert "pulumi plugin install resource nebula 1.0.0" in caught.value.mend


@pytest.mark.parametrize(
    ("module", "says"), [("this", "told no port"), ("no_such_module", "No module named")]
)
def test_stand_in_that_tells_no_port(module: str, says: str) -> None:
    with pytest.raises(CommandFailedError) as caught, provider_plugins._running(module, QUIET, ROOT):
        pass
    assert says in caught.value.what


# --- Docker engine


def test_nothing_listens_and_nothing_is_installed() -> None:
    endpoint = docker_engine._Endpoint({"base_url": "unix:///nonexistent/docker.sock"}, "test")
    with pytest.raises(docker_engine._SilentError) as caught:
        docker_engine._ask(endpoint)
    assert caught.value.kind == "missing"


def test_socket_that_outlived_its_engine(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with pytest.raises(docker_engine._SilentError) as caught:
        docker_engine._ask(docker_engine._Endpoint({"base_url": f"unix://{path}"}, "test"))
    assert caught.value.kind == "dead"


def test_server_that_is_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(docker_engine._SilentError) as caught:
            docker_engine._ask(docker_engine._Endpoint({"base_url": f"unix://{path}"}, "test"))
        listener.shutdown(socket.SHUT_RDWR)
    assert caught.value.kind == "other"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("unix:///nonexistent/docker.sock", "there is no /nonexistent"),
        ("tcp://127.0.0.1:9", "Connection refused"),
    ],
)
def test_engine_that_is_named_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(DockerEngineError, match=f"{host} .DOCKER_HOST. does not answer: .*{reason}"):
        docker_engine.find()


def test_context_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nebula")
    with pytest.raises(DockerEngineError, match="there is no Docker context nebula"):
        docker_engine.find()


@pytest.mark.parametrize(
    ("version", "experimental", "setting", "rootless", "expected"),
    [
        ("27.0.1", False, None, False, True),
        ("29.1.0", False, False, False, False),
        ("26.1.5", True, True, False, True),
        ("20.10.24+dfsg1", True, True, False, True),
        ("20.10.24+dfsg1", False, True, False, False),
        ("20.10.24+dfsg1", True, None, False, False),
        ("29.1.0", False, None, True, False),
    ],
)
def test_whether_published_ipv6_ports_keep_the_senders_address(  # noqa: PLR0913, PLR0917 - a table's columns
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    experimental: bool,  # noqa: FBT001
    setting: bool | None,  # noqa: FBT001
    rootless: bool,  # noqa: FBT001
    expected: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(docker_engine, "_setting_of_running", lambda _: setting)
    endpoint = docker_engine._local_endpoints()[0]
    publishes, reason = docker_engine._ipv6_publishing(
        endpoint, version, {"ExperimentalBuild": experimental}, rootless=rootless
    )
    assert publishes is expected
    assert bool(reason) is not expected


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["another program", "nobody"])
def test_pid_file_of_a_daemon_that_is_gone_is_removed(tmp_path: Path, pid: int) -> None:
    path = tmp_path / "docker.pid"
    path.write_text(str(pid))
    docker_engine._remove_stale(path, "dockerd")
    assert not path.exists()


def test_commands_for_another_user_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "someone")
    monkeypatch.setattr("relayctl.prerequisites.packages.is_debian", lambda: True)
    commands = docker_engine._commands_for_root(installed=False)
    assert commands[:2] == ["sudo apt-get update", "sudo apt-get install -y docker.io"]
    assert commands[-1].startswith("sudo usermod -aG docker someone")
