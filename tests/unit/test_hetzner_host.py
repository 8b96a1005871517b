"""What servers are declared as: inputs as the provider gets them, options as the engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.hetzner_host import first_address, server_name
from images import built_image, pinned_version
from settings import SettingsError
from settings.base import PROJECT_FOLDER
from ssh.keys import new_private_key, public_key
from tests.unit.declared import MINIMAL, Declarations, Declared, declare

HOST_KEY = new_private_key("host")
DEPLOY_KEY = new_private_key("deploy")
HOST: dict[str, Any] = {"kind": "hetzner", "location": "nbg1", "sshFrom": ["203.0.113.4", "2001:db8:4::/48"]}
HETZNER: dict[str, Any] = {
    **MINIMAL,
    "host": HOST,
    "sshHostKey": HOST_KEY,
    "sshDeployKey": DEPLOY_KEY,
}
SITES = [
    {"names": ["blog.example.com", "example.com"], "upstream": "blog:80"},
    {"names": ["elsewhere.example.org"], "upstream": "blog:80"},
]
EVERYWHERE = ["0.0.0.0/0", "::/0"]


@pytest.fixture(autouse=True)
def own_ssh_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the program write what SSH needs into a folder of the test's own."""
    monkeypatch.setattr("ssh.connection.PROJECT_FOLDER", tmp_path)
    return tmp_path


def declared(stack: str = "test", **host: Any) -> Declarations:
    return declare({**HETZNER, "host": {**HOST, **host}}, stack)


def in_zone(sites: list[dict[str, Any]], **values: Any) -> Declarations:
    return declare({**HETZNER, "host": {**HOST, "dnsZone": "example.com"}, "sites": sites, **values})


def server(**host: Any) -> Declared:
    return declared(**host).one("hcloud:index/server:Server", "host")


def urn(resource: Declared) -> str:
    parent = "derp-relays:components:HetznerHost"
    return f"urn:pulumi:test::derp-relays::{parent}${resource.type}::{resource.name}"


def test_the_whole_of_a_server() -> None:
    assert sorted(name for name in declared().names() if "docker:index" not in name) == [
        "derp-relays:components:CaddyConfiguration configuration",
        "derp-relays:components:CaddyProxy caddy",
        "derp-relays:components:Delivery delivery",
        "derp-relays:components:DerperRelay derper",
        "derp-relays:components:HetznerHost host",
        "derp-relays:components:ImageTrial caddy",
        "derp-relays:components:ImageTrial derper",
        "derp-relays:components:RelayNetwork network",
        "hcloud:index/firewall:Firewall host",
        "hcloud:index/primaryIp:PrimaryIp ipv4",
        "hcloud:index/primaryIp:PrimaryIp ipv6",
        "hcloud:index/rdns:Rdns host-ipv4",
        "hcloud:index/rdns:Rdns host-ipv6",
        "hcloud:index/server:Server host",
        "hcloud:index/sshKey:SshKey host",
        "pulumi-python:dynamic/caddy:Configuration configuration",
        "pulumi-python:dynamic/docker:ImageTrial caddy",
        "pulumi-python:dynamic/docker:ImageTrial derper",
        "pulumi:providers:docker host",
        "pulumi:providers:hcloud host",
        "pulumi:providers:pulumi-python delivery",
        "pulumi:pulumi:Stack derp-relays-test",
    ]


def test_the_servers_inputs() -> None:
    inputs = server().inputs
    user_data = inputs.pop("userData")
    assert inputs == {
        "name": "derp-test",
        "serverType": "cx23",
        "location": "nbg1",
        "image": "debian-13",
        "sshKeys": [str(sum(b"host") + len("SshKey"))],
        "firewallIds": [sum(b"host") + len("Firewall")],
        "publicNets": [
            {
                "ipv4Enabled": True,
                "ipv4": sum(b"ipv4") + len("PrimaryIp"),
                "ipv6Enabled": True,
                "ipv6": sum(b"ipv6") + len("PrimaryIp"),
            }
        ],
        "labels": {"derp-relays.stack": "derp-test"},
        "backups": False,
        "deleteProtection": False,
        "rebuildProtection": False,
        "keepDisk": True,
        "shutdownBeforeDeletion": True,
    }
    # a secret, as the engine marks it: it holds the host key
    assert user_data["4dabf18193072939515e22adb298388d"] == "1b47061264138c4ac30d75fd1eb44270"
    config = yaml.safe_load(user_data["value"])
    assert config["ssh_keys"]["ed25519_public"].startswith(public_key(HOST_KEY))
    assert HOST_KEY.strip() == config["ssh_keys"]["ed25519_private"].strip()


