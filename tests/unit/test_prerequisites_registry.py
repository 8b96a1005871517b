"""Whether a registry answers is found out in a short time, with the reason."""

from __future__ import annotations

import http.server
import socket
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from relayctl.prerequisites import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def serve() -> Iterator[Callable[[int], str]]:
    servers = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/v2/" else 500)
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("caddy", "docker.io"),
        ("caddy:2.11", "docker.io"),
        ("library/caddy", "docker.io"),
        ("index.docker.io/library/caddy", "docker.io"),
        ("docker.io/fredliang/derper:latest", "docker.io"),
        ("fredliang/derper", "docker.io"),
        ("ghcr.io/tailscale/derper@sha256:00", "ghcr.io"),
        ("localhost/derper", "localhost"),
        ("localhost:5000/derper", "localhost:5000"),
        ("registry.example:443/a/b:c", "registry.example:443"),
    ],
)
def test_registry_of_a_reference(reference: str, expected: str) -> None:
    assert registry.registry_of(reference) == expected


@pytest.mark.parametrize("status", [200, 401])
def test_registry_that_answers(serve: Callable[[int], str], status: int) -> None:
    host = serve(status)
    assert registry.answers(f"{host}/derper:1") == registry.Answer(host, answers=True)


@pytest.mark.parametrize("status", [404, 403, 503])
def test_server_that_is_no_registry(serve: Callable[[int], str], status: int) -> None:
    answer = registry.answers(f"{serve(status)}/derper:1")
    assert not answer
    # both ways of speaking to it were tried, and the first one's reason stands unless the second got through
    assert answer.reason.endswith(f"/v2/ answers {status}, which is not how a registry answers")


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = registry.answers(f"localhost:{port}/derper")
    assert not answer
    assert answer.reason == "Connection refused"


def test_silence_does_not_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TIMEOUT", httpx.Timeout(0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = registry.answers(f"127.0.0.1:{silent.getsockname()[1]}/derper")
    assert not answer
    assert answer.reason == "no connection within 4 s"


def test_name_that_does_not_resolve() -> None:
    # https://www.rfc-editor.org/rfc/rfc6761: a name under .invalid never does
    answer = registry.answers("registry.invalid/derper:1")
    assert not answer
    assert answer.host == "registry.invalid"
    assert answer.reason


def test_site_answers_with_whatever_status(serve: Callable[[int], str]) -> None:
    assert registry.site_answers(f"http://{serve(404)}/install.sh")
    assert not registry.site_answers("http://site.invalid/install.sh")
