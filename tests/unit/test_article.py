# ruff: noqa: E501 - a table is read by its columns
"""The `article` stack is the article's set-up: each of its settings against what the program declares."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from delivery import content_of
from settings import read_stack_file
from settings.base import PROJECT_FOLDER
from tests.unit.declared import Declarations, declare_stack

CADDYFILE = "derp.example.com {\n    reverse_proxy derper\n}\n"


@cache
def article() -> Declarations:
    return declare_stack("article")


def container(name: str) -> dict[str, Any]:
    return article().one(":Container", name).inputs


def compose_ports(name: str) -> list[str]:
    """Return published ports as compose writes them; each stands for all IPv4 and all IPv6 addresses."""
    told: dict[str, set[str]] = {}
    for port in container(name)["ports"]:
        text = f"{int(port['external'])}:{int(port['internal'])}"
        text += "" if port["protocol"] == "tcp" else f"/{port['protocol']}"
        told.setdefault(text, set()).add(port["ip"])
    assert all(addresses == {"0.0.0.0", "::"} for addresses in told.values())
    return list(told)


def compose_volumes(name: str) -> list[str]:
    """Return volumes as compose writes them, folders from the project's own."""
    told = []
    for volume in container(name)["volumes"]:
        source = volume.get("volumeName") or volume["hostPath"].replace(str(PROJECT_FOLDER), ".")
        told.append(f"{source}:{volume['containerPath']}" + (":ro" if volume.get("readOnly") else ""))
    return told


SETTINGS: list[tuple[str, Any, Any]] = [
    ("derper image", lambda: article().one(":RemoteImage", "derper").inputs["name"], "ghcr.io/kaaanata/derper:latest"),
    ("derper container_name", lambda: container("derper")["name"], "derper"),
    ("derper restart", lambda: container("derper")["restart"], "unless-stopped"),
    ("derper environment", lambda: container("derper")["envs"], ["DERP_DOMAIN=derp.example.com", "DERP_ADDR=:80"]),
    ("derper networks", lambda: container("derper")["networksAdvanced"], [{"name": "shared_bridge"}]),
    ("derper ports", lambda: compose_ports("derper"), ["3478:3478/udp"]),
    ("derper volumes", lambda: compose_volumes("derper"), ["derp_certs:/app/certs", "derp_data:/app/data"]),
    ("derper command is the image's", lambda: container("derper").get("command"), None),
    ("networks external", lambda: article().of(":Network"), []),
    (
        "volumes",
        lambda: sorted(volume.inputs["name"] for volume in article().of(":Volume")),
        ["caddy_config", "caddy_data", "derp_certs", "derp_data"],
    ),
    ("caddy cap_add", lambda: container("caddy")["capabilities"], {"adds": ["CAP_NET_ADMIN"]}),
    (
        "caddy extra_hosts",
        lambda: [f"{host['host']}:{host['ip']}" for host in container("caddy")["hosts"]],
        ["host.docker.internal:host-gateway"],
    ),
    ("caddy image", lambda: article().one(":RemoteImage", "caddy").inputs["name"], "caddy:latest"),
    ("caddy networks", lambda: container("caddy")["networksAdvanced"], [{"name": "shared_bridge"}]),
    ("caddy ports", lambda: compose_ports("caddy"), ["80:80", "443:443", "443:443/udp"]),
    ("caddy restart", lambda: container("caddy")["restart"], "unless-stopped"),
    (
        "caddy volumes",
        lambda: compose_volumes("caddy"),
        ["./data/conf:/etc/caddy", "./data/srv:/srv", "caddy_data:/data", "caddy_config:/config"],
    ),
    ("Caddyfile", lambda: content_of(read_stack_file("article"), "article").caddyfile.expandtabs(4), CADDYFILE),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "declared", "stated"), SETTINGS, ids=[name for name, _, _ in SETTINGS])
def test_a_setting_of_the_article(setting: str, declared: Any, stated: Any) -> None:
    assert declared() == stated, setting


@pytest.mark.parametrize("name", ["derper", "caddy"])
def test_nothing_else_is_set_that_changes_how_a_container_runs(name: str) -> None:
    """Besides the article's settings: what the provider needs to stop a container in peace, and a label."""
    stated = {"image", "name", "restart", "networksAdvanced", "ports", "volumes"}
    stated |= {"capabilities", "hosts"} if name == "caddy" else {"envs"}
    assert set(container(name)) - stated <= {"destroyGraceSeconds", "stopTimeout", "labels"}
