# ruff: noqa: E501 - a table is read by its columns
"""Every bad value gives one message: the key, what is wrong, and how to mend it; all of them at once."""

from __future__ import annotations

import ipaddress
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from settings import Settings, SettingsError, read_pulumi_config, read_stack_file, reader, settings_from
from settings.base import PROJECT_FOLDER
from settings.problems import models_in
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import AUTHORITY

WHERE = "stacks/Pulumi.test.yaml"


def with_value(path: str, value: Any) -> dict[str, Any]:
    """Return the minimal settings with ``value`` at the dotted ``path``."""
    values = deepcopy(dict(MINIMAL))
    *groups, last = path.split(".")
    inner = values
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[last] = value
    return values


def one_site(**site: Any) -> list[dict[str, Any]]:
    return [{"names": ["blog.example.com"], **site}]


# path, bad value, key in the message (None: the path itself), what is wrong, how to mend it
BAD: list[tuple[str, Any, str | None, str, str]] = [
    ("labels", ["eu"], None, "['eu'] is not a group of settings", "Give labels that `relayctl fleet` chooses stacks by, such as {continent: europe}."),
    ("labels", {"a b": "c"}, None, "has the label a b: c, which cannot be chosen by", "Use up to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit."),
    ("labels", {"continent": ["eu"]}, "labels.continent", "['eu'] is not text", "Give labels that `relayctl fleet` chooses stacks by, such as {continent: europe}."),
    ("domain", "", None, "is missing", "Give a host name such as derp.example.com: the relay's own, with DNS records for the host."),
    ("domain", "https://derp.example.com/", None, "'https://derp.example.com/' is a URL", "Give the host name alone: derp.example.com."),
    ("domain", "*.example.com", None, "'*.example.com' is a wildcard", "Give each name by itself; a wildcard certificate needs a DNS challenge."),
    ("domain", "dérp.example.com", None, "'dérp.example.com' has letters that are not ASCII", "Give it as DNS has it: xn--drp-bma.example.com."),
    ("domain", "203.0.113.7", None, "'203.0.113.7' is an address", "Give a host name such as derp.example.com; certificates are for names."),
    ("domain", "derp.example.com:8443", None, "'derp.example.com:8443' has a port", "Give the name alone; ports are caddy.httpPort and caddy.httpsPort."),
    ("domain", "-derp.example.com", None, "'-derp.example.com' is no host name", "Give a host name such as derp.example.com: letters, digits, hyphens and dots."),
    ("domain", "derp", None, "'derp' is a name without a domain", "Give a host name such as derp.example.com, or derp.localhost on this machine."),
    ("domain", "..é", None, "'..é' has letters that are not ASCII", "Give a host name such as derp.example.com."),
    ("domain", "https://[derp", None, "'https://[derp' is a URL", "Give the host name alone: derp.example.com."),
    ("domain", "1.2.3", None, "'1.2.3' is no host name", "Give a host name such as derp.example.com: letters, digits, hyphens and dots."),
    ("domain", "derp.localhost", None, "no public authority signs derp.localhost", "Use a public name, or set certificate.source to internal."),
    ("domian", "derp.example.com", None, "is no setting", "Did you mean domain?"),
    ("region", {}, None, "is missing", "Give id, code and name, such as {id: 900, code: nbg, name: Nuremberg}."),
    ("region", "nbg", None, "'nbg' is not a group of settings", "Give id, code and name, such as {id: 900, code: nbg, name: Nuremberg}."),
    ("region.id", 899, None, "899 is less than 900", "Give a number from 900 to 999, one that none of your stacks has."),
    ("region.id", 1000, None, "1000 is more than 999", "Give a number from 900 to 999, one that none of your stacks has."),
    ("region.id", "first", None, "'first' is not a whole number", "Give a number from 900 to 999, one that none of your stacks has."),
    ("region.code", "EU West", None, "'EU West' is no region code", "Use up to 32 small letters, digits and hyphens, such as nbg or eu-home."),
    ("region.latitude", 123.4, None, "123.4 is more than 90", "Give degrees north, from -90 to 90, or leave it out."),
    ("region.latitude", 49.5, "region", "has a latitude without a longitude, or the other way round", "Give both or neither."),
    ("region.lattitude", 49.5, None, "is no setting", "Did you mean latitude?"),
    ("host.docker", "ssh://root@203.0.113.7", None, "'ssh://root@203.0.113.7' is no socket of this machine", "host.kind local takes unix:///PATH only, such as unix:///var/run/docker.sock; for a server that you have, use host.kind: ssh."),
    ("host.ipv4", "2001:db8::7", None, "'2001:db8::7' is no IPv4 address", "Give it as digits, such as 203.0.113.7, or leave it out."),
    ("host.ipv6", "example.com", None, "'example.com' is no IPv6 address", "Give it as digits, such as 2001:db8::7, or leave it out."),
    ("host.ipv6", "fe80::1%eth0", None, "'fe80::1%eth0' is no address that clients can reach", "Give the host's own, such as 2001:db8::7, or leave it out."),
    ("host.ipv4", "0.0.0.0", None, "'0.0.0.0' is no address that clients can reach", "Give the host's own, such as 203.0.113.7, or leave it out."),
    ("network.name", "host", None, "'host' is one of Docker's own networks, on which containers find no names", "Name a network of your own, such as shared_bridge."),
    ("network.name", "shared bridge", None, "'shared bridge' is no name that Docker takes", "Use letters, digits, '_', '.' and '-', at least two, the first a letter or digit."),
    ("network.ipv6Subnet", "fd00::1/64", None, "'fd00::1/64' is no IPv6 subnet (fd00::1/64 has host bits set)", "Give a /64 such as fd12:3456:789a:1::/64."),
    ("network.ipv6Subnet", "fd00::/8", None, "'fd00::/8' has 8 bits", "Give a /64 such as fd12:3456:789a:1::/64."),
    ("network", {"external": True, "ipv6Subnet": "fd12::/64"}, None, "has an ipv6Subnet, but an external network keeps the one that it has", "Leave ipv6Subnet out, or set external: false."),
    ("network", {"ipv6": False, "ipv6Subnet": "fd12::/64"}, None, "has an ipv6Subnet, but ipv6 is false", "Leave ipv6Subnet out, or set ipv6: true."),
    ("network.external", "perhaps", None, "'perhaps' is neither true nor false", "Use true to join a network that is there already, false to have it made."),
    ("volumes.prefix", "my relay ", None, "'my relay derp_data' is no name that Docker takes", "Use letters, digits, '_', '.' and '-', at least two, the first a letter or digit."),
    ("derper.image", "ghcr.io/kaaanata/derper:latest", None, "'ghcr.io/kaaanata/derper:latest' has no digest, so it can change under you", "Append @sha256:..., which `docker buildx imagetools inspect ghcr.io/kaaanata/derper:latest` shows; or set allowUnpinned: true beside it."),
    ("derper.image", "Not An Image", None, "'Not An Image' is no image reference", "Give NAME:TAG@sha256:DIGEST, or build to have it built from its Go module."),
    ("derper", {"version": "1.102.5", "image": "x/derper@sha256:" + "0" * 64}, "derper.image", "'x/derper@sha256:" + "0" * 64 + "' stands beside a version, which is for images that are built", "Leave version out, or set image: build to have that version built."),
    ("derper.version", "v1.102.5", None, "'v1.102.5' is no version", "Give one such as 1.102.5, without a leading v."),
    ("derper.arguments", "environment", "derper", "has arguments: environment, but the built image starts derper itself", "Use arguments: flags, or name an image that reads DERP_DOMAIN."),
    ("derper.stunPort", 70000, None, "70000 is more than 65535", "Give the UDP port for STUN, such as 3478."),
    ("derper.stunPort", 443, None, "443/udp is taken by HTTP/3 on caddy.httpsPort", "Give two different ports; STUN's own is 3478."),
    ("derper.keyFolder", "var/lib/derper", None, "'var/lib/derper' is not absolute", "Give a path in the container, such as /var/lib/derper."),
    ("derper.keyFolder", "/var/lib/derper:ro", None, "'/var/lib/derper:ro' is no folder in the container", "Use letters, digits, '.', '-', '_' and '/'."),
    ("derper.keyFolder", "/app/../etc", None, "'/app/../etc' is no folder in the container", "Use letters, digits, '.', '-', '_' and '/'."),
    ("derper.memory", 8, None, "8 MiB do not hold the program", "Give at least 64, or 0 for no limit."),
    ("derper.healthcheck", "curl localhost", None, "'curl localhost' is not a list", "Give a command as a list, [] for none, or leave it out for the image's own."),
    ("derper.containerName", "a", None, "'a' is no name that Docker takes", "Use letters, digits, '_', '.' and '-', at least two, the first a letter or digit."),
    ("caddy.containerName", "derper", None, "'derper' is derper's name as well", "Give two different names."),
    ("caddy.httpPort", 0, None, "0 is less than 1", "Give the TCP port for HTTP, such as 80."),
    ("caddy.httpPort", 443, None, "443 is httpsPort as well", "Give two different ports."),
    ("caddy.streamCloseDelay", "a day", None, "'a day' is no length of time", "Give a number and s, m, h or d, such as 24h; 0 for none."),
    ("caddy.streamCloseDelay", "999999d", None, "'999999d' is no length of time", "Give a number and s, m, h or d, such as 24h; 0 for none."),
    ("caddy.configFolder", "", None, "is empty", "Name a folder, or leave it out."),
    ("caddy.configFolder", "/etc/hosts", None, "/etc/hosts is no folder", "Name a folder; one that is not there is made."),
    ("caddy.siteFolder", "/a:/b", None, "'/a:/b' cannot be mounted", "Name a folder without ':' and control characters."),
    ("caddy.siteFolder", "~no-such-user/www", None, "'~no-such-user/www' begins with a user who is not known here", "Give the whole path."),
    ("caddy.logs", "none", None, "'none' is not one of 'rotated' or 'engine'", "Use rotated (100 MB at most), or engine for the Docker Engine's own default."),
    ("caddy", {"httpPort": 8080, "httpsPort": 8443}, "certificate.source", "acme needs port 80 or 443, and caddy has neither", "Set caddy.httpPort: 80 and caddy.httpsPort: 443, or certificate.source to internal or files."),
    ("certificate.source", "letsencrypt", None, "'letsencrypt' is not one of 'acme', 'acme-staging', 'internal' or 'files'", "Use acme for Let's Encrypt, acme-staging to try it, internal for Caddy's own, files for yours."),
    ("certificate.email", "you at example.com", None, "'you at example.com' is no mail address", "Give one such as you@example.com, or leave it out."),
    ("certificate.email", "`you@example.com", None, "'`you@example.com' is no mail address", "Give one such as you@example.com, or leave it out."),
    ("certificate.email", "you@example.com\\", None, "'you@example.com\\\\' is no mail address", "Give one such as you@example.com, or leave it out."),
    ("certificate", {"source": "internal", "email": "you@example.com"}, "certificate.email", "has no use with source internal", "Leave it out, or set certificate.source to acme."),
    ("certificate.source", "files", "certificate", "has source files but no folder", "Set certificate.folder to the folder that has the files."),
    ("certificate", {"source": "files", "folder": "/nowhere"}, None, "names /nowhere/fullchain.pem, which is no file", "Put it there, or name the one that is."),
    ("certificate.folder", "/nowhere", "certificate", "has a folder, but source is acme", "Set source: files, or leave folder out."),
    ("certificate", {"source": "files", "folder": "/nowhere", "certificate": "{env.HOME}.pem"}, None, "has the file name '{env.HOME}.pem'", "Name a file in folder, by letters, digits, '.', '_', '-', '+', '=' and '@' alone."),
    ("certificate", {"source": "files", "folder": "/nowhere", "certificate": "../key.pem"}, None, "has the file name '../key.pem'", "Name a file in folder, by letters, digits, '.', '_', '-', '+', '=' and '@' alone."),
    ("metrics", {}, "metrics.subnet", "is missing", "Give one of your host's own that nothing else uses, such as 172.31.254.0/28."),
    ("metrics", "on", None, "'on' is not a group of settings", "Give a group, such as {subnet: 172.31.254.0/28}, or leave it out."),
    ("metrics.subnet", "172.31.254.1/28", None, "'172.31.254.1/28' is no IPv4 subnet (172.31.254.1/28 has host bits set)", "Give one of your host's own that nothing else uses, such as 172.31.254.0/28."),
    ("metrics.subnet", "fd12::/64", None, "'fd12::/64' is no IPv4 subnet (Expected 4 octets in 'fd12::')", "Give one of your host's own that nothing else uses, such as 172.31.254.0/28."),
    ("metrics.subnet", "203.0.113.0/28", None, "'203.0.113.0/28' is not private (RFC 1918)", "Give one in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, such as 172.31.254.0/28."),
    # derper tells all of Tailscale's addresses, which come in by a tunnel
    ("metrics.subnet", "100.64.0.0/28", None, "'100.64.0.0/28' is not private (RFC 1918)", "Give one in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, such as 172.31.254.0/28."),
    ("metrics.subnet", "172.31.254.0/30", None, "'172.31.254.0/30' has 30 bits", "Give one of 16 to 29 bits, such as 172.31.254.0/28."),
    ("metrics.subnet", "10.0.0.0/8", None, "'10.0.0.0/8' has 8 bits", "Give one of 16 to 29 bits, such as 172.31.254.0/28."),
    ("metrics", {"subnet": "172.31.254.0/28", "network": "a b"}, "metrics.network", "'a b' is no name that Docker takes", "Use letters, digits, '_', '.' and '-', at least two, the first a letter or digit."),
    ("metrics", {"subnet": "172.31.254.0/28", "network": "shared_bridge"}, "metrics.network", "'shared_bridge' is network.name as well", "Leave it out: metrics have a network of their own."),
    ("sites", {"blog.example.com": "blog:80"}, None, "{'blog.example.com': 'blog:80'} is not a list", "Give a list, such as [{names: [blog.example.com], upstream: 'blog:8080'}]."),
    ("sites", [{"names": [], "upstream": "blog:80"}], "sites[0].names", "[] is empty", "Give a list of host names, such as [blog.example.com]."),
    ("sites", one_site(), "sites[0]", "says nothing of what to serve", "Give one of upstream, folder, redirect and snippet."),
    ("sites", one_site(upstream="blog:80", redirect="https://x.example.com"), "sites[0]", "has upstream and redirect", "Give one of them; a snippet may stand beside it."),
    ("sites", one_site(upstream="http://blog/path"), "sites[0].upstream", "'http://blog/path' has a path", "Give the address alone; requests keep their own path."),
    ("sites", one_site(upstream="ftp://blog"), "sites[0].upstream", "'ftp://blog' is neither http nor https", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="blog:http"), "sites[0].upstream", "'blog:http' has a port that is none", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="blog } evil {"), "sites[0].upstream", "'blog } evil {' is no address", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="blog:0"), "sites[0].upstream", "'blog:0' has a port that is none", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="https://blog:80"), "sites[0].upstream", "'https://blog:80' is HTTPS on HTTP's own port", "Leave https:// out, or give another port."),
    ("sites", one_site(upstream="http://user@blog"), "sites[0].upstream", "'http://user@blog' is no address", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="-blog"), "sites[0].upstream", "'-blog' is no address", "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."),
    ("sites", one_site(upstream="localhost:3000"), "sites[0].upstream", "'localhost:3000' is Caddy's own container", "What runs on the host itself is host.docker.internal with the port; a container, its name."),
    ("sites", one_site(upstream="http://127.0.0.1:3000"), "sites[0].upstream", "'http://127.0.0.1:3000' is Caddy's own container", "What runs on the host itself is host.docker.internal with the port; a container, its name."),
    ("sites", one_site(upstream="[::1]:3000"), "sites[0].upstream", "'[::1]:3000' is Caddy's own container", "What runs on the host itself is host.docker.internal with the port; a container, its name."),
    ("sites", one_site(folder="/no/such/folder"), "sites[0].folder", "/no/such/folder is no folder", "Make it, or name the folder with the site's files."),
    ("sites", one_site(folder="/srv/a b"), "sites[0].folder", "'/srv/a b' is no folder under /srv", "Use letters, digits, '.', '-', '_' and '/'."),
    ("sites", one_site(folder="/srv/../data"), "sites[0].folder", "'/srv/../data' is no folder under /srv", "Use letters, digits, '.', '-', '_' and '/'."),
    ("sites", one_site(folder=""), "sites[0].folder", "is empty", "Name a folder, or leave it out."),
    ("sites", one_site(folder="/"), "sites[0].folder", "/ has this project in it, with its stacks", "Name a folder of the site's files alone."),
    ("sites", one_site(folder="."), "sites[0].folder", f"{PROJECT_FOLDER} has this project in it, with its stacks", "Name a folder of the site's files alone."),
    ("sites", one_site(redirect="www.example.com"), "sites[0].redirect", "'www.example.com' is no URL to send visitors to", "Give one such as https://www.example.com."),
    ("sites", one_site(redirect="https://www.example.com:http"), "sites[0].redirect", "'https://www.example.com:http' is no URL to send visitors to", "Give one such as https://www.example.com."),
    ("sites", one_site(redirect="https://www.example.com/\\"), "sites[0].redirect", "'https://www.example.com/\\\\' is no URL to send visitors to", "Give one such as https://www.example.com."),
    ("sites", one_site(redirect="https://www.example.com/{env.HOME}"), "sites[0].redirect", "'https://www.example.com/{env.HOME}' is no URL to send visitors to", "Give one such as https://www.example.com."),
    ("sites", one_site(redirect="https://www.example.com/?from=blog"), "sites[0].redirect", "'https://www.example.com/?from=blog' has more than a path", "Leave '?' and '#' out: the request's path is appended."),
    ("sites", [{"names": ["derp.example.com"], "upstream": "blog:80"}], "sites[0].names", "derp.example.com is given in domain already", "Give each name once."),
    ("sites", [*one_site(upstream="a:80"), *one_site(upstream="b:80")], "sites[1].names", "blog.example.com is given in sites[0].names already", "Give each name once."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "key", "what", "mend"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_value_gives_one_precise_message(
    path: str, value: Any, key: str | None, what: str, mend: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(with_value(path, value), WHERE)
    assert str(caught.value) == (
        f"{WHERE}: 1 bad value; nothing was changed.\n  derp-relays:{key or path}: {what}. {mend}"
    )


def test_there_are_at_least_25_kinds_of_bad_value() -> None:
    assert len({what for _, _, _, what, _ in BAD}) >= 25


def test_all_bad_values_are_told_at_once() -> None:
    values = {
        "domain": "x.localhost",
        "region": {"id": 1, "code": "?"},
        "caddy": {"httpPort": "no", "memory": 1},
        "derper": {"stunPort": -1, "image": "derper:latest"},
        "sites": [{"names": ["a.example.com"]}],
        "network": {"name": "bridge"},
    }
    with pytest.raises(SettingsError) as caught:
        settings_from(values, WHERE)
    assert [problem.key.removeprefix("derp-relays:") for problem in caught.value.problems] == [
        "region.id",
        "region.code",
        "network.name",
        "derper.image",
        "derper.stunPort",
        "caddy.memory",
        "caddy.httpPort",
        "sites[0]",
        "domain",
    ]
    assert "9 bad values; nothing was changed." in str(caught.value)


def test_a_bad_certificate_is_not_taken_for_acme() -> None:
    values = {**MINIMAL, "domain": "derp.localhost", "certificate": {"source": "mine"}}
    with pytest.raises(SettingsError) as caught:
        settings_from(values, WHERE)
    assert [problem.key for problem in caught.value.problems] == ["derp-relays:certificate.source"]


def test_links_of_certbots_live_folder_are_followed(tmp_path: Path) -> None:
    archive, live = tmp_path / "archive", tmp_path / "live"
    archive.mkdir()
    live.mkdir()
    texts = AUTHORITY.certificate_and_key()
    for name, text in zip(("fullchain.pem", "privkey.pem"), texts, strict=True):
        (archive / name).write_text(text)
        (live / name).symlink_to(f"../archive/{name}")
    settings = settings_from({**MINIMAL, "certificate": {"source": "files", "folder": str(live)}}, WHERE)
    assert settings.certificate.folder == str(live)


def _encrypted_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
        .decode()
    )


@pytest.mark.parametrize(
    ("certificate", "key", "what", "mend"),
    [
        ("", None, "names {folder}/fullchain.pem, which is no PEM file of certificates", "Give one that begins with -----BEGIN CERTIFICATE-----."),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None, "names {folder}/fullchain.pem, which is no PEM file of certificates", "Give one that begins with -----BEGIN CERTIFICATE-----."),
        (None, "secret", "names {folder}/privkey.pem, which is no PEM file of a private key", "Give one that begins with -----BEGIN PRIVATE KEY-----."),
        (None, _encrypted_key(), "names {folder}/privkey.pem, whose key is encrypted with a password that Caddy does not have", "Write it without one: openssl pkey -in OLD -out NEW."),
        (None, AUTHORITY.certificate_and_key()[1], "names {folder}/fullchain.pem, whose first certificate is not for {folder}/privkey.pem", "Name the certificate and the key that were made together."),
    ],
    ids=["empty", "no certificate", "no key", "encrypted key", "another's key"],
)  # fmt: skip
def test_certificates_that_caddy_could_not_use_are_refused(
    tmp_path: Path, certificate: str | None, key: str | None, what: str, mend: str
) -> None:
    good_certificate, good_key = AUTHORITY.certificate_and_key()
    (tmp_path / "fullchain.pem").write_text(good_certificate if certificate is None else certificate)
    (tmp_path / "privkey.pem").write_text(good_key if key is None else key)
    with pytest.raises(SettingsError) as caught:
        settings_from({**MINIMAL, "certificate": {"source": "files", "folder": str(tmp_path)}}, WHERE)
    (problem,) = caught.value.problems
    assert problem.key == "derp-relays:certificate"
    assert (problem.what, problem.mend) == (what.format(folder=tmp_path), mend)