def test_edits_do_not_rebuild_the_server() -> None:
    request = server().request
    assert list(request.ignoreChanges) == ["userData", "sshKeys", "image"]
    # its name and addresses are taken until it is gone
    assert request.deleteBeforeReplace
    assert not request.protect


def test_a_protected_server_is_refused_to_pulumi_before_it_is_shut_down() -> None:
    assert server(deleteProtection=True).request.protect


def test_settings_of_the_server() -> None:
    inputs = server(
        serverType="cax11",
        image="ubuntu-24.04",
        backups=True,
        deleteProtection=True,
        placementGroup=7,
        labels={"team": "network"},
    ).inputs
    wanted = {
        "serverType": "cax11",
        "image": "ubuntu-24.04",
        "backups": True,
        "deleteProtection": True,
        "rebuildProtection": True,
        "placementGroupId": 7,
        "labels": {"derp-relays.stack": "derp-test", "team": "network"},
    }
    assert {key: inputs[key] for key in wanted} == wanted


def test_addresses_outlive_the_server() -> None:
    found = declared(deleteProtection=True)
    for version in ("ipv4", "ipv6"):
        address = found.one(":PrimaryIp", version)
        assert address.inputs == {
            "name": f"derp-test-nbg1-{version}",
            "type": version,
            "location": "nbg1",
            "autoDelete": False,
            "deleteProtection": True,
            "labels": {"derp-relays.stack": "derp-test"},
        }
        assert address.request.protect
        # in another location there are two for a while, of two names
        assert not address.request.deleteBeforeReplace
        assert not address.request.deletedWith


def test_the_key_of_the_stack_is_known_to_hetzner() -> None:
    """Without one, Hetzner would set a password and mail it."""
    key = declared(labels={"team": "network"}).one(":SshKey", "host")
    assert key.inputs == {
        "name": "derp-test",
        "publicKey": public_key(DEPLOY_KEY),
        "labels": {"derp-relays.stack": "derp-test", "team": "network"},
    }
    # its name is taken until it is gone
    assert key.request.deleteBeforeReplace


def test_what_replaces_a_container_does_so_on_a_server_too() -> None:
    for container in declared().of(":Container"):
        assert list(container.request.replaceOnChanges) == ["healthcheck", "init", "tmpfs"]
        assert list(container.request.ignoreChanges) == ["ports"]
        assert container.request.deleteBeforeReplace


def test_reverse_dns_leads_back_to_the_relay() -> None:
    found = declared()
    names = {
        r.inputs["ipAddress"]: (r.inputs["dnsPtr"], r.inputs["primaryIpId"]) for r in found.of("rdns:Rdns")
    }
    assert names == {
        "203.0.113.9": ("derp.example.com", sum(b"ipv4") + len("PrimaryIp")),
        "2001:db8:9::1": ("derp.example.com", sum(b"ipv6") + len("PrimaryIp")),
    }
    assert declared(reverseDns=False).of("rdns:Rdns") == []


def test_the_firewall_lets_in_the_relay_and_ssh_from_named_networks() -> None:
    extra = {"protocol": "tcp", "port": "5000-5010", "from": ["198.51.100.0/24"], "description": "mine"}
    firewall = declared(firewallRules=[extra]).one(":Firewall", "host")
    rules = [(rule["protocol"], rule.get("port"), rule["sourceIps"]) for rule in firewall.inputs["rules"]]
    assert rules == [
        ("tcp", "80", EVERYWHERE),
        ("tcp", "443", EVERYWHERE),
        ("udp", "443", EVERYWHERE),
        ("udp", "3478", EVERYWHERE),
        ("icmp", None, EVERYWHERE),
        ("tcp", "22", ["203.0.113.4/32", "2001:db8:4::/48"]),
        ("tcp", "5000-5010", ["198.51.100.0/24"]),
    ]
    assert {rule["direction"] for rule in firewall.inputs["rules"]} == {"in"}


def test_the_firewall_follows_the_ports() -> None:
    values = {
        **HETZNER,
        "caddy": {"httpPort": 80, "httpsPort": 8443},
        "derper": {"stunPort": 13478},
    }
    rules = declare(values).one(":Firewall", "host").inputs["rules"]
    assert [(rule["protocol"], rule.get("port")) for rule in rules][:4] == [
        ("tcp", "80"),
        ("tcp", "8443"),
        ("udp", "8443"),
        ("udp", "13478"),
    ]


