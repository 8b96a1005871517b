"""What each component declares: inputs as the provider gets them, and options as the engine does."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime import rpc

from images import built_image
from settings.model import unique_local_subnet
from tests.unit.declared import MINIMAL, Declared, declare


def container(name: str, **values: Any) -> Declared:
    return declare({**MINIMAL, **values}).one(":Container", name)


def ports(resource: Declared) -> set[tuple[str, int, str]]:
    return {
        (port["ip"], int(port["external"]), f"{int(port['internal'])}/{port['protocol']}")
        for port in resource.inputs["ports"]
    }


def mounts(resource: Declared) -> dict[str, str]:
    return {
        volume["containerPath"]: volume.get("volumeName") or volume["hostPath"]
        for volume in resource.inputs["volumes"]
    }


def test_the_whole_of_a_stack() -> None:
    assert sorted(declare(MINIMAL).names()) == [
        "derp-relays:components:CaddyConfiguration configuration",
        "derp-relays:components:CaddyProxy caddy",
        "derp-relays:components:Delivery delivery",
        "derp-relays:components:DerperRelay derper",
        "derp-relays:components:ImageTrial caddy",
        "derp-relays:components:ImageTrial derper",
        "derp-relays:components:LocalHost host",
        "derp-relays:components:RelayNetwork network",
        "docker:index/container:Container caddy",
        "docker:index/container:Container derper",
        "docker:index/network:Network network",
        "docker:index/remoteImage:RemoteImage caddy",
        "docker:index/remoteImage:RemoteImage deliver-built",
        "docker:index/remoteImage:RemoteImage derper-built",
        "docker:index/volume:Volume caddy_config",
        "docker:index/volume:Volume caddy_data",
        "docker:index/volume:Volume caddy_etc",
        "docker:index/volume:Volume caddy_srv",
        "docker:index/volume:Volume derp_certs",
        "docker:index/volume:Volume derp_data",
        "pulumi-python:dynamic/caddy:Configuration configuration",
        "pulumi-python:dynamic/docker:ImageTrial caddy",
        "pulumi-python:dynamic/docker:ImageTrial derper",
        "pulumi:providers:docker host",
        "pulumi:providers:pulumi-python delivery",
        "pulumi:pulumi:Stack derp-relays-test",
    ]


def test_every_docker_resource_has_the_hosts_provider_and_a_component_as_parent() -> None:
    for resource in declare(MINIMAL).of(""):
        if resource.type.startswith("docker:"):
            assert "::host::" in resource.request.provider, resource.name
            assert "derp-relays:components:" in resource.request.parent, resource.name


def test_bad_settings_stop_the_program_before_any_resource() -> None:
    with pytest.raises(pulumi.RunError, match=r"stacks/Pulumi.test.yaml: 1 bad value; nothing was changed"):
        declare({**MINIMAL, "domain": "no"})


def test_volumes_are_protected_and_carry_nothing_whose_change_would_replace_them() -> None:
    volumes = declare(MINIMAL).of(":Volume")
    assert len(volumes) == 6
    for volume in volumes:
        assert volume.request.protect, volume.name
        assert volume.inputs == {"name": f"derp-relays-test_{volume.name}"}


def test_protection_and_names_of_volumes_are_settings() -> None:
    for volume in declare({**MINIMAL, "volumes": {"prefix": "x_", "protect": False}}).of(":Volume"):
        assert not volume.request.protect
        assert volume.inputs["name"] == f"x_{volume.name}"


def test_the_network_has_ipv6_and_its_subnet_is_compared_by_the_trigger_alone() -> None:
    network = declare(MINIMAL).one(":Network", "network")
    subnet = unique_local_subnet("derp-relays", "test", "shared_bridge")
    assert network.inputs == {
        "name": "shared_bridge",
        "ipv6": True,
        "ipamConfigs": [{"subnet": subnet}],
        "labels": [{"label": "derp-relays.stack", "value": "test"}],
    }
    assert list(network.request.ignoreChanges) == ["ipamConfigs"]
    assert network.request.replacement_trigger.string_value == subnet
    assert network.request.deleteBeforeReplace


def test_a_network_without_ipv6_publishes_nothing_over_ipv6() -> None:
    declared = declare({**MINIMAL, "network": {"ipv6": False}})
    network = declared.one(":Network", "network")
    assert not network.inputs["ipv6"]
    assert "ipamConfigs" not in network.inputs
    assert network.request.replacement_trigger.string_value == "no IPv6"
    for name in ("derper", "caddy"):
        assert {ip for ip, _, _ in ports(declared.one(":Container", name))} == {"0.0.0.0"}


def test_an_external_network_is_joined_and_not_made() -> None:
    declared = declare({**MINIMAL, "network": {"name": "mine", "external": True}})
    assert declared.of(":Network") == []
    for name in ("derper", "caddy"):
        assert declared.one(":Container", name).inputs["networksAdvanced"] == [{"name": "mine"}]


def test_metrics_have_an_internal_network_with_fixed_addresses() -> None:
    declared = declare({**MINIMAL, "metrics": {"subnet": "172.31.254.0/28"}})
    network = declared.one(":Network", "metrics")
    assert network.inputs == {
        "name": "derp-relays-test_metrics",
        "internal": True,
        "ipamConfigs": [
            {"subnet": "172.31.254.0/28", "gateway": "172.31.254.1", "ipRange": "172.31.254.8/29"}
        ],
        "labels": [{"label": "derp-relays.stack", "value": "test"}],
    }
    for name, address in (("derper", "172.31.254.2"), ("caddy", "172.31.254.3")):
        container = declared.one(":Container", name)
        assert container.inputs["networksAdvanced"] == [
            {"name": "shared_bridge"},
            {"name": "derp-relays-test_metrics", "ipv4Address": address},
        ]
        # nothing more is published
        assert ports(container) == ports(declare(MINIMAL).one(":Container", name))


@pytest.mark.parametrize("arguments", ["flags", "environment"])
def test_derper_tells_its_metrics_to_all_of_their_network_but_caddy(arguments: str) -> None:
    derper = {"image": "x/derper@sha256:" + "0" * 64, "arguments": arguments}
    told = container("derper", derper=derper, metrics={"subnet": "10.0.0.0/29"}).inputs["envs"]
    assert "TS_DEBUG_TRUSTED_CIDRS=10.0.0.0/31,10.0.0.2/32,10.0.0.4/30" in told


def test_without_metrics_nothing_of_a_container_tells_that_there_could_be() -> None:
    """What is in the state of a relay that runs is compared with it: what differs replaces containers."""
    for name in ("derper", "caddy"):
        inputs = container(name).inputs
        assert inputs["networksAdvanced"] == [{"name": "shared_bridge"}]
        assert inputs["envs"] == ["GOMEMLIMIT=460MiB"]


def test_subnets_are_unique_local_and_each_stacks_own() -> None:
    one, other = unique_local_subnet("p", "a", "n"), unique_local_subnet("p", "b", "n")
    assert one != other
    assert one == unique_local_subnet("p", "a", "n")
    assert ipaddress.IPv6Network(one).prefixlen == 64
    assert ipaddress.IPv6Network(one).subnet_of(ipaddress.IPv6Network("fd00::/8"))


@pytest.mark.parametrize("name", ["derper", "caddy"])
def test_both_containers_restart_rotate_logs_end_in_peace_and_have_limits(name: str) -> None:
    inputs = container(name).inputs
    assert inputs["restart"] == "unless-stopped"
    assert (inputs["logDriver"], inputs["logOpts"]) == ("local", {"max-size": "20m", "max-file": "5"})
    assert (inputs["destroyGraceSeconds"], inputs["stopTimeout"]) == (30, 30)
    assert (inputs["memory"], inputs["memorySwap"]) == (512, -1)
    assert "GOMEMLIMIT=460MiB" in inputs["envs"]
    # For Caddy waits who delivers its configuration: without one it may not run.
    assert inputs.get("wait", False) == (name == "derper")
    assert inputs["healthcheck"]["tests"][0] == "CMD"
    assert inputs["labels"] == [{"label": "derp-relays.stack", "value": "test"}]


@pytest.mark.parametrize("name", ["derper", "caddy"])
def test_each_of_these_can_be_left_to_the_engine(name: str) -> None:
    inputs = container(name, **{name: {"memory": 0, "logs": "engine", "healthcheck": []}}).inputs
    assert {"memory", "memorySwap", "logDriver", "logOpts", "healthcheck", "wait"}.isdisjoint(inputs)
    assert not any("GOMEMLIMIT" in env for env in inputs.get("envs", []))


@pytest.mark.parametrize("name", ["derper", "caddy"])
def test_what_the_provider_would_ignore_replaces_and_what_flaps_is_compared_by_the_trigger(name: str) -> None:
    request = container(name).request
    assert list(request.replaceOnChanges) == ["healthcheck", "init", "tmpfs"]
    assert list(request.ignoreChanges) == ["ports"]
    assert request.deleteBeforeReplace
    assert request.replacement_trigger.string_value
    moved = container(name, caddy={"httpPort": 81}, derper={"stunPort": 3479}).request
    assert moved.replacement_trigger.string_value != request.replacement_trigger.string_value


def test_derper_by_flags_speaks_plain_http_and_keeps_its_key() -> None:
    derper = container("derper")
    assert derper.inputs["command"] == [
        "-hostname=derp.example.com",
        "-a=:80",
        "-c=/app/data/derper.key",
        "-certdir=/app/certs",
    ]
    assert mounts(derper) == {
        "/app/certs": "derp-relays-test_derp_certs",
        "/app/data": "derp-relays-test_derp_data",
    }
    assert ports(derper) == {("0.0.0.0", 3478, "3478/udp"), ("::", 3478, "3478/udp")}
    assert derper.inputs["healthcheck"]["tests"][1:] == [
        "/usr/local/bin/healthcheck",
        "http://127.0.0.1/derp/probe",
    ]


def test_derper_by_environment_gets_no_flags_and_its_key_folder_is_kept() -> None:
    derper = container(
        "derper",
        derper={
            "image": "ghcr.io/kaaanata/derper:latest@sha256:" + "a" * 64,
            "arguments": "environment",
            "keyFolder": "/var/lib/derper",
        },
    )
    assert "command" not in derper.inputs
    assert derper.inputs["envs"][:2] == ["DERP_DOMAIN=derp.example.com", "DERP_ADDR=:80"]
    assert mounts(derper)["/var/lib/derper"] == "derp-relays-test_derp_data"
    assert "healthcheck" not in derper.inputs


def test_a_built_image_is_named_by_its_content_and_its_folder_is_not_compared() -> None:
    declared = declare({**MINIMAL, "caddy": {"image": "build"}})
    for program in ("derper", "caddy"):
        image = declared.one(":RemoteImage", f"{program}-built")
        built = [built_image(program, arch) for arch in ("amd64", "arm64")]
        assert image.inputs["name"] in {one.name for one in built}
        assert image.inputs["build"]["context"] in {str(one.context) for one in built}
        assert image.inputs["keepLocally"]
        assert list(image.request.ignoreChanges) == ["build"]
        assert declared.one(":Container", program).inputs["image"] == f"sha256:{program}"


def test_an_image_by_reference_is_pulled_by_its_digest_and_kept() -> None:
    image = declare(MINIMAL).one(":RemoteImage", "caddy")
    assert image.inputs["name"].startswith("caddy:2.11.4@sha256:")
    assert set(image.inputs) == {"name", "keepLocally"}


def test_other_ca_certificates_are_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = built_image("caddy", "amd64").name
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} of another day")
    assert built_image("caddy", "amd64").name != before


def test_a_version_names_another_image() -> None:
    names = {
        declare({**MINIMAL, "derper": {"version": version}})
        .one(":RemoteImage", "derper-built")
        .inputs["name"]
        for version in ("1.102.5", "1.102.4")
    }
    assert len(names) == 2


def test_caddy_has_its_ports_folders_capability_and_a_way_to_the_host() -> None:
    caddy = container("caddy")
    assert ports(caddy) == {
        (ip, port, inside)
        for ip in ("0.0.0.0", "::")
        for port, inside in ((80, "80/tcp"), (443, "443/tcp"), (443, "443/udp"))
    }
    assert mounts(caddy) == {
        "/etc/caddy": "derp-relays-test_caddy_etc",
        "/srv": "derp-relays-test_caddy_srv",
        "/data": "derp-relays-test_caddy_data",
        "/config": "derp-relays-test_caddy_config",
    }
    assert caddy.inputs["capabilities"] == {"adds": ["CAP_NET_ADMIN"]}
    assert caddy.inputs["hosts"] == [{"host": "host.docker.internal", "ip": "host-gateway"}]
    assert "uploads" not in caddy.inputs


def test_the_capability_can_be_withheld() -> None:
    assert "capabilities" not in container("caddy", caddy={"netAdmin": False}).inputs


def sites(count: int) -> list[dict[str, Any]]:
    return [{"names": [f"site{n}.example.com"], "upstream": f"app{n}:8080"} for n in range(count)]


def test_sites_cost_no_resources_and_no_change_of_the_container() -> None:
    one, thousand = declare({**MINIMAL, "sites": sites(1)}), declare({**MINIMAL, "sites": sites(1000)})
    assert sorted(one.names()) == sorted(thousand.names())
    assert one.one(":Container", "caddy").inputs == thousand.one(":Container", "caddy").inputs


def test_folders_of_sites_are_data_and_no_mounts(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>hello</h1>")
    given = {**MINIMAL, "sites": [{"names": ["blog.example.com"], "folder": str(tmp_path)}]}
    assert declare(given).one(":Container", "caddy").inputs == container("caddy").inputs


def test_what_is_served_is_told_by_digests_alone_and_secrets_are_secret(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>hello</h1>")
    hashed = "$2a$14$" + "Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG"[:53]
    given = {
        **MINIMAL,
        "sites": [
            {"names": ["blog.example.com"], "folder": str(tmp_path), "basicAuth": {"alice": hashed}},
            {
                "names": ["api.example.com"],
                "upstream": "api:80",
                "requestHeaders": {"X-Token": "{secret.token}"},
            },
        ],
        "siteSecrets": {"token": "open sesame"},
    }
    configuration = declare(given).one(":Configuration", "configuration")
    inputs = configuration.inputs
    assert set(inputs["sites"]) == {"blog.example.com", "api.example.com"}
    assert inputs["container"] == "caddy-id"
    assert inputs["program"] == "sha256:deliver"
    assert hashed not in str(inputs)
    assert configuration.request.object["secrets"][rpc._special_sig_key] == rpc._special_secret_sig
    assert "open sesame" not in str({key: value for key, value in inputs.items() if key != "secrets"})
    # The default provider would take all of the stack's configuration into the state.
    assert "pulumi:providers:pulumi-python::delivery::" in configuration.request.provider
    (tmp_path / "index.html").write_text("<h1>good bye</h1>")
    changed = declare(given).one(":Configuration", "configuration").inputs
    assert changed["digest"] != inputs["digest"]
    assert changed["sites"]["blog.example.com"] != inputs["sites"]["blog.example.com"]
    assert changed["sites"]["api.example.com"] == inputs["sites"]["api.example.com"]


def test_folders_that_cannot_be_served_stop_the_program_before_any_resource(tmp_path: Path) -> None:
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(
        pulumi.RunError, match=r"sites\[0\].folder: .*passwd links to /etc/passwd, which is outside"
    ):
        declare({**MINIMAL, "sites": [{"names": ["blog.example.com"], "folder": str(tmp_path)}]})


def test_the_outputs_are_what_a_user_needs_next() -> None:
    outputs = declare(
        {
            **MINIMAL,
            "host": {"ipv4": "203.0.113.7", "ipv6": "2001:db8::7"},
            "caddy": {"httpPort": 8080, "httpsPort": 8443},
            "certificate": {"source": "internal"},
        }
    ).outputs
    assert outputs["url"] == "https://derp.example.com:8443"
    assert (outputs["ipv4"], outputs["ipv6"]) == ("203.0.113.7", "2001:db8::7")
    assert outputs["derpMapRegion"]["Nodes"][0]["IPv4"] == "203.0.113.7"
