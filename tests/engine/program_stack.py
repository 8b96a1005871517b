"""A stack of the real program on a host of its own, under Pulumi's own command line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from images.recipe import host_goarch
from relayctl.prerequisites import image_contexts
from relayctl.prerequisites.progress import Progress
from tests.checkout import STACK, Checkout, Pulumi
from tests.docker_host import DockerHost

SETTINGS: dict[str, Any] = {
    "domain": "derp.localhost",
    "region": {"id": 999, "code": "test"},
    "network": {"name": "engine-test"},
    "volumes": {"prefix": "engine-test_"},
    # Without health checks an update need not wait for them.
    "derper": {"containerName": "derper-test", "healthcheck": []},
    "caddy": {"image": "build", "containerName": "caddy-test", "healthcheck": []},
    "certificate": {"source": "internal"},
}


class Engine:
    """A stack of the program on a host, with its state in a folder."""

    def __init__(self, checkout: Checkout, pulumi: Pulumi) -> None:
        self.checkout = checkout
        self.pulumi = pulumi
        self.docker = checkout.host.client()
        self.edited = False

    def write(self, **groups: Any) -> None:
        """Write the stack file: the settings above, with ``groups`` merged in."""
        self.edited = True
        values = deepcopy(SETTINGS)
        for key, value in groups.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        self.checkout.write_stack(values)

    def run(self, *arguments: str, fails: bool = False) -> str:
        done = self.pulumi(*arguments, "--stack", STACK)
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    def up(self) -> str:
        return self.run("up", "--yes", "--skip-preview")

    def unchanged(self) -> None:
        self.run("up", "--yes", "--skip-preview", "--expect-no-changes")

    def preview(self) -> dict[str, str]:
        """Return what an update would do: the operation by resource, for those that are not the same."""
        done = self.pulumi("preview", "--json", "--stack", STACK)
        assert done.returncode == 0, done.stdout + done.stderr
        steps = json.loads(done.stdout)["steps"]
        told: dict[str, str] = {}
        for step in steps:
            *_, kind, name = step["urn"].split("::")
            operation = step["op"]
            if operation != "same":
                # A replacement is told in three steps; the middle one names it.
                told[f"{kind.rsplit(':', 1)[-1]} {name}"] = "replace" if "replace" in operation else operation
        return told

    def ids(self) -> dict[str, str]:
        return {str(c.name): str(c.id) for c in self.docker.containers.list(all=True)}


T = TypeVar("T", bound=Engine)


@contextlib.contextmanager
def engine_on(host: DockerHost, folder: Path, kind: type[T]) -> Iterator[T]:
    """Yield a stack with the settings above that is up on ``host``, in a checkout in ``folder``."""
    for program in ("derper", "caddy", "deliver"):
        image_contexts.fill(program, Progress(), goarch=host_goarch())
    checkout = Checkout.make(folder, host)
    with checkout.pulumi() as pulumi:
        made = kind(checkout, pulumi)
        made.write()
        made.run("stack", "init")
        made.up()
        yield made
