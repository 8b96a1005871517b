"""`up` without a stack's name: the stack of this machine, written for what the machine has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.checkout import Checkout
from tests.docker_host import DockerHost

_HOLD = """
import socket, time
held = socket.create_server(("0.0.0.0", 443))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def port_443_taken(host: DockerHost) -> Iterator[None]:
    with subprocess.Popen(
        host.command([sys.executable, "-c", _HOLD]), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


@pytest.mark.usefixtures("port_443_taken")
def test_high_ports_are_chosen_where_the_usual_are_taken(host: DockerHost, tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path, host)
    # The local stack has no secrets, and so asks for no passphrase.
    del checkout.environment["PULUMI_CONFIG_PASSPHRASE"]
    done = checkout.relayctl("up", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The relay is up: https://derp.localhost:8443" in done.stdout
    assert '"DERPPort": 8443' in done.stdout
    assert "CanPort80" not in done.stdout

    path = tmp_path / "stacks" / "Pulumi.local.yaml"
    config = yaml.safe_load(path.read_text())["config"]
    caddy = config["derp-relays:caddy"]
    assert (caddy["httpPort"], caddy["httpsPort"]) == (8080, 8443)

    # What a user has written is not written over.
    config["derp-relays:region"]["name"] = "Mine"
    path.write_text(yaml.safe_dump({"config": config}))
    checkout.environment |= {"PULUMI_CONFIG_PASSPHRASE": "of other stacks"}
    done = checkout.relayctl("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"RegionName": "Mine"' in done.stdout

    done = checkout.relayctl("down", "--volumes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.client().containers.list(all=True) == []
    assert host.client().volumes.list() == []
