"""The `article` stack for real: what runs is what the article's compose files say, and it relays.

The article's derper image is a third party's, which takes its settings from
variables. Where no registry gives it, an image of the same name that does so
stands in for it, with the real derper.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from images.recipe import host_goarch
from relayctl.prerequisites import go_programs, image_contexts
from relayctl.prerequisites.progress import Progress
from settings import PROJECT
from settings.base import PROJECT_FOLDER
from tests.checkout import Checkout
from tests.docker_host import DockerHost
from tests.relay.outside import Outside, outside

DERPER_IMAGE = "ghcr.io/kaaanata/derper:latest"
CADDY_IMAGE = "caddy:latest"
DOMAIN = "derp.localhost"


@pytest.fixture(scope="module")
def client(host: DockerHost) -> Iterator[Outside]:
    with outside(host.namespace) as made:
        yield made


@pytest.fixture(scope="module")
def checkout(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Return a checkout on a host with the article's images and its network, made as the article does."""
    _make_images(host, tmp_path_factory.mktemp("images"))
    host.client().networks.create("shared_bridge")
    return Checkout.make(tmp_path_factory.mktemp("article"), host)


def _make_images(host: DockerHost, folder: Path) -> None:
    goarch = host_goarch()
    shutil.copy(go_programs.build("derper", Progress()), folder / "derper")
    subprocess.run(
        ["go", "build", "-o", str(folder / "start"), "."],
        cwd=PROJECT_FOLDER / "tests" / "relay" / "environment_image",
        env={**os.environ, "CGO_ENABLED": "0"},
        check=True,
    )
    (folder / "Dockerfile").write_text(
        'FROM scratch\nENV HOME=/root\nCOPY derper start /app/\nWORKDIR /app\nENTRYPOINT ["/app/start"]\n'
    )
    docker = host.client()
    docker.images.build(path=str(folder), tag=DERPER_IMAGE)
    caddy = image_contexts.fill("caddy", Progress(), goarch=goarch)
    docker.images.build(path=str(caddy.context), tag=CADDY_IMAGE)


def inspected(checkout: Checkout, name: str) -> dict[str, Any]:
    return dict(checkout.host.client().containers.get(name).attrs)


def test_what_runs_is_what_the_compose_files_say(checkout: Checkout) -> None:
    with checkout.pulumi() as pulumi:
        for arguments in (
            ("stack", "init", "--stack", "article"),
            ("up", "--yes", "--skip-preview", "--stack", "article"),
            ("up", "--yes", "--skip-preview", "--expect-no-changes", "--stack", "article"),
        ):
            done = pulumi(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr

    derper, caddy = inspected(checkout, "derper"), inspected(checkout, "caddy")
    docker = checkout.host.client()
    assert derper["Image"] == docker.images.get(DERPER_IMAGE).id
    assert caddy["Image"] == docker.images.get(CADDY_IMAGE).id
    assert {"DERP_DOMAIN=derp.example.com", "DERP_ADDR=:80"} <= set(derper["Config"]["Env"])
    for container in (derper, caddy):
        assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert set(container["NetworkSettings"]["Networks"]) == {"shared_bridge"}
        assert container["State"]["Running"]
    assert published(derper) == {"3478/udp": {"3478"}}
    assert published(caddy) == {"80/tcp": {"80"}, "443/tcp": {"443"}, "443/udp": {"443"}}
    assert mounts(derper) == {"/app/certs": "derp_certs", "/app/data": "derp_data"}
    assert mounts(caddy) == {
        "/etc/caddy": str(checkout.folder / "data" / "conf"),
        "/srv": str(checkout.folder / "data" / "srv"),
        "/data": "caddy_data",
        "/config": "caddy_config",
    }
    assert caddy["HostConfig"]["CapAdd"] == ["CAP_NET_ADMIN"]
    assert caddy["HostConfig"]["ExtraHosts"] == ["host.docker.internal:host-gateway"]
    caddyfile = (checkout.folder / "data" / "conf" / "Caddyfile").read_text()
    assert caddyfile.expandtabs(4) == "derp.example.com {\n    reverse_proxy derper\n}\n"


def published(container: dict[str, Any]) -> dict[str, set[str]]:
    bindings = container["NetworkSettings"]["Ports"]
    return {port: {one["HostPort"] for one in hosts} for port, hosts in bindings.items() if hosts}


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {m["Destination"]: m.get("Name") or m["Source"] for m in container["Mounts"]}


def test_it_relays_and_shows_the_weakness_that_the_projects_defaults_mend(
    checkout: Checkout, client: Outside
) -> None:
    """Only the certificate differs, since no public authority can be asked; and IPv6 STUN is masked."""
    path = checkout.folder / "stacks" / "Pulumi.article.yaml"
    stack = yaml.safe_load(path.read_text())
    stack["config"] |= {
        f"{PROJECT}:domain": DOMAIN,
        f"{PROJECT}:certificate": {"source": "internal"},
    }
    path.write_text(yaml.safe_dump(stack))
    done = checkout.relayctl("up", "article")
    assert done.returncode == 0, done.stdout + done.stderr

    ca = done.stdout.split("--cacert ")[1].split()[0]
    probed = client.run(
        [
            *[sys.executable, "-m", "probe", "--domain", DOMAIN, "--ca", ca, "--json", "--http-port", "0"],
            *["--address", client.here_ipv4, "--address", client.here_ipv6],
        ],
        cwd=checkout.folder,
    )
    findings = json.loads(probed.stdout)["findings"]
    bad = [(f["check"], f["address"]) for f in findings if f["status"] == "failed"]
    assert bad == [("stun-address", client.here_ipv6)], findings