def test_an_ipv6_address_on_which_nothing_answers_is_not_told_to_clients() -> None:
    given = {**MINIMAL, "host": {"ipv6": "2001:db8::7"}, "network": {"ipv6": False}}
    with pytest.raises(SettingsError) as caught:
        settings_from(given, WHERE)
    (problem,) = caught.value.problems
    assert problem.key == "derp-relays:host.ipv6"
    assert problem.what == "2001:db8::7 is given, but network.ipv6 is false"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"derper": {"version": "1.96.4"}},
            "derper.version: 1.96.4 tells no metrics by subnet. Give 1.98.0 or later",
        ),
        (
            {"host": {"ipv4": "172.31.254.9"}},
            "metrics.subnet: 172.31.254.0/28 has host.ipv4 in it, 172.31.254.9.",
        ),
    ],
)
def test_metrics_that_nobody_could_read_are_refused(given: dict[str, Any], message: str) -> None:
    metrics = {"subnet": "172.31.254.0/28"}
    with pytest.raises(SettingsError, match=re.escape(message)):
        settings_from({**MINIMAL, **given, "metrics": metrics}, WHERE)
    assert settings_from({**MINIMAL, **given}, WHERE).metrics is None


@pytest.mark.parametrize("subnet", ["172.31.254.0/28", "10.9.8.0/29", "192.168.0.0/16"])
def test_addresses_for_metrics_are_apart_and_caddy_reads_none(subnet: str) -> None:
    metrics = settings_from({**MINIMAL, "metrics": {"subnet": subnet}}, WHERE).metrics
    assert metrics is not None
    joining = ipaddress.ip_network(metrics.joining)
    own = [ipaddress.ip_address(each) for each in (metrics.gateway, metrics.derper, metrics.caddy)]
    assert len(set(own)) == 3
    assert not any(address in joining for address in own)
    readers = [ipaddress.ip_network(each) for each in metrics.readers]
    for address in ipaddress.ip_network(subnet):
        assert any(address in each for each in readers) is (str(address) != metrics.caddy)


