"""The Caddyfile says what the settings say; that Caddy obeys it is for the relay lane."""

from __future__ import annotations

from typing import Any

import pytest

from render import Places, caddyfile
from settings import settings_from
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import AUTHORITY

PLACES = Places(
    folders={"blog.example.com": "/srv/.sites/blog.example.com/0123abcd"},
    secrets={"token": "/etc/caddy/.secrets/89ab/token"},
    certificates=None,
)


def rendered(places: Places = PLACES, **values: Any) -> str:
    return caddyfile(settings_from({**MINIMAL, **values}, "stacks/Pulumi.test.yaml"), places)


def block(text: str, head: str) -> list[str]:
    """Return the lines of the block that starts with ``head``, without their indentation."""
    lines = text.splitlines()
    start = lines.index(f"{head} {{" if head else "{")
    return [line.removeprefix("\t") for line in lines[start + 1 : lines.index("}", start)]]


def test_the_relay_is_proxied_with_debug_refused_and_sessions_outliving_reloads() -> None:
    assert block(rendered(), "derp.example.com") == [
        "respond /debug* 404",
        "reverse_proxy derper {",
        "\tstream_close_delay 24h",
        "}",
    ]


@pytest.mark.parametrize(
    ("head", "status"), [("http://derp.example.com", "permanent"), ("http://", "temporary")]
)
def test_port_80_answers_the_challenge_and_redirects_all_else(head: str, status: str) -> None:
    assert block(rendered(), head) == [
        "handle /generate_204 {",
        "\treverse_proxy derper",
        "}",
        "handle {",
        f"\tredir https://derp.example.com{{uri}} {status}",
        "}",
    ]


def test_redirects_name_a_port_that_is_not_443() -> None:
    text = rendered(
        caddy={"httpPort": 8080, "httpsPort": 8443},
        certificate={"source": "internal"},
        sites=[{"names": ["a.example.com", "b.example.com"], "upstream": "a:80"}],
    )
    assert "\tredir https://derp.example.com:8443{uri} temporary" in block(text, "http://")
    assert block(text, "http://a.example.com, http://b.example.com") == [
        "redir https://{host}:8443{uri} permanent"
    ]


def test_redirects_name_the_port_where_port_80_answers_to_no_address() -> None:
    text = rendered(
        caddy={"httpPort": 8080, "httpsPort": 8443, "answerByAddress": False},
        certificate={"source": "internal"},
    )
    assert block(text, "http://derp.example.com") == ["redir https://{host}:8443{uri} permanent"]
    assert "http:// {" not in text


@pytest.mark.parametrize(
    ("certificate", "options"),
    [
        ({"source": "acme", "email": "you@example.com"}, ["email you@example.com"]),
        (
            {"source": "acme-staging"},
            ["acme_ca https://acme-staging-v02.api.letsencrypt.org/directory"],
        ),
        ({"source": "internal"}, ["local_certs", "skip_install_trust"]),
    ],
)
def test_global_options_follow_the_certificate_source(
    certificate: dict[str, str], options: list[str]
) -> None:
    assert block(rendered(certificate=certificate), "") == options


def test_files_are_used_by_every_site(tmp_path: Any) -> None:
    for name, text in zip(("chain.pem", "key.pem"), AUTHORITY.certificate_and_key(), strict=True):
        (tmp_path / name).write_text(text)
    text = rendered(
        Places(folders={}, secrets={}, certificates="/etc/caddy/.certificates/4567cdef"),
        certificate={
            "source": "files",
            "folder": str(tmp_path),
            "certificate": "chain.pem",
            "key": "key.pem",
        },
        sites=[{"names": ["a.example.com"], "upstream": "a:80"}],
    )
    folder = "/etc/caddy/.certificates/4567cdef"
    line = f"tls {folder}/chain.pem {folder}/key.pem"
    assert block(text, "derp.example.com")[0] == line
    assert block(text, "a.example.com")[0] == line


def test_metrics_are_on_a_port_of_their_own_for_their_network_alone() -> None:
    text = rendered(metrics={"subnet": "10.0.0.0/29"})
    assert block(text, "") == ["metrics"]
    assert block(text, "http://:9180") == [
        "@others not remote_ip 10.0.0.0/31 10.0.0.2/32 10.0.0.4/30",
        "abort @others",
        "metrics",
    ]
    assert "metrics" not in rendered()


def test_the_relay_is_found_by_its_containers_name() -> None:
    text = rendered(derper={"containerName": "derper-two"})
    assert text.count("reverse_proxy derper-two") == 3