def test_the_relays_own_records_are_resources() -> None:
    found = in_zone(SITES)
    records = {
        (r.inputs["name"], r.inputs["type"]): r.inputs["records"][0]["value"] for r in found.of(":ZoneRrset")
    }
    assert records == {("derp", "A"): "203.0.113.9", ("derp", "AAAA"): "2001:db8:9::1"}
    assert {r.inputs["zone"] for r in found.of(":ZoneRrset")} == {"example.com"}
    assert {r.inputs["ttl"] for r in found.of(":ZoneRrset")} == {300}
    assert all(r.request.deleteBeforeReplace for r in found.of(":ZoneRrset"))
    assert declared().of(":ZoneRrset") == []


def test_the_records_of_all_sites_are_one_resource(caplog: pytest.LogCaptureFixture) -> None:
    records = in_zone(SITES).one(":SiteRecords", "sites")
    inputs = dict(records.inputs)
    provider = inputs.pop("__provider")
    assert isinstance(provider, str), "code alone, which needs no encryption"
    assert inputs == {
        "zone": "example.com",
        "names": ["@", "blog"],
        "ipv4": "203.0.113.9",
        "ipv6": "2001:db8:9::1",
        "ttl": 300,
        "labels": {"derp-relays.stack": "derp-test", "derp-relays.records": "sites"},
    }
    assert "pulumi:providers:pulumi-python::sites::" in records.request.provider
    assert records.request.deleteBeforeReplace
    assert not records.request.deletedWith, "records outlive a server, as its addresses do"
    assert "elsewhere.example.org is not in the zone example.com: make its records yourself." in caplog.text
    assert declared().of(":SiteRecords") == []


def test_the_records_of_sites_are_made_with_the_token_of_all_else() -> None:
    given = {"hcloud:token": "t" * 64, "hcloud:endpoint": "http://127.0.0.1:1/v1"}
    found = in_zone(SITES, **given)
    for resource in (found.one(":SiteRecords", "sites"), found.one("providers:hcloud", "host")):
        token = resource.inputs["token"]
        assert token["4dabf18193072939515e22adb298388d"] == "1b47061264138c4ac30d75fd1eb44270", "a secret"
        assert token["value"].strip('"') == "t" * 64
        assert resource.inputs["endpoint"] == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize("number", [0, 1, 1000])
def test_sites_cost_no_resources(number: int) -> None:
    sites = [{"names": [f"site{i}.example.com"], "redirect": "https://example.net/"} for i in range(number)]
    found = in_zone(sites)
    assert len(found.resources) == len(in_zone([]).resources)
    assert len(found.one(":SiteRecords", "sites").inputs["names"]) == number


def test_nothing_leads_to_ipv6_where_nothing_is_published_over_it() -> None:
    found = in_zone(SITES, network={"ipv6": False})
    assert {r.inputs["type"] for r in found.of(":ZoneRrset")} == {"A"}
    assert "ipv6" not in found.one(":SiteRecords", "sites").inputs
    assert found.outputs["ipv6"] is None
    assert "IPv6" not in found.outputs["derpMapRegion"]["Nodes"][0]


def test_every_docker_resource_lives_and_dies_with_the_server() -> None:
    found = declared()
    wanted = urn(found.one(":Server", "host"))
    on_it = [r for r in found.resources if r.type.startswith(("docker:", "pulumi-python:"))]
    assert len(on_it) == 15
    for resource in on_it:
        assert resource.request.deletedWith == wanted, resource.name


@pytest.mark.parametrize(
    ("type_", "argument"),
    [("Container", "name"), ("Volume", "name"), ("Network", "name"), ("RemoteImage", "triggers")],
)
def test_a_server_that_is_replaced_replaces_what_is_on_it(type_: str, argument: str) -> None:
    """Pulumi finds what to replace by the arguments that may change with the server's replacement."""
    found = declared()
    wanted = urn(found.one("hcloud:index/server:Server", "host"))
    on_it = [resource for resource in found.resources if resource.type.endswith(f":{type_}")]
    assert on_it
    for resource in on_it:
        assert wanted in resource.request.propertyDependencies[argument].urns, resource.name


def test_certificates_and_keys_are_protected_on_a_server_too() -> None:
    assert all(volume.request.protect for volume in declared().of(":Volume"))