def test_a_bad_domain_is_not_taken_for_a_sites_name() -> None:
    values = {**MINIMAL, "domain": "derp", "sites": [{"names": ["derp.example.com"], "upstream": "blog:80"}]}
    with pytest.raises(SettingsError) as caught:
        settings_from(values, WHERE)
    assert [problem.key for problem in caught.value.problems] == ["derp-relays:domain"]


def test_text_that_begins_like_json_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"derp-relays:domain": "[2001:db8::7]", "derp-relays:region": '{"id": 901, "code": "nbg"}'}
    monkeypatch.setattr("pulumi.runtime.config.get_config_env", lambda: given)
    with pytest.raises(SettingsError, match=r"domain: '\[2001:db8::7\]' is an address"):
        read_pulumi_config()


def test_a_delay_of_nothing_is_a_number_in_yaml() -> None:
    settings = settings_from({**MINIMAL, "caddy": {"streamCloseDelay": 0}}, WHERE)
    assert settings.caddy.stream_close_delay == "0"


def test_defaults_are_those_of_a_public_relay() -> None:
    settings = settings_from(MINIMAL, WHERE)
    assert settings.network.name == "shared_bridge"
    assert settings.network.ipv6
    assert (settings.caddy.http_port, settings.caddy.https_port, settings.derper.stun_port) == (80, 443, 3478)
    assert settings.derper.builds
    assert "@sha256:" in settings.caddy.image
    assert settings.certificate.source == "acme"
    assert settings.volumes.protect


