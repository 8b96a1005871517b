"""The local stack's file follows what the machine has; it is written once."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from relayctl import fleet, local_stack
from relayctl.prerequisites import ports
from relayctl.prerequisites.docker_engine import DockerEngine
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.stack import state_copy
from settings import PROJECT, LocalHost, reader
from settings.base import PROJECT_FOLDER
from settings.reader import read_stack_file

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the file for a machine, and returns what it said."""

    def machine(  # noqa: PLR0913 - each is one thing that machines differ in
        *,
        taken: Collection[int] = (),
        registry: bool = False,
        ipv6: bool | None = True,
        ipv6_reason: str = "",
        loopback_ipv6: bool = True,
        containers: Collection[Any] = (),
        networks: Collection[Any] = (),
    ) -> str:
        monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)

        def holders(wanted: Iterable[tuple[int, ports.Protocol]], *_: Any) -> list[ports.Holder]:
            return [ports.Holder(port, protocol, "nginx", 812) for port, protocol in wanted if port in taken]

        monkeypatch.setattr(ports, "holders", holders)
        monkeypatch.setattr(
            ports, "holder", lambda port, protocol, *_: next(iter(holders([(port, protocol)])), None)
        )
        monkeypatch.setattr(
            ports, "first_free", lambda candidates, *_: next((p for p in candidates if p not in taken), None)
        )
        monkeypatch.setattr(local_stack, "_pulled", lambda *_: registry)
        monkeypatch.setattr(local_stack, "has_ipv6", lambda: loopback_ipv6)
        client = SimpleNamespace(
            containers=SimpleNamespace(list=lambda **_: containers),
            networks=SimpleNamespace(list=lambda **_: networks),
        )
        monkeypatch.setattr(DockerEngine, "client", lambda *_: client)
        engine = DockerEngine("unix:///x", "x", "29.1.0", "1.52", "amd64", False, ipv6, ipv6_reason, {})  # noqa: FBT003
        said = io.StringIO()
        local_stack.write_if_missing(engine, Progress(Console(file=said, width=400)))
        return said.getvalue()

    return machine


def test_the_usual_ports_and_the_pinned_image_where_they_can_be_had(write: Write) -> None:
    said = write(registry=True)
    settings = read_stack_file("local")
    assert (settings.caddy.http_port, settings.caddy.https_port, settings.derper.stun_port) == (80, 443, 3478)
    assert not settings.caddy.builds
    assert isinstance(settings.host, LocalHost)
    assert (settings.host.ipv4, settings.host.ipv6) == ("127.0.0.1", "::1")
    assert settings.certificate.source == "internal"
    assert "HTTP on 80, HTTPS on 443, STUN on 3478/udp, Caddy from its pinned image" in said


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ({80}, (8080, 8443, 3478)),
        ({443, 3478}, (8080, 8443, 13478)),
        ({80, 8443}, (18080, 18443, 3478)),
    ],
)
def test_other_ports_where_these_are_taken(
    write: Write, taken: set[int], chosen: tuple[int, int, int]
) -> None:
    write(taken=taken)
    settings = read_stack_file("local")
    assert (settings.caddy.http_port, settings.caddy.https_port, settings.derper.stun_port) == chosen


def test_caddy_is_built_where_no_registry_gives_it(write: Write) -> None:
    write(registry=False)
    assert read_stack_file("local").caddy.builds


def test_ipv6_is_left_out_where_the_engine_would_mask_it(write: Write) -> None:
    said = write(ipv6=False, ipv6_reason="ip6tables is off")
    settings = read_stack_file("local")
    assert not settings.network.ipv6
    assert isinstance(settings.host, LocalHost)
    assert settings.host.ipv6 is None
    assert "IPv6 is left out: ip6tables is off" in said


def test_no_ipv6_address_is_told_where_this_machine_has_none(write: Write) -> None:
    write(loopback_ipv6=False)
    settings = read_stack_file("local")
    assert settings.network.ipv6
    assert isinstance(settings.host, LocalHost)
    assert settings.host.ipv6 is None


def container(name: str, stack: str = "") -> SimpleNamespace:
    return SimpleNamespace(name=name, labels={"derp-relays.stack": stack} if stack else {})


