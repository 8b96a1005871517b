"""A whole region on this machine, without an account: ``python -m sandbox up REGION``.

``make sandbox-up REGION=...`` calls it. The region's own stack file is taken as
it stands, except for what only the world can give: its certificates come from
Caddy's own authority, and SSH is let in from this machine. State and servers are
kept apart from those of real regions, in ``.relayctl/sandbox``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import hcloud
import psutil
import yaml

from relayctl.fleet import SANDBOX
from relayctl.prerequisites import cache
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.stack import run_folder
from sandbox.hcloud_api.server import TOKEN_FILE
from settings import PROJECT, SettingsError, read_stack_file
from settings.base import PROJECT_FOLDER
from settings.reader import stack_file

# Seconds for the API to start; the servers that ran before it was stopped boot meanwhile.
_START = 120.0
_STOP = 60.0
# Records are made for a region in the zone that its name is in.
_TTL = 300


@click.group()
def main() -> None:
    """Try a region of this project on this machine: server, firewall, addresses and all."""


@main.command()
@click.argument("region")
def up(region: str) -> None:
    """Bring up REGION, such as eu-nuremberg, on a server that this machine plays."""
    with _told(Progress()) as progress:
        settings = read_stack_file(region)
        if settings.host.kind != "hetzner":
            raise PrerequisiteError(
                f"stacks/{stack_file(region).name} has host.kind {settings.host.kind}",
                "name a region on a server of Hetzner's, such as eu-nuremberg",
            )
        with cache.locked(_folder() / ".api.lock", progress):
            api = _running() or _start(progress)
        _make_zone(api, settings.domain.partition(".")[2])
        _write_stack(region, api)
        done = _relayctl(api, "up", f"{SANDBOX}{region}")
        if done == 0:
            progress.say(
                "\nThis is no real region: the server is a network namespace of this machine, which"
                f" the API at {api.endpoint} made. What next, as root:\n"
                "  see whether it works:"
                f" PULUMI_BACKEND_URL={_backend()} make probe STACK={SANDBOX}{region}\n"
                f"  try something else: edit stacks/{stack_file(region).name}, then make sandbox-up"
                f" REGION={region}\n"
                f"  take it down: make sandbox-down REGION={region}"
            )
        sys.exit(done)


@main.command()
@click.argument("region", required=False)
def down(region: str | None) -> None:
    """Take down REGION, or all of them, with all that they left; the last one takes the sandbox with it."""
    with _told(Progress()) as progress:
        stacks = sorted(
            path.stem.removeprefix("Pulumi.") for path in stack_file("x").parent.glob(_files(region))
        )
        api = _running()
        for stack in stacks:
            if api is not None and _relayctl(api, "down", stack, "--volumes"):
                sys.exit(1)
            stack_file(stack).unlink()
        if not list(stack_file("x").parent.glob(_files(None))):
            _stop(progress)


def _files(region: str | None) -> str:
    return f"Pulumi.{SANDBOX}{region or '*'}.yaml"


class _Api:
    """The API that the sandbox's regions are at: a process of its own, which outlives this one."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.process = psutil.Process(told["pid"])
        self.endpoint = f"http://127.0.0.1:{told['port']}/v1"
        self.token = (_state() / TOKEN_FILE).read_text().strip()

    @property
    def client(self) -> hcloud.Client:
        return hcloud.Client(token=self.token, api_endpoint=self.endpoint, poll_interval=0.2)

    def here(self) -> list[str]:
        """Return this machine's addresses on the servers' networks: the first of each."""
        state = json.loads((_state() / "state.json").read_text())
        return [str(ipaddress.ip_network(state[key])[1]) for key in ("ipv4_network", "ipv6_network")]


def _folder() -> Path:
    folder = run_folder() / "sandbox"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _state() -> Path:
    return _folder() / "api"


def _backend() -> str:
    """Return Pulumi's backend for the sandbox's stacks: its own folder."""
    return f"file://{_folder() / 'state'}"


