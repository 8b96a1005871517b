# ruff: noqa: E501 - a table is read by its columns
"""The settings of servers: every bad value gives its message, and what stands together has to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from settings import HetznerHost, SettingsError, SshHost, settings_from
from settings.base import PROJECT_FOLDER
from ssh.keys import new_private_key, public_key
from tests.unit.declared import MINIMAL

WHERE = "stacks/Pulumi.test.yaml"
KEY = public_key(new_private_key("test"))
HETZNER: dict[str, Any] = {"kind": "hetzner", "location": "nbg1", "sshFrom": ["203.0.113.4"]}
SSH: dict[str, Any] = {"kind": "ssh", "address": "203.0.113.7", "hostKey": KEY}
ADVICE_KINDS = "Use one of 'local', 'ssh', 'hetzner'."
NETWORKS = "Give networks or addresses, such as [203.0.113.4/32, 2001:db8::/48]."
CONSENT = "Name your own networks in sshFrom; or, if you mean it, set sshFromAnywhere: true."
RULE: dict[str, Any] = {"protocol": "tcp", "port": 8443, "from": ["203.0.113.0/24"]}

# host, key in the message, what is wrong, how to mend it
BAD: list[tuple[Any, str, str, str]] = [
    (
        "local",
        "host",
        "'local' is not a group of settings",
        "Give the host as a group, such as {kind: local}.",
    ),
    ({"kind": "moon"}, "host.kind", "'moon' is none", ADVICE_KINDS),
    (
        {"kind": "local", "location": "nbg1"},
        "host.location",
        "is no setting",
        "There are: docker, ipv4, ipv6, kind.",
    ),
    (
        {"kind": "hetzner", "sshFrom": ["203.0.113.4"], "serverType": "cx23"},
        "host.location",
        "is missing",
        "Give a location, such as nbg1: fsn1, nbg1, hel1, ash, hil and sin are there.",
    ),
    (
        {"kind": "hetzner", "location": "nbg1"},
        "host.sshFrom",
        "is missing",
        "Give the networks from which you use SSH, such as [203.0.113.4/32]: your own address is what `curl -4 https://icanhazip.com` shows.",
    ),
    (
        {**HETZNER, "sshFrom": []},
        "host.sshFrom",
        "[] is empty",
        "Give the networks from which you use SSH, such as [203.0.113.4/32]: your own address is what `curl -4 https://icanhazip.com` shows.",
    ),
    (
        {**HETZNER, "sshFrom": ["home"]},
        "host.sshFrom",
        "'home' is no network ('home' does not appear to be an IPv4 or IPv6 network)",
        NETWORKS,
    ),
    (
        {**HETZNER, "sshFrom": ["203.0.113.4/24"]},
        "host.sshFrom",
        "'203.0.113.4/24' is no network (203.0.113.4/24 has host bits set)",
        NETWORKS,
    ),
    ({**HETZNER, "sshFrom": ["0.0.0.0/0"]}, "host", "opens SSH to the whole world", CONSENT),
    ({**HETZNER, "sshFrom": ["203.0.113.4", "::/0"]}, "host", "opens SSH to the whole world", CONSENT),
    (
        {**HETZNER, "firewallRules": [{"protocol": "tcp", "port": "20-30", "from": ["0.0.0.0/0"]}]},
        "host",
        "opens SSH to the whole world",
        CONSENT,
    ),
    (
        {**HETZNER, "serverType": "cx23", "location": "nbg1-dc3"},
        "host.location",
        "'nbg1-dc3' is a datacenter",
        "Give the location: nbg1.",
    ),
    (
        {**HETZNER, "serverType": "cx23", "location": "Nuremberg"},
        "host.location",
        "'Nuremberg' is no location",
        "Give one such as nbg1.",
    ),
    (
        {**HETZNER, "location": "xyz1"},
        "host.serverType",
        "is missing",
        "Give a server type, such as cx23, cpx22 or cax11.",
    ),
    (
        {**HETZNER, "serverType": "cx22"},
        "host.serverType",
        "'cx22' is no longer sold",
        "Give its successor: cx23.",
    ),
    (
        {**HETZNER, "serverType": "CX 23"},
        "host.serverType",
        "'CX 23' is no server type",
        "Give one such as cx23, cpx22 or cax11.",
    ),
    (
        {**HETZNER, "image": "fedora-42"},
        "host.image",
        "'fedora-42' is no image that this project sets up",
        "Give a system image of Debian or Ubuntu by name, such as debian-13 or ubuntu-24.04.",
    ),
    (
        {**HETZNER, "datacenter": "nbg1-dc3"},
        "host.datacenter",
        "is no setting",
        "There are: backups, deleteProtection, deployKey, dnsZone, firewallRules, image, kind, labels, location, placementGroup, reverseDns, serverType, sshFrom, sshFromAnywhere.",
    ),
    ({**HETZNER, "sshfrom": []}, "host.sshfrom", "is no setting", "Did you mean sshFrom?"),
    (
        {**HETZNER, "labels": {"team": "no spaces"}},
        "host.labels",
        "has the label team: no spaces, which Hetzner does not take",
        "Use up to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit.",
    ),
    (
        {**HETZNER, "firewallRules": [{**RULE, "port": None}]},
        "host.firewallRules[0]",
        "is for tcp and has no port",
        "Give a port for tcp and udp, and for these alone.",
    ),
    (
        {**HETZNER, "firewallRules": [{**RULE, "protocol": "icmp"}]},
        "host.firewallRules[0]",
        "is for icmp and has a port",
        "Give a port for tcp and udp, and for these alone.",
    ),
    (
        {**HETZNER, "firewallRules": [{**RULE, "port": "5-4"}]},
        "host.firewallRules[0].port",
        "'5-4' is no port",
        "Give a port or a range, such as 8443 or 5000-5010.",
    ),
    (
        {**HETZNER, "firewallRules": [{**RULE, "protocol": "sctp"}]},
        "host.firewallRules[0].protocol",
        "'sctp' is not one of 'tcp', 'udp', 'icmp', 'esp' or 'gre'",
        "Use tcp, udp, icmp, esp or gre.",
    ),
    (
        {**HETZNER, "firewallRules": [{"protocol": "tcp", "port": 1}]},
        "host.firewallRules[0].from",
        "is missing",
        NETWORKS,
    ),
    (
        {**HETZNER, "deployKey": "/nowhere/key"},
        "host.deployKey",
        "/nowhere/key is no file",
        "Name your private key, or leave it out to have one made.",
    ),
    (
        {**HETZNER, "placementGroup": "mine"},
        "host.placementGroup",
        "'mine' is not a whole number",
        "Give the id of a placement group that is there, or leave it out.",
    ),
    (
        {**HETZNER, "dnsZone": "example.org"},
        "host.dnsZone",
        "derp.example.com is not in example.org",
        "Name the zone that has the relay's name, or leave dnsZone out and make the records yourself.",
    ),
    (
        {**SSH, "address": "root@203.0.113.7"},
        "host.address",
        "'root@203.0.113.7' is more than an address",
        "Give the address or name alone; user and port are settings of their own.",
    ),
    ({**SSH, "user": "no spaces"}, "host.user", "'no spaces' is no user's name", "Give one such as root."),
    (
        {**SSH, "architecture": "x86"},
        "host.architecture",
        "'x86' is not one of 'amd64' or 'arm64'",
        "Use amd64, or arm64 for a server with an ARM processor.",
    ),
    ({**SSH, "port": 0}, "host.port", "0 is less than 1", "Give the port of its SSH, such as 22."),
    (
        {"kind": "ssh", "address": "203.0.113.7"},
        "host.hostKey",
        "is missing",
        "Give what /etc/ssh/ssh_host_ed25519_key.pub says on the server itself (the provider's console shows it too), so that nobody else can answer in its place.",
    ),
]


@pytest.mark.parametrize(("host", "key", "what", "mend"), BAD)
def test_a_bad_value_gives_one_precise_message(host: Any, key: str, what: str, mend: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from({**MINIMAL, "host": host}, WHERE)
    problems = [problem for problem in caught.value.problems if problem.key == f"derp-relays:{key}"]
    assert [(problem.what, problem.mend) for problem in problems] == [(what, mend)]
    assert len(caught.value.problems) == 1


def test_what_is_no_host_key_is_said_to_be_none() -> None:
    with pytest.raises(
        SettingsError, match=r"host\.hostKey: is no public key \(.+\)\. Give the line of"
    ) as caught:
        settings_from({**MINIMAL, "host": {**SSH, "hostKey": "ssh-ed25519 AAAA"}}, WHERE)
    assert len(caught.value.problems) == 1


def test_a_private_key_is_never_shown() -> None:
    bad = "-----BEGIN OPENSSH PRIVATE KEY-----\nsomething-secret"
    with pytest.raises(SettingsError, match=r"sshHostKey: is no private key in OpenSSH's format") as caught:
        settings_from({**MINIMAL, "host": HETZNER, "sshHostKey": bad}, WHERE)
    assert "something-secret" not in str(caught.value)
    good = settings_from({**MINIMAL, "host": HETZNER, "sshHostKey": new_private_key("x")}, WHERE)
    assert "PRIVATE" not in repr(good)


def test_the_world_may_knock_at_ssh_by_consent() -> None:
    given = {**HETZNER, "sshFrom": ["0.0.0.0/0", "::/0"], "sshFromAnywhere": True}
    host = settings_from({**MINIMAL, "host": given}, WHERE).host
    assert isinstance(host, HetznerHost)
    assert host.ssh_from == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(("location", "cheapest"), [("nbg1", "cx23"), ("ash", "cpx11"), ("sin", "cpx12")])
def test_the_default_type_is_one_that_the_location_has(location: str, cheapest: str) -> None:
    host = settings_from({**MINIMAL, "host": {**HETZNER, "location": location}}, WHERE).host
    assert isinstance(host, HetznerHost)
    assert (host.server_type, host.architecture) == (cheapest, "amd64")


def test_arm_is_told_by_the_type() -> None:
    host = settings_from({**MINIMAL, "host": {**HETZNER, "serverType": "cax11"}}, WHERE).host
    assert isinstance(host, HetznerHost)
    assert host.architecture == "arm64"


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("derp.example.com", "derp"),
        ("example.com", "@"),
        ("a.b.example.com", "a.b"),
        ("badexample.com", None),
    ],
)
def test_names_in_the_zone(name: str, record: str | None) -> None:
    host = settings_from({**MINIMAL, "host": {**HETZNER, "dnsZone": "example.com"}}, WHERE).host
    assert isinstance(host, HetznerHost)
    assert host.record_name(name) == record


def test_a_server_by_name_or_by_address_in_brackets() -> None:
    for address, taken in (("Relay.example.com.", "relay.example.com"), ("[2001:db8::7]", "2001:db8::7")):
        host = settings_from({**MINIMAL, "host": {**SSH, "address": address}}, WHERE).host
        assert isinstance(host, SshHost)
        assert host.address == taken


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"caddy": {"configFolder": "./conf"}}, "caddy.configFolder"),
        ({"caddy": {"siteFolder": "./srv"}}, "caddy.siteFolder"),
    ],
)
@pytest.mark.parametrize("host", [SSH, HETZNER])
def test_folders_of_this_machine_are_not_on_the_server(
    host: dict[str, Any], values: dict[str, Any], key: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from({**MINIMAL, **values, "host": host}, WHERE)
    (problem,) = caught.value.problems
    assert problem.key == f"derp-relays:{key}"
    assert "is on this machine, and Docker runs on another" in problem.what


def test_a_deploy_key_of_ones_own_needs_its_public_half(tmp_path: Path) -> None:
    private = new_private_key("mine")
    (tmp_path / "key").write_text(private)
    given = {**HETZNER, "deployKey": str(tmp_path / "key")}
    with pytest.raises(SettingsError, match=r"key\.pub is no file\. Write the public key beside"):
        settings_from({**MINIMAL, "host": given}, WHERE)
    (tmp_path / "key.pub").write_text("nothing")
    with pytest.raises(SettingsError, match=r"key\.pub is no public key"):
        settings_from({**MINIMAL, "host": given}, WHERE)
    (tmp_path / "key.pub").write_text(public_key(private))
    host = settings_from({**MINIMAL, "host": given}, WHERE).host
    assert isinstance(host, HetznerHost)
    assert host.deploy_public_keys == [public_key(private)]


def test_the_template_is_a_good_stack_with_a_region_of_its_own() -> None:
    config = yaml.safe_load((PROJECT_FOLDER / "stacks" / "template.yaml").read_text())["config"]
    settings = settings_from(
        {key.removeprefix("derp-relays:"): value for key, value in config.items() if "derp" in key}, WHERE
    )
    assert settings.host.kind == "hetzner"
