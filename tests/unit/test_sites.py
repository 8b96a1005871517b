# ruff: noqa: E501 - a table is read by its columns
"""What a site may say, and what the Caddyfile then says; that Caddy obeys it is for the relay lane."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from render import Places, caddyfile
from settings import Problem, Settings, SettingsError, read_stack_file, reader, settings_from
from settings.snippet import tokens
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import AUTHORITY
from tests.unit.test_caddyfile import block, rendered

# `caddy hash-password --plaintext antitiming`, with each of its algorithms
BCRYPT = "$2a$14$X3ulqf/iGxnf1k6oMZ.RZeJUoqI9PX2PM4rS5lkIKJXduLGXGPrt6"
ARGON2ID = "$argon2id$v=19$m=47104,t=1,p=1$P2nzckEdTZ3bxCiBCkRTyA$xQL3Z32eo5jKl7u5tcIsnEKObYiyNZQQf5/4sAau6Pg"
PASSWORD = "correct-horse-battery-staple"  # noqa: S105 - no one's
SECRETS = {"token": PASSWORD}

HASH_ADVICE = (
    "Give users by names, each with what `docker run --rm -it caddy:2.11.4 caddy hash-password` prints; where"
    " the relay runs, so does `docker exec -it caddy caddy hash-password`."
)
ENVIRONMENT_ADVICE = "Write its value, or {secret.NAME} and the value in siteSecrets."
SET_SECRET = "pulumi config set --secret --path derp-relays:siteSecrets.NAME"  # noqa: S105 - a command


def given(site: dict[str, Any], **values: Any) -> Settings:
    sites = [{"names": ["blog.example.com"], **site}]
    return settings_from(
        {**MINIMAL, "siteSecrets": SECRETS, "sites": sites, **values}, "stacks/Pulumi.x.yaml"
    )


def refused(site: dict[str, Any], **values: Any) -> list[Problem]:
    with pytest.raises(SettingsError) as caught:
        given(site, **values)
    return list(caught.value.problems)


def site_block(**site: Any) -> list[str]:
    # without what all upstreams have alike
    text = rendered(
        siteSecrets=SECRETS,
        caddy={"streamCloseDelay": "0"},
        sites=[{"names": ["blog.example.com"], **site}],
    )
    return block(text, "blog.example.com")


UPSTREAM = {"upstream": "blog:8080"}
TLS_UPSTREAM = {"upstream": "https://blog:8443"}

# site, key in the message under sites[0], what is wrong, how to mend it
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    ({**UPSTREAM, "health": {}}, ".health.path", "is missing", "Give the path to ask for, such as /healthz."),
    ({**UPSTREAM, "health": {"path": "healthz"}}, ".health.path", "'healthz' is no path", "Give one such as /healthz."),
    ({**UPSTREAM, "health": {"path": "/a {b}"}}, ".health.path", "'/a {b}' is no path", "Give one such as /healthz."),
    ({**UPSTREAM, "health": {"path": "/", "interval": "0s"}}, ".health.interval", "'0s' is no length of time", "Give a number and s, m, h or d, such as 30s."),
    ({**UPSTREAM, "health": {"path": "/", "timeout": "soon"}}, ".health.timeout", "'soon' is no length of time", "Give a number and s, m, h or d, such as 30s."),
    ({**UPSTREAM, "health": {"path": "/", "status": 99}}, ".health.status", "'99' is no status", "Give one such as 200, or 2xx for all from 200 to 299."),
    ({**UPSTREAM, "health": {"path": "/", "status": "2x"}}, ".health.status", "'2x' is no status", "Give one such as 200, or 2xx for all from 200 to 299."),
    ({**UPSTREAM, "health": {"path": "/", "every": "5s"}}, ".health.every", "is no setting", "There are: interval, path, status, timeout."),
    ({"folder": "/srv/blog", "health": {"path": "/"}}, "", "has health, but no upstream", "Leave it out, or give upstream."),
    ({**UPSTREAM, "tls": {}}, "", "has tls, but upstream is plain HTTP", "Write https:// before the upstream, or leave tls out."),
    ({"redirect": "https://x.example.com", "tls": {}}, "", "has tls, but no upstream", "Leave it out, or give upstream."),
    ({**TLS_UPSTREAM, "tls": {"serverName": "a b"}}, ".tls.serverName", "'a b' is no name of a server", "Give it as its certificate has it."),
    ({**TLS_UPSTREAM, "tls": {"trust": "/nowhere/ca.pem"}}, ".tls.trust", "names /nowhere/ca.pem, which is no file", "Put it there, or name the one that is."),
    ({**TLS_UPSTREAM, "tls": {"trust": "/etc/hostname"}}, ".tls.trust", "names /etc/hostname, which is no PEM file of certificates", "Give one that begins with -----BEGIN CERTIFICATE-----."),
    ({**TLS_UPSTREAM, "tls": {"trust": ""}}, ".tls.trust", "is empty", "Name a folder, or leave it out."),
    ({**UPSTREAM, "requestHeaders": {"X Y": "z"}}, ".requestHeaders.X Y", "'X Y' is no name of a header", "Use letters, digits, '-' and '_', such as X-Frame-Options."),
    ({"folder": "/srv/blog", "requestHeaders": {"X-Y": "z"}}, "", "has requestHeaders, but no upstream", "Leave it out, or give upstream."),
    ({**UPSTREAM, "headers": {">X-Y": "z"}}, ".headers.>X-Y", "'>X-Y' is no name of a header", "Use letters, digits, '-' and '_', such as X-Frame-Options."),
    ({**UPSTREAM, "headers": {"X-Y": "a\nb"}}, ".headers.X-Y", "has a line break or another control character", "Give one line of text."),
    ({**UPSTREAM, "headers": {"X-Y": "}"}}, ".headers.X-Y", "'}' is a brace alone", "Put something beside it."),
    ({**UPSTREAM, "headers": {"X-Y": "{$HOME}"}}, ".headers.X-Y", "has an environment variable of Caddy's container, where none of yours is set", ENVIRONMENT_ADVICE),
    ({**UPSTREAM, "headers": {"X-Y": "a\\"}}, ".headers.X-Y", "'a\\\\' cannot be quoted in a Caddyfile", "Leave out a '\\' at the end, and '`' beside '\\' or '\"'."),
    ({**UPSTREAM, "headers": {"X-Y": '`"'}}, ".headers.X-Y", "'`\"' cannot be quoted in a Caddyfile", "Leave out a '\\' at the end, and '`' beside '\\' or '\"'."),
    ({**UPSTREAM, "headers": {"X-Y": ["a"]}}, ".headers.X-Y", "['a'] is not text", "Give values by names, such as {X-Frame-Options: DENY}; null takes one out."),
    ({**UPSTREAM, "headers": {"X-Y": "a", "x-y": "b"}}, ".headers", "has x-y twice", "Give each header once; small and capital letters are the same."),
    ({**UPSTREAM, "headers": {"X-Y": "{secret.tokken}"}}, ".headers.X-Y", "has {secret.tokken}, and siteSecrets has no tokken", "Run `pulumi config set --secret --path 'derp-relays:siteSecrets.tokken'`."),
    ({**UPSTREAM, "requestHeaders": {"X-Y": "a {secret.} b"}}, ".requestHeaders.X-Y", "has {secret.}, and siteSecrets has no such name", "Run `pulumi config set --secret --path 'derp-relays:siteSecrets.NAME'`."),
    ({"snippet": "respond {secret.other}"}, ".snippet", "has {secret.other}, and siteSecrets has no other", "Run `pulumi config set --secret --path 'derp-relays:siteSecrets.other'`."),
    ({**UPSTREAM, "listing": True}, "", "has listing, but no folder", "Leave it out, or give folder."),
    ({"snippet": "respond hi", "fallback": "/x"}, "", "has fallback, but no folder", "Leave it out, or give folder."),
    ({"folder": "/srv/blog", "fallback": "index.html"}, ".fallback", "'index.html' is no path of a file", "Give one from the site's folder, such as /index.html."),
    ({"folder": "/srv/blog", "fallback": "/../x"}, ".fallback", "'/../x' is no path of a file", "Give one from the site's folder, such as /index.html."),
    ({"folder": "/srv/blog", "fallback": "/x/"}, ".fallback", "'/x/' is no path of a file", "Give one from the site's folder, such as /index.html."),
    ({"folder": "/srv/.sites/blog"}, ".folder", "'/srv/.sites/blog' is where the folders of sites are put", "Name another folder."),
    ({**UPSTREAM, "redirectStatus": 308}, "", "has redirectStatus, but no redirect", "Leave it out, or give redirect."),
    ({"redirect": "https://x.example.com", "redirectStatus": 303}, ".redirectStatus", "303 is not one of 301, 302, 307 or 308", "Use 301, 302, 307 or 308; 301 is the default."),
    ({**UPSTREAM, "basicAuth": {"a b": BCRYPT}}, ".basicAuth.a b", "'a b' is no name of a user", "Use letters, digits, '.', '_', '@', '+' and '-'."),
    ({**UPSTREAM, "basicAuth": {"alice": BCRYPT, "bob": ARGON2ID}}, ".basicAuth", "has hashes of bcrypt and of argon2id", "Make all of one kind: Caddy compares one at a time."),
    ({**UPSTREAM, "basicAuth": {"alice": BCRYPT.replace("$14$", "$04$")}}, ".basicAuth.alice", "is a bcrypt hash of cost 4", "Make one of cost 10 to 19; Caddy's is 14."),
    ({**UPSTREAM, "basicAuth": {"alice": BCRYPT.replace("$14$", "$31$")}}, ".basicAuth.alice", "is a bcrypt hash of cost 31", "Make one of cost 10 to 19; Caddy's is 14."),
    ({**UPSTREAM, "basicAuth": {"alice": ARGON2ID.replace("m=47104", "m=4194304")}}, ".basicAuth.alice", "is an argon2id hash that costs Caddy too much", "Keep to m=131072, t=100 and p=255 at most."),
    ({**UPSTREAM, "compress": "gzip"}, ".compress", "'gzip' is neither true nor false", "Use true or false; a folder is compressed where it is left out."),
    ({"snippet": ""}, ".snippet", "is empty", "Write directives such as respond /ping 200, or leave it out."),
    ({"snippet": "# respond hi\n"}, ".snippet", "is empty", "Write directives such as respond /ping 200, or leave it out."),
    ({"snippet": "respond hi\0"}, ".snippet", "has a character in line 1 that is not to be seen", "Write that line anew."),
    ({"snippet": "respond\u00a0hi"}, ".snippet", "has a character in line 1 that is not to be seen", "Write that line anew."),
    ({"snippet": "respond a\n}\nevil.example.com {\n"}, ".snippet", "has a } in line 2 that would end the site's own block", "Take it out."),
    ({"snippet": "\nhandle {\n\trespond a\n"}, ".snippet", "has a { in line 2 that no } follows", "Write } in a line of its own."),
    ({"snippet": "{\n}\n}\n"}, ".snippet", "has a { at the begin of line 1", "Write it at the end of the line before."),
    ({"snippet": 'respond "}"'}, ".snippet", "has a brace alone in quotation marks in line 1", "Put something beside it: Caddy may take it for where a block begins or ends."),
    ({"snippet": "respond <<END\n  {\n  END"}, ".snippet", "has a brace alone in quotation marks in line 1", "Put something beside it: Caddy may take it for where a block begins or ends."),
    ({"snippet": 'respond a\nrespond "b'}, ".snippet", "has a quotation mark in line 2 that none follows", "Close the quotation."),
    ({"snippet": "respond `b"}, ".snippet", "has a quotation mark in line 1 that none follows", "Close the quotation."),
    ({"snippet": 'respond "b\\"'}, ".snippet", "has a quotation mark in line 1 that none follows", "Close the quotation."),
    ({"snippet": "respond <<END\nhi\n"}, ".snippet", "has a heredoc in line 1 that END does not end", "Write END below it."),
    ({"snippet": "respond <<\nhi\n"}, ".snippet", "has a heredoc in line 1 without a name for its end", "Write one such as <<END, or \\<< where none begins."),
    ({"snippet": "respond <<END 200"}, ".snippet", "has a word in line 1 that begins as a heredoc does", "Write \\<<, or put the word in quotation marks."),
    ({"snippet": "respond hi \\"}, ".snippet", "ends in line 1 with a backslash", "Take it out: no line follows."),
    ({"snippet": "respond hi \\ \nrespond ho"}, ".snippet", "has a backslash in line 1 that escapes nothing", "Take it out, or write the word in quotation marks."),
    ({"snippet": "respond hi # a\\b\nrespond ho"}, ".snippet", "has a backslash in the comment of line 1, which Caddy lets escape the line's end", "Put the comment in a line by itself."),
    ({"snippet": "respond ok\nrespond {$GREETING}"}, ".snippet", "has an environment variable of Caddy's container in line 2, where none of yours is", ENVIRONMENT_ADVICE),
    ({"names": ["Blog.example.com.", "blog.EXAMPLE.com"], **UPSTREAM}, ".names", "blog.example.com is given in sites[0].names already", "Give each name once."),
    ({"names": ["*.example.com"], **UPSTREAM}, ".names", "'*.example.com' is a wildcard", "Give each name by itself; a wildcard certificate needs a DNS challenge."),
    ({"names": ["DERP.example.com."], **UPSTREAM}, ".names", "derp.example.com is given in domain already", "Give each name once."),
]  # fmt: skip


@pytest.mark.parametrize(("site", "key", "what", "mend"), BAD, ids=[str(row[0])[:60] for row in BAD])
def test_a_bad_option_gives_one_precise_message(site: dict[str, Any], key: str, what: str, mend: str) -> None:
    assert refused(site) == [Problem(f"derp-relays:sites[0]{key}", what, mend)]


def test_a_certificate_that_is_not_checked_is_not_to_be_trusted(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(AUTHORITY.pem)
    tls = {"trust": str(tmp_path / "ca.pem"), "verify": False}
    assert refused({**TLS_UPSTREAM, "tls": tls}) == [
        Problem(
            "derp-relays:sites[0].tls",
            "has trust, but verify is false",
            "Leave verify out, so that it is checked.",
        )
    ]


def test_a_fallback_has_to_be_in_the_folder(tmp_path: Path) -> None:
    site = {"folder": str(tmp_path), "fallback": "/app/index.html"}
    (problem,) = refused(site)
    assert problem.what == f"has the fallback /app/index.html, but {tmp_path}/app/index.html is no file"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "index.html").write_text("")
    assert given(site).sites[0].fallback == "/app/index.html"


@pytest.mark.parametrize("value", [PASSWORD, 20250101, None, ["a"], BCRYPT[:-1], BCRYPT + "x", f"{BCRYPT}\n", ARGON2ID.replace("v=19", "v=16"), ARGON2ID.replace("p=1", "p=0"), ARGON2ID[:-1] + "h", ARGON2ID.replace("argon2id", "argon2i")])  # fmt: skip
def test_what_is_no_hash_is_refused_without_being_repeated(value: Any) -> None:
    (problem,) = refused({**UPSTREAM, "basicAuth": {"alice": value}})
    assert problem.key == "derp-relays:sites[0].basicAuth.alice"
    assert problem.what == "is not the hash of a password as Caddy takes it (bcrypt, argon2id)"
    assert problem.mend == HASH_ADVICE


@pytest.mark.parametrize("value", [PASSWORD, 20250101, [PASSWORD]])
def test_what_are_no_users_and_no_secrets_is_not_repeated(value: Any) -> None:
    problems = refused({**UPSTREAM, "basicAuth": value}, siteSecrets=value)
    assert problems == [
        Problem("derp-relays:sites[0].basicAuth", "is not a group of users", HASH_ADVICE),
        Problem(
            "derp-relays:siteSecrets", "is not a group of secrets", f"Give each by its name: {SET_SECRET}"
        ),
    ]


@pytest.mark.parametrize("value", ["", " ", f"{PASSWORD}\n", "a\0", 20250101, None, {"a": PASSWORD}])
def test_a_secret_is_one_line_of_text_and_is_not_repeated(value: Any) -> None:
    assert refused(UPSTREAM, siteSecrets={"token": value}) == [
        Problem(
            "derp-relays:siteSecrets.token",
            "is not one line of text",
            f"Give a text without line breaks: {SET_SECRET}",
        )
    ]


def test_bad_secrets_do_not_make_good_sites_bad() -> None:
    problems = refused({**UPSTREAM, "headers": {"X-Y": "{secret.token}"}}, siteSecrets={"to ken": PASSWORD})
    assert [(problem.key, problem.what) for problem in problems] == [
        ("derp-relays:siteSecrets.to ken", "'to ken' is no name of a secret")
    ]


def test_secrets_show_nowhere() -> None:
    settings = given({**UPSTREAM, "headers": {"X-Y": "{secret.token}"}})
    assert settings.site_secrets["token"].get_secret_value() == PASSWORD
    shown = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]
    assert not any(PASSWORD in text for text in shown)
    places = Places({}, {"token": "/etc/caddy/.secrets/89ab/token"}, None)
    assert PASSWORD not in caddyfile(settings, places)


A_SITE = (
    "  derp-relays:sites:\n    - names: [a.example.com]\n      upstream: a:80\n"
    "      headers: {X-Y: '{secret.token}'}\n"
)


@pytest.mark.parametrize(
    "secrets", ["{token: {secure: v1:abc}, other: {secure: v1:def}}", "{secure: v1:abc}"], ids=["each", "all"]
)
def test_secrets_that_are_sealed_count_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: str
) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    (tmp_path / "Pulumi.x.yaml").write_text(
        "config:\n  derp-relays:domain: derp.example.com\n  derp-relays:region: {id: 900, code: x}\n"
        f"  derp-relays:siteSecrets: {secrets}\n{A_SITE}"
    )
    settings = read_stack_file("x")
    assert settings.sites[0].headers == {"X-Y": "{secret.token}"}
    assert set(settings.site_secrets) == ({"token", "other"} if "token" in secrets else set())


@pytest.mark.parametrize(
    ("secrets", "key", "what", "mend"),
    [
        (f"{{token: {PASSWORD}}}", "siteSecrets.token", "is in clear text", "Take it out, and run `pulumi config set --secret --path 'derp-relays:siteSecrets.token' --stack x`."),
        ("{other: {secure: v1:abc}}", "sites[0].headers.X-Y", "has {secret.token}, and siteSecrets has no token", "Run `pulumi config set --secret --path 'derp-relays:siteSecrets.token'`."),
        ("{}", "sites[0].headers.X-Y", "has {secret.token}, and siteSecrets has no token", "Run `pulumi config set --secret --path 'derp-relays:siteSecrets.token'`."),
    ],
    ids=["clear text", "another", "none"],
)  # fmt: skip
def test_a_stack_file_without_the_secret_or_with_it_in_clear_text_is_refused(  # noqa: PLR0913, PLR0917
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: str, key: str, what: str, mend: str
) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    (tmp_path / "Pulumi.x.yaml").write_text(
        "config:\n  derp-relays:domain: derp.example.com\n  derp-relays:region: {id: 900, code: x}\n"
        f"  derp-relays:siteSecrets: {secrets}\n{A_SITE}"
    )
    with pytest.raises(SettingsError) as caught:
        read_stack_file("x")
    assert caught.value.problems == (Problem(f"derp-relays:{key}", what, mend),)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("site", "lines"),
    [
        ({"upstream": "blog:8080"}, ["reverse_proxy blog:8080"]),
        ({"upstream": "http://blog:8080/"}, ["reverse_proxy blog:8080"]),
        ({"upstream": "https://10.0.0.5:8443"}, ["reverse_proxy https://10.0.0.5:8443"]),
        ({"upstream": "http://[fd00::5]:80"}, ["reverse_proxy [fd00::5]:80"]),
        ({"folder": "/srv/blog"}, ["encode", "root /srv/blog", "file_server"]),
        ({"folder": "docs"}, ["encode", "root /srv/.sites/blog.example.com/0123abcd", "file_server"]),
        ({"folder": "/srv/blog", "listing": True, "compress": False}, ["root /srv/blog", "file_server browse"]),
        ({"folder": "/srv/blog", "fallback": "/index.html"}, ["encode", "root /srv/blog", "try_files {path} /index.html", "file_server"]),
        ({"redirect": "https://www.example.com/"}, ["redir https://www.example.com{uri} permanent"]),
        ({"redirect": "https://www.example.com", "redirectStatus": 301}, ["redir https://www.example.com{uri} permanent"]),
        ({"redirect": "https://www.example.com", "redirectStatus": 308}, ["redir https://www.example.com{uri} 308"]),
        ({"upstream": "blog:8080", "compress": True}, ["encode", "reverse_proxy blog:8080"]),
        ({"snippet": "respond hi"}, ["respond hi"]),
        ({"upstream": "blog:8080", "snippet": "respond /ping 200\n"}, ["reverse_proxy blog:8080", "respond /ping 200"]),
        (
            {"upstream": "blog:8080", "health": {"path": "/healthz"}},
            ["reverse_proxy blog:8080 {", "\thealth_uri /healthz", "\thealth_interval 30s", "\thealth_timeout 5s", "\thealth_status 2xx", "}"],
        ),
        (
            {"upstream": "blog:8080", "health": {"path": "/", "interval": "5s", "timeout": "1s", "status": 204}},
            ["reverse_proxy blog:8080 {", "\thealth_uri /", "\thealth_interval 5s", "\thealth_timeout 1s", "\thealth_status 204", "}"],
        ),
        (
            {"upstream": "blog:8080", "requestHeaders": {"X-Token": "Bearer {secret.token}", "Cookie": None}},
            ["reverse_proxy blog:8080 {", "\theader_up -Cookie", '\theader_up X-Token "Bearer {file./etc/caddy/.secrets/89ab/token}"', "}"],
        ),
        ({"upstream": "https://blog:8443", "tls": {}}, ["reverse_proxy https://blog:8443"]),
        (
            {"upstream": "https://blog:8443", "tls": {"serverName": "blog.internal", "verify": False}},
            ["reverse_proxy https://blog:8443 {", "\ttransport http {", "\t\ttls_server_name blog.internal", "\t\ttls_insecure_skip_verify", "\t}", "}"],
        ),
        (
            {"snippet": "respond hi", "basicAuth": {"alice": BCRYPT, "bob": BCRYPT}},
            ["basic_auth {", f"\talice {BCRYPT}", f"\tbob {BCRYPT}", "}", "respond hi"],
        ),
        (
            {"upstream": "blog:8080", "basicAuth": {"alice": ARGON2ID}},
            ["basic_auth argon2id {", f"\talice {ARGON2ID}", "}", "reverse_proxy blog:8080"],
        ),
        # Caddy's own order would redirect without asking.
        (
            {"redirect": "https://www.example.com", "basicAuth": {"alice": BCRYPT}},
            ["route {", "\tbasic_auth {", f"\t\talice {BCRYPT}", "\t}", "\tredir https://www.example.com{uri} permanent", "}"],
        ),
        (
            {"upstream": "blog:8080", "headers": {"X-Frame-Options": "DENY", "Server": None}},
            ["header -Server", 'header X-Frame-Options "DENY"', 'header >X-Frame-Options "DENY"', "reverse_proxy blog:8080"],
        ),
    ],
)  # fmt: skip
def test_a_site_in_the_caddyfile(site: dict[str, Any], lines: list[str]) -> None:
    assert site_block(**site) == lines


def test_the_order_of_names_in_the_stack_file_changes_nothing() -> None:
    site = {
        "upstream": "a:80",
        "headers": {"X-A": "1", "X-B": "2"},
        "requestHeaders": {"X-C": "3", "X-D": None},
    }
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in site.items()
    }
    assert site_block(**turned) == site_block(**site)


def test_the_names_of_a_site_share_a_block() -> None:
    names = ["blog.example.com", "WWW.blog.example.com."]
    text = rendered(sites=[{"names": names, "redirect": "https://example.com"}])
    assert block(text, "blog.example.com, www.blog.example.com") == [
        "redir https://example.com{uri} permanent"
    ]


def test_what_an_upstream_streams_outlives_a_reload_as_relay_sessions_do() -> None:
    text = rendered(
        caddy={"streamCloseDelay": "12h"}, sites=[{"names": ["blog.example.com"], "upstream": "blog:8080"}]
    )
    assert block(text, "blog.example.com") == ["reverse_proxy blog:8080 {", "\tstream_close_delay 12h", "}"]


def test_the_authorities_of_an_upstream_are_in_the_caddyfile(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(AUTHORITY.pem + AUTHORITY.certificate_and_key()[0])
    lines = site_block(**TLS_UPSTREAM, tls={"trust": str(tmp_path / "ca.pem")})
    pem = re.sub(r"-----[A-Z ]+-----|\n", "", AUTHORITY.pem)
    assert lines[1:3] == ["\ttransport http {", "\t\ttls_trust_pool inline {"]
    assert lines[3] == f"\t\t\ttrust_der {pem}"
    assert lines[4].startswith("\t\t\ttrust_der ")
    assert lines[5:] == ["\t\t}", "\t}", "}"]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("", '""'),
        (1, '"1"'),
        ("a; b # c {host}", '"a; b # c {host}"'),
        ("<<END", '"<<END"'),
        ('{"group":"default"}', '`{"group":"default"}`'),
        ("a\\b", "`a\\b`"),
        ("a`b", '"a`b"'),
        ("{secret.token}{secret.token}", '"{file./etc/caddy/.secrets/89ab/token}{file./etc/caddy/.secrets/89ab/token}"'),
    ],
)  # fmt: skip
def test_a_headers_value_is_one_token(value: Any, quoted: str) -> None:
    assert site_block(upstream="blog:8080", headers={"X-Y": value})[0] == f"header X-Y {quoted}"


@pytest.mark.parametrize(
    ("snippet", "lines"),
    [
        ("\n\nrespond hi\n\n", ["respond hi"]),
        ("  handle /a {\n    respond a\n  }\n\n  # else\n  respond b  \n", ["handle /a {", "\trespond a", "}", "# else", "respond b"]),
        ("respond <<END\n  <h1>{</h1>\n  END", ["respond <<END", "  <h1>{</h1>", "  END"]),
        ('respond "a\n  b" 200\nencode', ['respond "a', '  b" 200', "encode"]),
        ("respond `a  \n}` 200", ["respond `a  ", "}` 200"]),
        ("header X-Y \\\n  z", ["header X-Y \\", " z"]),
        ('respond "a \\" } {"', ['respond "a \\" } {"']),
        ("respond a#b # }", ["respond a#b # }"]),
        ("respond \\<<END", ["respond \\<<END"]),
        ("respond {path}{}", ["respond {path}{}"]),
        ("respond {secret.token}", ["respond {file./etc/caddy/.secrets/89ab/token}"]),
    ],
)  # fmt: skip
def test_a_snippet_is_indented_and_its_texts_stay_as_they_are(snippet: str, lines: list[str]) -> None:
    text = rendered(siteSecrets=SECRETS, sites=[{"names": ["blog.example.com"], "snippet": snippet}])
    found = text.partition("blog.example.com {\n")[2].removesuffix("\n}\n")
    assert [line.removeprefix("\t") for line in found.split("\n")] == lines


def test_the_tokens_of_a_snippet_are_those_of_caddys_lexer() -> None:
    found = [
        (token.text, token.quoted, token.first_line) for token in tokens('a "b\\"\n}" `{`# c\n{x} \\\n}')
    ]
    assert found == [
        ("a", False, 1),
        ('b\\"\n}', True, 1),
        ("{", True, 2),
        ("{x}", False, 3),
        ("}", False, 4),
    ]


def test_a_thousand_sites_are_rendered_in_well_under_a_second() -> None:
    def seconds(count: int) -> float:
        sites = [
            {"names": [f"s{n}.example.com"], "upstream": f"s{n}:80", "headers": {"X-Y": "z"}, "snippet": "handle /a {\n  respond a\n}"}
            for n in range(count)
        ]  # fmt: skip
        settings = settings_from({**MINIMAL, "sites": sites}, "stacks/Pulumi.x.yaml")
        places = Places({}, {}, None)
        begun = time.process_time()
        text = caddyfile(settings, places)
        assert text.count("handle /a {") == count
        return time.process_time() - begun

    assert seconds(1000) < 0.5
    # ten times as many take ten times as long, not a hundred
    assert min(seconds(5000) for _ in range(2)) < 30 * max(min(seconds(500) for _ in range(3)), 0.01)


def test_sites_that_contradict_each_other_are_told_beside_bad_ones() -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(
            {
                **MINIMAL,
                "sites": [
                    {"names": ["a.example.com"], "upstream": "a:80"},
                    {"names": ["a.example.com"], "upstream": "http://b/path"},
                    {"names": ["no"], "redirect": "https://c.example.com"},
                    {"names": ["derp.example.com"], "redirect": "https://d.example.com"},
                    {"names": ["e.example.com"]},
                ],
            },
            "a test",
        )
    assert [problem.key.removeprefix("derp-relays:") for problem in caught.value.problems] == [
        "sites[1].upstream",
        "sites[2].names",
        "sites[4]",
        "sites[1].names",
        "sites[3].names",
    ]
