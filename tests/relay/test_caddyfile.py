"""Caddy obeys the Caddyfile: every kind of site and every option, served by the real program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from render import Places, caddyfile
from settings import Settings, settings_from
from settings.base import PROJECT_FOLDER
from tests.relay.outside import Outside, outside
from tests.relay.programs import program, running
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import AUTHORITY

PASSWORD = "correct horse"  # noqa: S105 - of these tests
SECRET = 's3cr3t-{host}-`"\\'  # noqa: S105 - with all that a Caddyfile would take for its own
ECHO, TLS_ECHO, NOBODY = 8080, 8443, 8999
AUTHORITYS_NAME = "backend.internal"
PAGE = "<h1>{path} is no placeholder in a file</h1>" * 100

SNIPPET = """
# every way to write a text
@greeting path /quoted
respond @greeting "a } and a { in \\"quotes\\""
handle /heredoc {
    respond <<HTML
    <p>{
      }</p>
    HTML 200
}
  handle_path /nested/* {
respond `back "ticks" {path} {secret.token}`
  }
header X-Snippet \\
    "two lines"
"""


def hashed(password: str, algorithm: str) -> str:
    """Return what Caddy's own command makes of ``password``."""
    cost = ["--bcrypt-cost", "10"] if algorithm == "bcrypt" else []
    command = [program("caddy"), "hash-password", "--algorithm", algorithm, *cost]
    done = subprocess.run(command, input=f"{password}\n", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def sites(folder: Path, address: str) -> list[dict[str, Any]]:
    bcrypt, argon2id = (hashed(PASSWORD, algorithm) for algorithm in ("bcrypt", "argon2id"))
    tls = {"upstream": f"https://{address}:{TLS_ECHO}"}
    trusted = {"serverName": AUTHORITYS_NAME, "trust": str(folder / "authority.pem")}
    health = {"path": "/healthz", "interval": "1s", "timeout": "1s"}
    plain = {"upstream": f"{address}:{ECHO}"}
    return [
        {"names": ["plain.localhost", "www.plain.localhost"], **plain},
        {
            "names": ["headers.localhost"],
            **plain,
            "headers": {
                "X-Frame-Options": "DENY",
                "X-Powered-By": None,
                "Report-To": '{"group":"default","max_age":1}',
                "Content-Security-Policy": "default-src 'self'; img-src *",
                "X-Host": "{host} # <<END",
                "X-Secret": "a {secret.token} b",
            },
            "requestHeaders": {
                "X-Token": "Bearer {secret.token}",
                "Cookie": None,
                "Host": "renamed.example.com",
            },
            "compress": True,
        },
        {
            "names": ["nobody.localhost"],
            "upstream": f"{address}:{NOBODY}",
            "headers": {"X-Frame-Options": "DENY"},
        },
        {"names": ["health.localhost"], **plain, "health": health},
        {"names": ["health-204.localhost"], **plain, "health": {**health, "status": 204}},
        {"names": ["trusted.localhost"], **tls, "tls": trusted},
        {"names": ["health-tls.localhost"], **tls, "tls": trusted, "health": health},
        {"names": ["untrusted.localhost"], **tls, "tls": {"serverName": AUTHORITYS_NAME}},
        {"names": ["other-name.localhost"], **tls, "tls": {**trusted, "serverName": "other.internal"}},
        {"names": ["unverified.localhost"], **tls, "tls": {"verify": False}},
        {
            "names": ["folder.localhost"],
            "folder": str(folder / "www"),
            "headers": {"X-Frame-Options": "DENY"},
        },
        {"names": ["listing.localhost"], "folder": str(folder / "www"), "listing": True, "compress": False},
        {"names": ["app.localhost"], "folder": str(folder / "www"), "fallback": "/app/index.html"},
        {"names": ["old.localhost"], "redirect": "https://new.localhost/"},
        {"names": ["moved.localhost"], "redirect": "https://new.localhost/at", "redirectStatus": 308},
        {
            "names": ["locked.localhost"],
            **plain,
            "basicAuth": {"alice": bcrypt, "bob": bcrypt.replace("$2a$", "$2y$")},
        },
        {"names": ["argon.localhost"], "folder": str(folder / "www"), "basicAuth": {"alice": argon2id}},
        {
            "names": ["locked-redirect.localhost"],
            "redirect": "https://new.localhost",
            "basicAuth": {"alice": bcrypt},
        },
        {"names": ["snippet.localhost"], "snippet": SNIPPET},
        {
            "names": ["beside.localhost"],
            **plain,
            "snippet": "respond /ping pong\n",
            "basicAuth": {"alice": bcrypt},
        },
    ]


@dataclass(frozen=True)
class Answer:
    """What a client got; ``headers`` has all values of each name, in small letters."""

    status: int
    headers: Mapping[str, list[str]]
    body: bytes

    def asked(self) -> dict[str, Any]:
        """Return what the upstream said that it was asked."""
        return dict(json.loads(self.body))


@dataclass(frozen=True)
class Served:
    """Caddy in a namespace of its own, with the Caddyfile that was rendered for ``settings``."""

    settings: Settings
    folder: Path
    place: Outside
    text: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def caddy(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("caddy"), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            check=False,
        )

    def get(self, name: str, path: str = "/", *options: str) -> Answer:
        """Ask for ``path`` of the site ``name`` over HTTPS, as curl does with ``options``."""
        done = self.place.run(
            [
                *["curl", "--silent", "--show-error", "--include", "--max-time", "10", "--path-as-is"],
                *["--cacert", str(self.root), "--resolve", f"{name}:443:127.0.0.1", *options],
                f"https://{name}{path}",
            ]
        )
        assert done.returncode == 0, done.stderr
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        first, *lines = head.splitlines()
        headers: dict[str, list[str]] = {}
        for line in lines:
            key, _, value = line.partition(": ")
            headers.setdefault(key.lower(), []).append(value)
        return Answer(int(first.split()[1]), headers, body.encode())

    @property
    def root(self) -> Path:
        return self.folder / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    def health(self, status: int) -> None:
        (self.folder / "health").write_text(str(status))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("caddy")
    (folder / "authority.pem").write_text(AUTHORITY.pem)
    (folder / "server.pem").write_text("".join(AUTHORITY.certificate_and_key(AUTHORITYS_NAME)))
    (folder / "health").write_text("200")
    (folder / "secret").write_text(SECRET)
    (folder / "www" / "app").mkdir(parents=True)
    (folder / "www" / "page.html").write_text(PAGE)
    (folder / "www" / "app" / "index.html").write_text("the app")
    with outside() as place, contextlib.ExitStack() as stack:
        settings = settings_from(
            {
                **MINIMAL,
                "domain": "derp.localhost",
                "certificate": {"source": "internal"},
                "sites": sites(folder, place.there_ipv4),
                "siteSecrets": {"token": SECRET},
            },
            "stacks/Pulumi.test.yaml",
        )
        names = [site.names[0] for site in settings.sites]
        places = Places(
            folders=dict.fromkeys(names, str(folder / "www")),
            secrets={"token": str(folder / "secret")},
            certificates=None,
        )
        text = caddyfile(settings, places)
        (folder / "Caddyfile").write_text(text)
        environment = {
            "HOME": str(folder),
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }
        made = Served(settings, folder, place, text, environment)
        inside = ["nsenter", f"--net=/var/run/netns/{place.namespace}"]
        echo = [*inside, sys.executable, "-m", "tests.relay.echo", place.there_ipv4]
        here = {"PYTHONPATH": str(PROJECT_FOLDER)}
        status = str(folder / "health")
        stack.enter_context(running([*echo, str(ECHO), status], folder / "echo.log", here))
        stack.enter_context(
            running([*echo, str(TLS_ECHO), status, str(folder / "server.pem")], folder / "tls.log", here)
        )
        command = [*inside, program("caddy"), "run", "--config", str(folder / "Caddyfile")]
        stack.enter_context(running(command, folder / "caddy.log", environment))
        eventually(
            lambda: made.get("trusted.localhost").status == 200,
            lambda: (folder / "caddy.log").read_text() + (folder / "tls.log").read_text(),
        )
        yield made


def eventually(holds: Callable[[], bool], told: Callable[[], str] = str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):
            if holds():
                return
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def test_caddy_takes_it_and_would_format_it_no_otherwise(served: Served) -> None:
    config = str(served.folder / "Caddyfile")
    done = served.caddy("validate", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "not formatted" not in done.stderr
    assert served.caddy("fmt", config).stdout == served.text


def test_each_site_is_a_site_of_its_own(served: Served) -> None:
    """No option of a site makes one more, or ends up in another."""
    adapted = json.loads(served.caddy("adapt", "--config", str(served.folder / "Caddyfile")).stdout)
    servers = adapted["apps"]["http"]["servers"].values()
    https = next(server for server in servers if server["listen"] == [":443"])
    hosts = {host for route in https["routes"] for match in route.get("match", []) for host in match["host"]}
    assert hosts == {"derp.localhost", *(name for site in served.settings.sites for name in site.names)}
    assert SECRET not in json.dumps(adapted)
    assert SECRET not in served.text


def test_certificates_of_ones_own_are_taken(tmp_path: Path, served: Served) -> None:
    for name, text in zip(
        ("chain.pem", "key.pem"), AUTHORITY.certificate_and_key("derp.example.com"), strict=True
    ):
        (tmp_path / name).write_text(text)
    certificate = {"source": "files", "folder": str(tmp_path), "certificate": "chain.pem", "key": "key.pem"}
    settings = settings_from(
        {
            **MINIMAL,
            "certificate": certificate,
            "sites": [{"names": ["a.example.com"], "snippet": "respond hi"}],
        },
        "stacks/Pulumi.test.yaml",
    )
    (tmp_path / "Caddyfile").write_text(caddyfile(settings, Places({}, {}, str(tmp_path))))
    done = served.caddy("validate", "--config", str(tmp_path / "Caddyfile"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["plain.localhost", "www.plain.localhost"])
def test_an_upstream_gets_the_request_as_it_is(served: Served, name: str) -> None:
    answer = served.get(name, "/a?b=c")
    assert answer.status == 200
    assert answer.asked()["path"] == "/a?b=c"
    assert answer.asked()["headers"]["host"] == name
    assert answer.headers["x-frame-options"] == ["SAMEORIGIN"]
    assert "content-encoding" not in served.get(name, "/", "--header", "Accept-Encoding: gzip").headers


def test_headers_of_the_answer_are_those_of_the_site_and_no_others(served: Served) -> None:
    headers = served.get("headers.localhost").headers
    assert headers["x-frame-options"] == ["DENY"]
    assert "x-powered-by" not in headers
    assert headers["report-to"] == ['{"group":"default","max_age":1}']
    assert headers["content-security-policy"] == ["default-src 'self'; img-src *"]
    assert headers["x-host"] == ["headers.localhost # <<END"]
    assert headers["x-secret"] == [f"a {SECRET} b"]


def test_caddys_own_errors_have_the_headers_too(served: Served) -> None:
    unreachable, missing = served.get("nobody.localhost"), served.get("folder.localhost", "/nothing")
    assert (unreachable.status, missing.status) == (502, 404)
    assert unreachable.headers["x-frame-options"] == missing.headers["x-frame-options"] == ["DENY"]


def test_headers_of_the_request_are_set_and_taken_out(served: Served) -> None:
    forged = ("--header", "X-Token: forged", "--header", "Cookie: a=b")
    headers = served.get("headers.localhost", "/", *forged).asked()["headers"]
    assert headers["x-token"] == f"Bearer {SECRET}"
    assert headers["host"] == "renamed.example.com"
    assert "cookie" not in headers


def test_an_upstream_that_is_ill_is_not_asked(served: Served) -> None:
    names = ["health.localhost", "health-tls.localhost"]
    for name in names:
        eventually(lambda name=name: served.get(name).status == 200)  # type: ignore[misc]
    # 200 is not what this one expects
    eventually(lambda: served.get("health-204.localhost").status == 503)
    served.health(500)
    for name in names:
        eventually(lambda name=name: served.get(name).status == 503)  # type: ignore[misc]
    assert served.get("plain.localhost").status == 200
    served.health(204)
    for name in [*names, "health-204.localhost"]:
        eventually(lambda name=name: served.get(name).status == 200)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("trusted.localhost", 200),
        ("unverified.localhost", 200),
        ("untrusted.localhost", 502),
        ("other-name.localhost", 502),
    ],
)
def test_an_upstreams_certificate_is_judged_as_the_site_says(served: Served, name: str, status: int) -> None:
    assert served.get(name).status == status


def test_a_folder_is_compressed_and_not_listed(served: Served) -> None:
    page = served.get("folder.localhost", "/page.html")
    assert (page.status, page.body.decode()) == (200, PAGE)
    options = ("--header", "Accept-Encoding: gzip", "--output", os.devnull, "--dump-header", "-")
    assert served.get("folder.localhost", "/page.html", *options).headers["content-encoding"] == ["gzip"]
    assert served.get("folder.localhost", "/").status == 404
    assert served.get("folder.localhost", "/../secret").status in {400, 404}


def test_a_folder_is_listed_and_not_compressed_where_the_site_says_so(served: Served) -> None:
    assert b"page.html" in served.get("listing.localhost").body
    plain = served.get("listing.localhost", "/page.html", "--header", "Accept-Encoding: gzip")
    assert plain.body.decode() == PAGE


def test_an_upstream_is_compressed_where_the_site_says_so(served: Served) -> None:
    long = "x" * 2000
    options = ("--header", f"X-Long: {long}", "--header", "Accept-Encoding: gzip", "--output", os.devnull)
    headers = served.get("headers.localhost", "/", *options, "--dump-header", "-").headers
    assert headers["content-encoding"] == ["gzip"]


def test_the_fallback_answers_where_there_is_no_file(served: Served) -> None:
    assert served.get("app.localhost", "/page.html").body.decode() == PAGE
    for path in ("/nothing", "/nothing/at/all?x=y", "/"):
        answer = served.get("app.localhost", path)
        assert (answer.status, answer.body) == (200, b"the app"), path


@pytest.mark.parametrize(
    ("name", "status", "location"),
    [
        ("old.localhost", 301, "https://new.localhost/a?b=c"),
        ("moved.localhost", 308, "https://new.localhost/at/a?b=c"),
    ],
)
def test_a_redirect_keeps_path_and_query(served: Served, name: str, status: int, location: str) -> None:
    answer = served.get(name, "/a?b=c")
    assert (answer.status, answer.headers["location"]) == (status, [location])


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("locked.localhost", "/", 200),
        ("argon.localhost", "/page.html", 200),
        ("locked-redirect.localhost", "/", 301),
        ("beside.localhost", "/ping", 200),
    ],
)
def test_a_password_is_asked_for_before_anything_is_answered(
    served: Served, name: str, path: str, status: int
) -> None:
    for credentials in ([], ["alice:wrong"], [f"mallory:{PASSWORD}"]):
        refused = served.get(name, path, *(option for each in credentials for option in ("--user", each)))
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == ['Basic realm="restricted"']
        assert "location" not in refused.headers
    assert served.get(name, path, "--user", f"alice:{PASSWORD}").status == status


def test_each_user_has_a_password(served: Served) -> None:
    assert served.get("locked.localhost", "/", "--user", f"bob:{PASSWORD}").status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/quoted", 'a } and a { in "quotes"'),
        ("/heredoc", "<p>{\n  }</p>"),
        ("/nested/x", f'back "ticks" /x {SECRET}'),
    ],
)
def test_a_snippet_says_what_it_says(served: Served, path: str, body: str) -> None:
    answer = served.get("snippet.localhost", path)
    assert (answer.status, answer.body.decode()) == (200, body)
    assert answer.headers["x-snippet"] == ["two lines"]


def test_a_snippet_stands_beside_another_kind(served: Served) -> None:
    user = ("--user", f"alice:{PASSWORD}")
    assert served.get("beside.localhost", "/ping", *user).body == b"pong"
    assert served.get("beside.localhost", "/other", *user).asked()["path"] == "/other"