def test_the_docker_provider_goes_to_the_server_by_ssh(own_ssh_files: Path) -> None:
    provider = declared().one("providers:docker", "host")
    assert provider.inputs["host"] == "ssh://root@203.0.113.9"
    assert provider.inputs["sshOpts"] == '["-F", ".relayctl/ssh/test/config"]'
    folder = own_ssh_files / ".relayctl" / "ssh" / "test"
    assert (folder / "known_hosts").read_text().strip() == f"derp-relays-test {public_key(HOST_KEY)}"
    assert (folder / "deploy_key").read_text().strip() == DEPLOY_KEY.strip()


def test_a_server_that_is_there_is_logged_in_to_with_the_key_it_knows(own_ssh_files: Path) -> None:
    """A key of one's own that is named later is in no user data that the server has read."""
    (own_ssh_files / "key").write_text("never read")
    (own_ssh_files / "key.pub").write_text(public_key(new_private_key("mine")))
    declared(deployKey=str(own_ssh_files / "key"))
    folder = own_ssh_files / ".relayctl" / "ssh" / "test"
    assert (folder / "deploy_key").read_text().strip() == DEPLOY_KEY.strip()
    assert str(own_ssh_files / "key") not in (folder / "config").read_text()


def test_every_resource_of_hetzner_has_the_explicit_provider() -> None:
    for resource in declared().resources:
        if resource.type.startswith("hcloud:"):
            assert "pulumi:providers:hcloud::host::" in resource.request.provider, resource.name


def test_the_outputs_are_the_servers_addresses() -> None:
    outputs = declared().outputs
    assert (outputs["ipv4"], outputs["ipv6"]) == ("203.0.113.9", "2001:db8:9::1")
    node = outputs["derpMapRegion"]["Nodes"][0]
    assert (node["IPv4"], node["IPv6"]) == ("203.0.113.9", "2001:db8:9::1")


def test_a_stack_without_keys_stops_before_any_resource() -> None:
    with pytest.raises(Exception, match=r"2 bad values; nothing was changed") as caught:
        declare({key: value for key, value in HETZNER.items() if not key.startswith("ssh")})
    assert "sshHostKey: is missing. Run `make setup STACK=test`" in str(caught.value)
    assert "sshDeployKey: is missing. Run `make setup STACK=test`" in str(caught.value)
    assert not isinstance(caught.value, SettingsError)


def test_a_server_that_exists_is_used_and_nothing_of_it_is_made(own_ssh_files: Path) -> None:
    host = {
        "kind": "ssh",
        "address": "2001:db8::7",
        "port": 2222,
        "user": "deploy",
        "hostKey": public_key(HOST_KEY),
        "architecture": "arm64",
        "ipv6": "2001:db8::7",
    }
    found = declare({**MINIMAL, "host": host, "sshDeployKey": DEPLOY_KEY})
    assert not [r for r in found.resources if "hcloud" in r.type]
    provider = found.one("providers:docker", "host")
    assert provider.inputs["host"] == "ssh://deploy@[2001:db8::7]:2222"
    assert not any(r.request.deletedWith for r in found.resources)
    image = built_image("derper", "arm64", pinned_version("derper"))
    assert found.one(":RemoteImage", "derper-built").inputs["name"] == image.name
    assert (found.outputs["ipv4"], found.outputs["ipv6"]) == (None, "2001:db8::7")
    assert (own_ssh_files / ".relayctl" / "ssh" / "test" / "deploy_key").exists()


@pytest.mark.parametrize(
    ("stack", "name"),
    [("eu-nuremberg", "derp-eu-nuremberg"), ("Prod_1.x", "derp-prod-1-x"), ("-a-", "derp-a")],
)
def test_names_at_hetzner_are_host_names(stack: str, name: str) -> None:
    assert server_name(stack) == name


def test_the_first_address_of_a_network() -> None:
    assert first_address("2001:db8:9::/64") == "2001:db8:9::1"


def test_every_region_of_the_project_is_declared_whole() -> None:
    for path in (PROJECT_FOLDER / "stacks").glob("Pulumi.*-*.yaml"):
        content = yaml.safe_load(path.read_text())["config"]
        values = {key.removeprefix("derp-relays:"): value for key, value in content.items() if "derp" in key}
        if values["host"]["kind"] == "hetzner" and "sandbox" not in path.name:
            found = declare({**values, "sshHostKey": HOST_KEY, "sshDeployKey": DEPLOY_KEY})
            assert found.one(":Server", "host").inputs["location"] == values["host"]["location"]