def test_good_values_are_taken_as_pulumi_hands_them_over() -> None:
    """Pulumi's config has text where YAML has numbers, in names of any case."""
    settings = settings_from(
        {
            "domain": " DERP.Example.com. ",
            "region": {"id": "901", "code": "nbg", "latitude": "49.4", "longitude": 11},
        },
        WHERE,
    )
    assert settings.domain == "derp.example.com"
    assert settings.region.id == 901
    assert settings.region.latitude == pytest.approx(49.4)
    assert settings.region.title == "nbg"


def test_a_stack_file_is_read_as_pulumi_reads_it() -> None:
    settings = read_stack_file("article")
    assert settings.domain == "derp.example.com"
    assert settings.caddy.config_folder == "./data/conf"


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        (None, "stacks/Pulumi.x.yaml", "is not there"),
        (
            "config: [",
            "stacks/Pulumi.x.yaml, line 1",
            "is no YAML: expected the node content, but found '<stream end>'",
        ),
        ("just text", "config", "is missing"),
        ("", "config", "is missing"),
        ("config:", "config", "has no settings"),
        ("config: [domain]", "config", "has no settings"),
        ("config:\n  domain: derp.example.com", "domain", "has no project before it"),
        ("config:\n  derp-relay:caddy: {}", "derp-relay:caddy", "is for a project derp-relay"),
        (
            "config:\n  derp-relays:domain: a.example.com\n  derp-relays:domain: b.example.com",
            "stacks/Pulumi.x.yaml, line 3",
            "is no YAML: the key derp-relays:domain is given twice",
        ),
        (
            "config:\n  derp-relays:caddy: {httpPort: 80, httpPort: 81}",
            "stacks/Pulumi.x.yaml, line 2",
            "is no YAML: the key httpPort is given twice",
        ),
        ("# caf\udce9", "stacks/Pulumi.x.yaml", "is not UTF-8 (byte 5)"),
    ],
)
def test_a_broken_stack_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, key: str, what: str
) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    if text is not None:
        (tmp_path / "Pulumi.x.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(SettingsError) as caught:
        read_stack_file("x")
    assert (caught.value.problems[0].key, caught.value.problems[0].what) == (key, what)


@pytest.mark.parametrize("stack", ["../x", "a b", "", "x" * 101])
def test_what_pulumi_takes_for_no_stack_is_refused(stack: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_stack_file(stack)
    assert caught.value.problems[0].what == "is no name of a stack"


def test_a_stack_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    (tmp_path / "Pulumi.x.yaml").mkdir()
    with pytest.raises(SettingsError) as caught:
        read_stack_file("x")
    assert caught.value.problems[0].what == "cannot be read: Is a directory"


def test_labels_are_text_however_yaml_has_them() -> None:
    labels = settings_from(with_value("labels", {"canary": True, "tier": 1, "of": "eu"}), WHERE).labels
    assert labels == {"canary": "true", "tier": "1", "of": "eu"}


def test_keys_of_other_programs_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STACK_FOLDER", tmp_path)
    (tmp_path / "Pulumi.x.yaml").write_text(
        "config:\n  docker:host: unix:///x\n  derp-relays:domain: derp.example.com\n"
        "  derp-relays:region: {id: 900, code: x}\n"
    )
    assert read_stack_file("x").domain == "derp.example.com"


def test_every_stack_file_of_the_project_is_good() -> None:
    files = sorted((PROJECT_FOLDER / "stacks").glob("Pulumi.*.yaml"))
    names = {path.stem.removeprefix("Pulumi.") for path in files}
    assert {"staging", "eu-nuremberg", "us-ashburn", "ap-singapore", "existing-server"} <= names
    # those that a machine wrote for itself may have any
    regions = [read_stack_file(name).region for name in names if name != "local" and "sandbox" not in name]
    assert len({region.id for region in regions}) == len({region.code for region in regions}) == len(regions)


def test_every_setting_is_told_in_the_project_file() -> None:
    """`pulumi config` and editors know a setting from Pulumi.yaml: none may be missing there."""
    told = yaml.safe_load((PROJECT_FOLDER / "Pulumi.yaml").read_text())["config"]
    assert set(told) == {str(field.alias) for field in Settings.model_fields.values()}
    for field in Settings.model_fields.values():
        words = set(re.findall(r"\w+", told[field.alias]["description"]))
        for model in models_in(field.annotation):
            for inner in model.model_fields.values():
                assert inner.alias in words, f"{field.alias}.{inner.alias}"
