"""Which images an update has changed, and what the relay is brought back with."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from relayctl import rollback
from relayctl.rollback import Image

_URN = "urn:pulumi:test::derp-relays::"


def image(name: str, reference: str, id_: str, **more: Any) -> dict[str, Any]:
    type_ = "docker:index/remoteImage:RemoteImage"
    outputs = {"imageId": id_}
    return {
        "type": type_,
        "urn": f"{_URN}{type_}::{name}",
        "inputs": {"name": reference},
        "outputs": outputs,
        **more,
    }


def container(name: str, image_id: str, tests: list[str] | None = None) -> dict[str, Any]:
    type_ = "docker:index/container:Container"
    inputs: dict[str, Any] = {"image": image_id}
    if tests is not None:
        inputs["healthcheck"] = {"tests": tests}
    return {"type": type_, "urn": f"{_URN}{type_}::{name}", "id": f"id-{name}", "inputs": inputs}


BEFORE = {
    "resources": [
        image("derper-built", "derp-relays/derper:1", "sha256:d1"),
        image("caddy", "caddy:2@sha256:aa", "sha256:c1"),
        image("deliver-built", "derp-relays/deliver:1", "sha256:x"),
        container("derper", "sha256:d1", ["CMD", "healthcheck", "http://127.0.0.1/"]),
        container("caddy", "sha256:c1"),
    ]
}
FORMER = {
    "derper": Image("sha256:d1", "derp-relays/derper:1", ("healthcheck", "http://127.0.0.1/")),
    "caddy": Image("sha256:c1", "caddy:2@sha256:aa"),
}


def test_images_are_told_by_container_with_their_health_checks() -> None:
    assert rollback.images_of(BEFORE) == FORMER
    assert rollback.images_of({}) == {}


@pytest.mark.parametrize(
    ("resources", "changed"),
    [
        (BEFORE["resources"], set()),
        # the new container runs, or is there
        (
            [
                image("caddy", "caddy:3", "sha256:c2"),
                container("caddy", "sha256:c2"),
                container("derper", "sha256:d1"),
            ],
            {"caddy"},
        ),
        # it could not be made: its image is there
        ([image("caddy", "caddy:3", "sha256:c2"), container("derper", "sha256:d1")], {"caddy"}),
        # the old image is still to be removed
        (
            [
                image("caddy", "caddy:3", "sha256:c2"),
                image("caddy", "caddy:2@sha256:aa", "sha256:c1", delete=True),
                container("derper", "sha256:d1"),
            ],
            {"caddy"},
        ),
        # from one that is pulled to one that is built
        (
            [
                image("caddy-built", "derp-relays/caddy:1", "sha256:c2"),
                image("caddy", "caddy:2@sha256:aa", "sha256:c1"),
                container("derper", "sha256:d1"),
            ],
            {"caddy"},
        ),
        # a container could not be made, and not for its image
        ([image("caddy", "caddy:2@sha256:aa", "sha256:c1"), container("derper", "sha256:d1")], set()),
    ],
    ids=["nothing", "made", "not made", "old one left", "built", "not for its image"],
)
def test_only_images_that_changed_are_gone_back_from(
    resources: list[dict[str, Any]], changed: set[str]
) -> None:
    assert set(rollback.changed(FORMER, {"resources": resources})) == changed


def test_the_settings_to_go_back_with_are_the_stacks_own_but_for_the_image(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "Pulumi.test.yaml"
    text = yaml.safe_dump(
        {
            "encryptionsalt": "v1:abc",
            "config": {
                "derp-relays:domain": "derp.example.com",
                "derp-relays:derper": {"image": "build", "version": "1.2.3", "memory": 600},
                "derp-relays:siteSecrets": {"token": {"secure": "v1:xyz"}},
            },
        }
    )
    own.write_text(text)
    monkeypatch.setattr(rollback, "stack_file", lambda _: own)
    monkeypatch.setattr(rollback, "run_folder", lambda: tmp_path)
    made = yaml.safe_load(rollback.settings_with("test", {"derper": FORMER["derper"]}).read_text())
    assert made["encryptionsalt"] == "v1:abc"
    assert made["config"] == {
        "derp-relays:domain": "derp.example.com",
        "derp-relays:derper": {
            "image": "derp-relays/derper:1",
            "memory": 600,
            "allowUnpinned": True,
            "healthcheck": ["healthcheck", "http://127.0.0.1/"],
        },
        "derp-relays:siteSecrets": {"token": {"secure": "v1:xyz"}},
    }
    assert own.read_text() == text
