"""The real program under the real engine: what each edit of a stack does, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.docker_host import DockerHost
from tests.engine.program_stack import SETTINGS, Engine, engine_on

DELIVERED = "Configuration configuration"


@pytest.fixture(scope="module")
def engine(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_on(host, tmp_path_factory.mktemp("engine"), Engine) as made:
        yield made


@pytest.fixture(autouse=True)
def as_it_was(engine: Engine) -> Iterator[None]:
    """Leave the stack as the first update made it."""
    yield
    if engine.edited:
        engine.write()
        engine.up()
        engine.edited = False


def test_an_update_and_a_refresh_change_nothing(engine: Engine) -> None:
    engine.unchanged()
    engine.run("refresh", "--yes", "--skip-preview")
    engine.run("preview", "--expect-no-changes")


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (
            {"sites": [{"names": ["blog.localhost"], "upstream": "blog:80"}]},
            {DELIVERED: "update"},
        ),
        ({"caddy": {"closeDebug": False, "answerByAddress": False}}, {DELIVERED: "update"}),
        ({"caddy": {"httpPort": 8080}}, {"Container caddy": "replace", DELIVERED: "update"}),
        ({"derper": {"stunPort": 13478}}, {"Container derper": "replace"}),
        (
            {"derper": {"healthcheck": ["/usr/local/bin/healthcheck", "http://127.0.0.1/"]}},
            {"Container derper": "replace"},
        ),
        (
            {"network": {"ipv6Subnet": "fd12:3456:789a:1::/64"}},
            {
                "Network network": "replace",
                "Container derper": "replace",
                "Container caddy": "replace",
                DELIVERED: "update",
            },
        ),
        # GOMEMLIMIT follows, and a variable is set when a container is made.
        ({"derper": {"memory": 600}}, {"Container derper": "replace"}),
        ({"region": {"name": "A new name"}}, {}),
        ({"volumes": {"protect": False}}, {}),
    ],
    ids=[
        "site",
        "what is answered",
        "port",
        "STUN port",
        "health check",
        "subnet",
        "memory",
        "region name",
        "protection",
    ],
)
def test_an_edit_changes_what_it_says_and_nothing_else(
    engine: Engine, edit: dict[str, Any], changes: dict[str, str]
) -> None:
    before = engine.ids()
    engine.write(**edit)
    assert engine.preview() == changes
    engine.up()
    engine.unchanged()
    after = engine.ids()
    replaced = {name for name in before if before[name] != after[name]}
    assert replaced == {f"{name.split()[1]}-test" for name in changes if name.startswith("Container")}


def test_a_moved_port_is_really_published(engine: Engine) -> None:
    """The ports are not compared; the trigger must bring the new ones all the same."""
    engine.write(caddy={"httpPort": 8080})
    engine.up()
    bindings = engine.docker.containers.get("caddy-test").attrs["HostConfig"]["PortBindings"]["80/tcp"]
    assert {binding["HostPort"] for binding in bindings} == {"8080"}


@pytest.mark.parametrize("name", ["derper-test", "caddy-test"])
def test_a_container_removed_by_hand_is_found_by_a_refresh_and_made_again(engine: Engine, name: str) -> None:
    engine.docker.containers.get(name).remove(force=True)
    engine.run("refresh", "--yes", "--skip-preview")
    delivered = {DELIVERED: "update"} if name == "caddy-test" else {}
    assert engine.preview() == {f"Container {name.removesuffix('-test')}": "create", **delivered}
    engine.up()
    assert engine.docker.containers.get(name).status == "running"


def test_a_stopped_container_is_started_again_after_a_refresh(engine: Engine) -> None:
    container = engine.docker.containers.get("derper-test")
    container.stop(timeout=5)
    engine.run("refresh", "--yes", "--skip-preview")
    engine.up()
    container.reload()
    assert container.status == "running"


def test_volumes_are_protected_from_a_destroy(engine: Engine) -> None:
    volumes = {v.name for v in engine.docker.volumes.list()}
    said = engine.run("destroy", "--yes", "--skip-preview", fails=True)
    assert "protect" in said
    assert {v.name for v in engine.docker.volumes.list()} == volumes
    assert len(volumes) == 6


def test_volumes_are_protected_from_a_rename(engine: Engine) -> None:
    engine.write(volumes={"prefix": "other_"})
    said = engine.run("up", "--yes", "--skip-preview", fails=True)
    assert "protect" in said
    assert "engine-test_derp_data" in {v.name for v in engine.docker.volumes.list()}


def test_bad_settings_are_all_told_and_nothing_is_touched(engine: Engine) -> None:
    before = engine.ids()
    engine.write(domain="no", region={"id": 1}, caddy={"httpPort": 443})
    said = engine.run("up", "--yes", "--skip-preview", fails=True)
    assert "stacks/Pulumi.test.yaml: 3 bad values; nothing was changed." in said
    assert "derp-relays:domain: 'no' is a name without a domain." in said
    assert "derp-relays:region.id: 1 is less than 900." in said
    assert "derp-relays:caddy.httpPort: 443 is httpsPort as well." in said
    assert engine.ids() == before


def test_a_missing_setting_is_told_with_its_remedy(engine: Engine) -> None:
    engine.write()
    engine.checkout.write_stack(
        {key: value for key, value in SETTINGS.items() if key not in {"domain", "region"}}
    )
    said = engine.run("preview", fails=True)
    assert "derp-relays:domain: is missing. Give a host name such as derp.example.com" in said
    assert "derp-relays:region: is missing. Give id, code and name" in said


def test_wrong_types_are_told_by_us_and_not_by_pulumi(engine: Engine) -> None:
    engine.edited = True
    engine.checkout.write_stack({**SETTINGS, "region": "nbg", "sites": "blog"})
    said = engine.run("preview", fails=True)
    assert "derp-relays:region: 'nbg' is not a group of settings." in said
    assert "derp-relays:sites: 'blog' is not a list." in said