def network(name: str, stack: str = "") -> SimpleNamespace:
    return SimpleNamespace(name=name, attrs={"Labels": {"derp-relays.stack": stack} if stack else None})


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"containers": [container("caddy", "home")]}, "the container caddy"),
        ({"containers": [container("derper")]}, "the container derper"),
        ({"networks": [network("shared_bridge")]}, "the network shared_bridge"),
    ],
)
def test_another_stacks_names_are_left_to_it(write: Write, there: dict[str, Any], told: str) -> None:
    assert told in write(**there)
    settings = read_stack_file("local")
    assert settings.derper.container_name == "derper-local"
    assert settings.caddy.container_name == "caddy-local"
    assert settings.network.name == "shared_bridge_local"


def test_the_local_stacks_own_names_and_those_of_strangers_change_nothing(write: Write) -> None:
    write(
        containers=[
            container("caddy", "local"),
            container("blog"),
        ],
        networks=[network("shared_bridge", "local"), network("shared_bridge_2")],
    )
    settings = read_stack_file("local")
    assert settings.caddy.container_name == "caddy"
    assert settings.network.name == "shared_bridge"


def test_ipv6_is_tried_where_the_engine_does_not_tell(write: Write) -> None:
    assert "IPv6" not in write(ipv6=None)
    assert read_stack_file("local").network.ipv6


def test_no_free_ports_is_told_with_who_has_them(write: Write, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"port 80/tcp is taken by nginx \(pid 812\)"):
        write(taken=range(1, 65536))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_left_alone(write: Write, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.local.yaml").write_text("mine")
    assert write() == ""
    assert (tmp_path / "Pulumi.local.yaml").read_text() == "mine"


def test_it_has_an_id_and_a_code_of_its_own_among_the_examples(write: Write, tmp_path: Path) -> None:
    """Each of them can be brought up as a fleet beside it, without an edit of its region."""
    for path in (PROJECT_FOLDER / "stacks").glob("Pulumi.*.yaml"):
        if path.name != "Pulumi.local.yaml":
            shutil.copy(path, tmp_path)
    (home,) = re.findall(r"(?sm)^ +config:\n.*?(?=^ +```)", (PROJECT_FOLDER / "README.md").read_text())
    config = yaml.safe_load(home)["config"]
    regions = {f"{PROJECT}:domain": "derp.my.example", f"{PROJECT}:region": config[f"{PROJECT}:region"]}
    (tmp_path / "Pulumi.home.yaml").write_text(yaml.safe_dump({"config": regions}))
    write()
    everyone = fleet.members()
    wanted = [member for member in everyone if member.stack in ("local", "home", "article")]
    assert len(wanted) == 3
    fleet.check(everyone, wanted)


# What Pulumi 3.250 noted of the empty passphrase, and of "secret".
_SALTS = {
    "": "v1:LGN+2Z6qW0M=:v1:FPQNk/x7GekUQ3XI:Gs0B2gXRfaziFIZoygx+O5fS/LqjZw==",
    "secret": "v1:+WTNYQcwrHI=:v1:DJSLNi8qvwlZalzB:0oEiLnXDx4d0s72CVwJ3/jV144JbSw==",
}


@pytest.mark.parametrize("noted", ["file", "state", ""])
@pytest.mark.parametrize("made_with", ["", "secret"])
@pytest.mark.parametrize("exported", ["", "secret", "other"])
def test_a_passphrase_for_other_stacks_is_not_taken_for_the_local_one(
    made_with: str, exported: str, noted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    monkeypatch.setattr("relayctl.stack.run_folder", lambda: tmp_path)
    salt = _SALTS[made_with]
    written = {"encryptionsalt": salt} if noted == "file" else {}
    (tmp_path / "Pulumi.local.yaml").write_text(yaml.safe_dump({**written, "config": {}}))
    if noted == "state":
        deployment = {"secrets_providers": {"type": "passphrase", "state": {"salt": salt}}}
        state_copy("local").write_text(json.dumps({"version": 3, "deployment": deployment}))
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", exported)
    is_its_own = noted and made_with == exported
    assert local_stack.passphrase() == (exported if is_its_own else "")


def test_a_passphrase_in_a_file_is_read_as_pulumi_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    (tmp_path / "Pulumi.local.yaml").write_text(yaml.safe_dump({"encryptionsalt": _SALTS["secret"]}))
    (tmp_path / "phrase").write_text("secret\n")
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE", raising=False)
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(tmp_path / "phrase"))
    assert local_stack.passphrase() == "secret"
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(tmp_path / "gone"))
    assert local_stack.passphrase() == ""
