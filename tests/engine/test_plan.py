"""What relayctl says before an update, held to what the update then does under the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.engine.program_stack import Engine, engine_on

BLOG = {"sites": [{"names": ["blog.localhost"], "upstream": "blog:80"}]}
KEPT = "Relay sessions: kept, up to 24h (caddy.streamCloseDelay)"


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


def relayctl(engine: Engine, *arguments: str, fails: bool = False) -> list[str]:
    """Return the lines that relayctl prints."""
    done = engine.checkout.relayctl(*arguments)
    said = done.stdout + done.stderr
    assert done.returncode == (1 if fails else 0), said
    return said.splitlines()


def started(engine: Engine) -> dict[str, str]:
    """Return the containers that run by name, each with its id and when it was started."""
    return {str(c.name): f"{c.id} {c.attrs['State']['StartedAt']}" for c in engine.docker.containers.list()}


def test_without_an_edit_nothing_is_to_change(engine: Engine) -> None:
    assert relayctl(engine, "preview", STACK)[-1] == "Nothing to change."


@pytest.mark.parametrize(
    ("edit", "told", "sessions"),
    [
        (
            {**BLOG, "volumes": {"protect": False}},
            [
                "update  Caddy's configuration: 1 site added (blog.localhost)",
                "update  the volume caddy_config and 5 more like it: protection",
            ],
            KEPT,
        ),
        # Docker takes limits off a container that runs.
        (
            {"caddy": {"memory": 0}},
            ["update  Caddy's container: memory, memorySwap"],
            "Relay sessions: kept",
        ),
        (
            {"derper": {"stunPort": 13478}},
            [
                "replace derper's container: ports",
                "update  the stack's outputs: derpMapRegion",
            ],
            "Relay sessions will end: derper's container is replaced (ports).",
        ),
        (
            {"network": {"ipv6Subnet": "fd12:3456:789a:1::/64"}},
            [
                "replace the network: subnet",
                "replace Caddy's container: network",
                "replace derper's container: network",
                "update  Caddy's configuration",
            ],
            "Relay sessions will end: the network is replaced (subnet);",
        ),
    ],
    ids=["site", "no limit", "STUN port", "subnet"],
)
def test_sessions_are_said_to_end_where_a_container_does_and_nowhere_else(
    engine: Engine, edit: dict[str, Any], told: list[str], sessions: str
) -> None:
    before = started(engine)
    engine.write(**edit)
    *changes, outcome = relayctl(engine, "preview", STACK)[-len(told) - 1 :]
    assert [change.strip() for change in changes] == told
    assert outcome.startswith(sessions)
    assert started(engine) == before
    engine.up()
    assert (started(engine) == before) == ("kept" in sessions)


def test_an_edit_that_would_end_sessions_is_refused_to_who_wants_them_kept(engine: Engine) -> None:
    state, before = engine.run("stack", "export"), started(engine)
    engine.write(derper={"stunPort": 13478})
    said = relayctl(engine, "up", STACK, "--keep-sessions", fails=True)
    assert said[-3:] == [
        f"error: relay sessions of {STACK} would end; nothing was changed",
        "  derper's container is replaced (ports)",
        (
            f"  to mend it: take the edit back; or run `make up STACK={STACK}` without --keep-sessions,"
            " when it suits"
        ),
    ]
    assert engine.run("stack", "export") == state
    assert started(engine) == before


def test_an_edit_that_keeps_sessions_is_made(engine: Engine) -> None:
    before = started(engine)
    engine.write(**BLOG)
    assert KEPT in relayctl(engine, "up", STACK, "--keep-sessions")
    engine.unchanged()
    assert started(engine) == before


def test_a_container_that_ended_is_found_without_a_note_of_it_in_the_state(engine: Engine) -> None:
    state = engine.run("stack", "export")
    engine.edited = True
    container = engine.docker.containers.get("derper-test")
    container.kill()
    assert relayctl(engine, "preview", STACK)[-2:] == [
        "  update  derper's container: mustRun",
        "Relay sessions: none, since the relay does not run yet",
    ]
    assert engine.run("stack", "export") == state
    container.start()


def test_what_cannot_be_done_is_told_by_a_preview_as_by_an_update(engine: Engine) -> None:
    before = started(engine)
    engine.write(volumes={"prefix": "other_"})
    for command in ("preview", "up"):
        said = "\n".join(relayctl(engine, command, STACK, fails=True))
        assert "error: stack test: Volume " in said
        assert "as it is currently marked for protection" in said
        assert "preview failed" not in said
        assert started(engine) == before


def test_a_stack_that_nobody_made_is_not_made_by_a_preview(engine: Engine) -> None:
    engine.checkout.write_stack({"domain": "derp.example.com", "region": {"id": 998, "code": "new"}}, "new")
    said = relayctl(engine, "preview", "new")
    assert said[-1] == "Pulumi knows of no stack new: `make up STACK=new` makes all of it."
    listed = engine.pulumi("stack", "ls").stdout.split()
    assert STACK in {name.removesuffix("*") for name in listed}
    assert "new" not in listed