def _running() -> _Api | None:
    """Return the API, if its process is still the one that was noted."""
    try:
        told = json.loads((_folder() / "api.json").read_text())
        api = _Api(told)
        alive = api.process.is_running() and abs(api.process.create_time() - told["since"]) < 1
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return api if alive and api.process.status() != psutil.STATUS_ZOMBIE else None


def _start(progress: Progress) -> _Api:
    if os.geteuid() != 0:
        raise PrerequisiteError("servers as network namespaces need root", "sudo make sandbox-up REGION=...")
    log, port = _folder() / "api.log", _folder() / "api.port"
    with (
        progress.step("Starting the sandbox: a Hetzner Cloud API on this machine"),
        log.open("wb") as errors,
        port.open("wb") as output,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.hcloud_api", "--state", str(_state())],
            cwd=PROJECT_FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            # out of reach of this terminal's Ctrl-C and hang-up
            start_new_session=True,
        )
        deadline = time.monotonic() + _START
        while not port.read_text().endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise PrerequisiteError(
                    f"the sandbox did not start: {log.read_text().strip()}", f"see to that; {log} has it too"
                )
            time.sleep(0.1)
    told = {
        "pid": process.pid,
        "port": int(port.read_text()),
        "since": psutil.Process(process.pid).create_time(),
    }
    (_folder() / "api.json").write_text(json.dumps(told))
    return _Api(told)


def _stop(progress: Progress) -> None:
    api = _running()
    if api is not None:
        with progress.step("Stopping the sandbox"):
            api.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(psutil.TimeoutExpired):
                api.process.wait(_STOP)
    shutil.rmtree(_folder())


def _make_zone(api: _Api, name: str) -> None:
    if not api.client.zones.get_all(name=name):
        api.client.zones.create(name=name, mode="primary", ttl=_TTL)


def _write_stack(region: str, api: _Api) -> None:
    """Write the stack that stands for ``region`` here; Pulumi's own lines and keys of an earlier one stay."""
    path = stack_file(f"{SANDBOX}{region}")
    content = yaml.safe_load(stack_file(region).read_text())
    config: dict[str, Any] = content["config"]
    kept = yaml.safe_load(path.read_text()) if path.exists() else {}
    host = dict(config[f"{PROJECT}:host"])
    zone = str(config[f"{PROJECT}:domain"]).partition(".")[2]
    config[f"{PROJECT}:host"] = {**host, "sshFrom": api.here(), "dnsZone": zone}
    config[f"{PROJECT}:certificate"] = {"source": "internal"}
    for program in ("derper", "caddy"):
        config[f"{PROJECT}:{program}"] = {**config.get(f"{PROJECT}:{program}", {}), "image": "build"}
    keys = {key: value for key, value in kept.get("config", {}).items() if key.endswith("Key")}
    # the region's own secrets are encrypted for the region's own passphrase
    config = {key: value for key, value in config.items() if not key.endswith("Key")}
    made = (
        f"# Made of {stack_file(region).name} by `make sandbox-up`, anew each time: edit that file instead.\n"
    )
    salt = {key: value for key, value in kept.items() if key != "config"}
    path.write_text(made + yaml.safe_dump({**salt, "config": {**config, **keys}}, sort_keys=False))


def _relayctl(api: _Api, *arguments: str) -> int:
    (_folder() / "state").mkdir(exist_ok=True)
    environment = {
        "HCLOUD_ENDPOINT": api.endpoint,
        "HCLOUD_TOKEN": api.token,
        "PULUMI_BACKEND_URL": _backend(),
        # What it protects is of no use outside of this machine.
        "PULUMI_CONFIG_PASSPHRASE": "",
    }
    return subprocess.run(
        [sys.executable, "-m", "relayctl", *arguments],
        cwd=PROJECT_FOLDER,
        env={**os.environ, **environment},
        check=False,
    ).returncode


@contextlib.contextmanager
def _told(progress: Progress) -> Any:
    """Yield ``progress``; show errors without a trace, and exit with 1."""
    try:
        yield progress
    except (PrerequisiteError, SettingsError) as error:
        progress.console.print("[bold red]error:[/]", end=" ")
        progress.say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
