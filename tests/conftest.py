"""What the engine and relay lanes share: one host with a Docker Engine for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker_host import DockerHost, docker_host


@pytest.fixture(scope="module")
def host() -> Iterator[DockerHost]:
    """Yield a host of the test module's own."""
    with docker_host() as made:
        yield made
