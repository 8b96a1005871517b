"""Prerequisites brought for real: Go builds, the Docker engine, the set-up script."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from images.recipe import ROOT, Program, host_goarch
from relayctl.prerequisites import (
    docker_engine,
    go_programs,
    image_contexts,
    ports,
    provider_plugins,
    pulumi_cli,
)
from relayctl.prerequisites.errors import DiskFullError, NetworkUnreachableError, VersionNotFoundError
from relayctl.prerequisites.progress import Progress
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIET = Progress(Console(quiet=True))
# ELF header, field e_machine: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
MACHINES = {"amd64": 62, "arm64": 183}

# Shells have what they start in the background ignore Ctrl-C, and that is inherited.
BUILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from relayctl.prerequisites import go_programs
from relayctl.prerequisites.progress import Progress
print(go_programs.build("healthcheck", Progress()))
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DERP_RELAYS_CACHE", str(cache))
    return cache


@pytest.fixture
def engine() -> docker_engine.DockerEngine:
    found = docker_engine.find()
    require(found, "no Docker engine answers", "make up")
    assert found is not None
    return found


def start_build(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def unfinished(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".unfinished-")]


# --- programs from Go modules


@pytest.mark.parametrize("goarch", MACHINES)
def test_program_is_built_static_for_the_architecture_asked_for(empty_cache: Path, goarch: str) -> None:
    path = go_programs.build("healthcheck", QUIET, goarch=goarch)
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == MACHINES[goarch]
    # a program that needs a loader names it
    assert b"ld-linux" not in path.read_bytes()
    assert str(ROOT).encode() not in path.read_bytes(), "a path of this machine is in it"
    started = time.monotonic()
    assert go_programs.build("healthcheck", QUIET, goarch=goarch) == path
    assert time.monotonic() - started < 0.1
    assert not unfinished(empty_cache)


def test_the_same_pins_give_the_same_program(empty_cache: Path, tmp_path: Path) -> None:
    first = go_programs.build("healthcheck", QUIET).read_bytes()
    shutil.rmtree(empty_cache)
    assert go_programs.build("healthcheck", QUIET).read_bytes() == first
    assert tmp_path.exists()


def test_two_runs_at_once_both_have_the_program(empty_cache: Path) -> None:
    both = [start_build() for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    path = outputs[0].splitlines()[-1]
    assert outputs[1].splitlines()[-1] == path
    assert os.access(path, os.X_OK)
    assert not unfinished(empty_cache)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_build_that_is_cut_short_is_done_by_the_next_run(
    empty_cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    # without what Go has compiled before, it takes long enough to be caught in the midst
    build = start_build(GOCACHE=str(tmp_path / "compiled"))
    until = time.monotonic() + 60
    while not unfinished(empty_cache):
        assert time.monotonic() < until
        assert build.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(build.pid, number)
    build.communicate(timeout=60)
    assert build.returncode != 0
    assert not go_programs.built_path("healthcheck").exists()
    assert os.access(go_programs.build("healthcheck", QUIET), os.X_OK)
    assert not unfinished(empty_cache)


@pytest.mark.usefixtures("empty_cache")
def test_no_network_while_modules_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("GOPROXY", "http://127.0.0.1:9")
    with pytest.raises(NetworkUnreachableError, match=r"building derper .* does not answer"):
        go_programs.build("derper", QUIET)


@pytest.mark.usefixtures("empty_cache")
def test_version_that_was_never_published(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GOPROXY", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(
            VersionNotFoundError, match=r"tailscale\.com@v9\.99\.9, or .* not to be had"
        ) as caught:
            go_programs.build("derper", QUIET, version="v9.99.9")
        server.shutdown()
    assert "https://pkg.go.dev/tailscale.com?tab=versions" in caught.value.mend


def test_full_disk_is_told(empty_cache: Path) -> None:
    require(os.geteuid() == 0, "only root may mount a small file system", "sudo make test-engine")
    empty_cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", empty_cache], check=True)
    try:
        with pytest.raises(DiskFullError, match=r"the disk is full: .* has \d MiB left of 1 MiB"):
            go_programs.build("healthcheck", QUIET)
        assert not unfinished(empty_cache)
        with pytest.raises(DiskFullError):
            image_contexts.fill("derper", QUIET, goarch="amd64")
    finally:
        subprocess.run(["umount", empty_cache], check=True)


def test_go_is_brought_where_there_is_none(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("go"):
        pytest.skip("this system's own Go cannot be hidden")
    go = go_programs.toolchain("1.26.6", QUIET)
    assert empty_cache in go.path.parents
    output = subprocess.run([go.path, "version"], capture_output=True, text=True, check=True).stdout
    assert f"go{go.version} " in output


# --- images


@pytest.mark.parametrize("program", ["derper", "caddy", "deliver"])
def test_context_has_all_that_its_dockerfile_copies(program: Program) -> None:
    image = image_contexts.fill(program, QUIET, goarch=host_goarch())
    dockerfile = (image.context / "Dockerfile").read_text()
    copied = {
        name for line in dockerfile.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]
    }
    assert copied | {"Dockerfile"} == {path.name for path in image.context.iterdir()}
    programs = copied - {"ca-certificates.crt", "Caddyfile"}
    assert program in programs
    assert all(os.access(image.context / name, os.X_OK) for name in programs)
    assert "BEGIN CERTIFICATE" in (image.context / "ca-certificates.crt").read_text()


def test_programs_tell_their_version() -> None:
    goarch = host_goarch()
    derper = image_contexts.fill("derper", QUIET, goarch=goarch)
    caddy = image_contexts.fill("caddy", QUIET, goarch=goarch)
    for program, argument, version in (
        (derper.context / "derper", "-version", derper.version),
        (caddy.context / "caddy", "version", f"v{caddy.version}"),
    ):
        told = subprocess.run(
            [program, argument], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        assert told.split()[0] == version


# --- Docker engine


def test_engine_tells_what_the_program_needs(engine: docker_engine.DockerEngine) -> None:
    assert engine.goarch in {"amd64", "arm64", "arm", "386", "riscv64"}
    assert engine.client().ping()
    assert docker_engine.ensure(QUIET) == engine


def test_port_of_a_container_is_told_by_its_name(engine: docker_engine.DockerEngine) -> None:
    client = engine.client()
    image = image_contexts.fill("caddy", QUIET, goarch=engine.goarch)
    name = f"derp-relays-test-ports-{os.getpid()}"
    client.images.build(path=str(image.context), tag=f"{name}:latest", rm=True)
    try:
        container = client.containers.run(
            f"{name}:latest",
            ["caddy", "respond", "--listen", ":80"],
            name=name,
            detach=True,
            ports={"80/tcp": None, "80/udp": None},
        )
        try:
            container.reload()
            port = int(container.ports["80/tcp"][0]["HostPort"])
            found = ports.holder(port, "tcp", client)
            assert str(found) == f"port {port}/tcp is taken by the container {name}"
            udp_port = int(container.ports["80/udp"][0]["HostPort"])
            assert ports.holders([(port, "tcp"), (udp_port, "udp")], client, own_containers={name}) == []
            # without the engine's word it is a process, or at the least not free
            assert ports.holder(port, "tcp") is not None
        finally:
            container.remove(force=True)
        assert ports.holder(port, "tcp", client) is None
    finally:
        client.images.remove(f"{name}:latest", force=True)


# --- Pulumi


def test_pulumi_runs_with_what_was_brought() -> None:
    require(
        shutil.which("pulumi") or pulumi_cli._cached(),
        "no Pulumi on PATH or in the cache (building it takes minutes)",
        "make up",
    )
    started = time.monotonic()
    cli = pulumi_cli.bring(QUIET)
    assert time.monotonic() - started < 3
    assert pulumi_cli.version_of(cli.command) == cli.version
    environment = {**os.environ, **cli.environment}
    assert shutil.which("pulumi-language-python", path=environment["PATH"])
    assert shutil.which("python", path=environment["PATH"]) == str(Path(sys.prefix) / "bin" / "python")


def test_docker_provider_answers_in_seconds_with_or_without_a_network() -> None:
    require(shutil.which("pulumi") or pulumi_cli._cached(), "no Pulumi on PATH or in the cache", "make up")
    cli = pulumi_cli.bring(QUIET)
    provider_plugins.find("docker", cli, QUIET)
    started = time.monotonic()
    plugin = provider_plugins.find("docker", cli, QUIET)
    assert time.monotonic() - started < 1
    before = set(_children())
    with provider_plugins.attached([plugin], QUIET) as environment:
        assert ("PULUMI_DEBUG_PROVIDERS" in environment) is not plugin.installed
        assert (len(set(_children()) - before) > 0) is not plugin.installed
    assert set(_children()) == before


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        yield from (int(pid) for pid in (task / "children").read_text().split())


# --- setup.sh


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT / "setup.sh", folder)
    # a small lock, so that it is the script that is tested and not the network
    (folder / "requirements.txt").write_text("")
    (folder / "requirements-dev.txt").write_text("")
    return folder


def set_up(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "setup.sh", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_set_up_makes_the_environment_once(checkout: Path) -> None:
    first = set_up(checkout)
    assert (first.returncode, "making .venv" in first.stderr) == (0, True)
    started = time.monotonic()
    again = set_up(checkout)
    assert time.monotonic() - started < 1
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert "requirements-dev.txt" in set_up(checkout, "--dev").stderr

    (checkout / "requirements.txt").write_text("# another lock\n")
    changed = set_up(checkout, "--dev")
    assert changed.stderr.splitlines() == ["setup: installing requirements.txt (half a minute or so)"]

    moved = checkout.rename(checkout.with_name("moved"))
    assert "making .venv" in set_up(moved).stderr
    assert str(moved) in (moved / ".venv" / "bin" / "pip").read_text().splitlines()[0]


@pytest.mark.parametrize("after", [0.05, 1.0])
def test_set_up_that_is_killed_is_mended(checkout: Path, after: float) -> None:
    process = subprocess.Popen([checkout / "setup.sh"], stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert set_up(checkout).returncode == 0
    pip = subprocess.run([checkout / ".venv" / "bin" / "pip", "--version"], check=False, capture_output=True)
    assert pip.returncode == 0
    assert not (checkout / ".venv" / ".setup-unfinished").exists()


def test_set_up_names_a_lock_that_cannot_be_installed(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("click==8.1.7\n")
    done = set_up(checkout)
    assert done.returncode == 1
    assert "setup: pip could not install requirements.txt" in done.stderr
    assert "hash" in done.stderr.lower()


def test_set_up_without_python_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "sha256sum", "cat", "flock", "id"):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = set_up(checkout, PATH=str(tools))
    assert done.returncode == 1
    assert "to mend it: install python3 python3-venv" in done.stderr
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    assert "Python 3.11 or newer is needed" in set_up(checkout, PATH=str(tools)).stderr
