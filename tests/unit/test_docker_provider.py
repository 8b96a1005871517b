"""The stand-in for the docker plugin, without a daemon: schema, checks, diffs, state, translation."""

from __future__ import annotations

import base64
import io
import shlex
import tarfile
from copy import deepcopy
from typing import Any

import pytest

from sandbox.docker_provider import container, image, network, volume
from sandbox.docker_provider.behaviour import PROVIDER_REFUSED, behaviours
from sandbox.docker_provider.daemon import resolve_host, ssh_command
from sandbox.docker_provider.durations import format_duration, parse_duration
from sandbox.docker_provider.package import PACKAGE
from sandbox.docker_provider.ports import same_ports
from sandbox.docker_provider.schema import provider_arguments, resource_schemas
from sandbox.provider.behaviour import path_exists
from sandbox.provider.check import check, check_provider, made_up_name
from sandbox.provider.diff import diff
from sandbox.provider.errors import OperationError, RefusedError
from sandbox.provider.schema import Property, ValueType, package_schema
from sandbox.provider.state import created, imported_inputs, planned, refreshed_inputs, updated
from sandbox.provider.values import UNKNOWN, NotAPlainValueError, from_struct, to_struct

NETWORK = "docker:index/network:Network"
VOLUME = "docker:index/volume:Volume"
IMAGE = "docker:index/remoteImage:RemoteImage"
CONTAINER = "docker:index/container:Container"

PORTS: list[dict[str, Any]] = [
    {"internal": 443, "external": 18443, "protocol": "tcp"},
    {"internal": 443, "external": 18443, "protocol": "udp"},
    {"internal": 80, "external": 18080},
]

FULL: dict[str, Any] = {
    "name": "c",
    "image": "app:1",
    "command": ["wait"],
    "capabilities": {"adds": ["CAP_NET_ADMIN"]},
    "hosts": [{"host": "gateway", "ip": "host-gateway"}, {"host": "a", "ip": "10.0.0.1"}],
    "healthcheck": {"tests": ["CMD", "/app", "ok"], "interval": "1s", "startPeriod": "1m0s", "retries": 3},
    "logDriver": "json-file",
    "logOpts": {"max-size": "10m"},
    "memory": 64,
    "memorySwap": 128,
    "restart": "unless-stopped",
    "labels": [{"label": "a", "value": "b"}, {"label": "c", "value": "d"}],
    "envs": ["A=1", "B=2"],
    "ulimits": [{"name": "nofile", "soft": 1024, "hard": 2048}],
    "volumes": [
        {"volumeName": "data", "containerPath": "/data"},
        {"hostPath": "/srv/www", "containerPath": "/srv", "readOnly": True},
    ],
    "uploads": [
        {"file": "/etc/a", "content": "x"},
        {"file": "/etc/b", "contentBase64": "aGVsbG8=", "permissions": "0600"},
    ],
    "ports": PORTS,
    "mounts": [{"type": "tmpfs", "target": "/tm", "tmpfsOptions": {"sizeBytes": 1000000}}],
    "networksAdvanced": [{"name": "n", "aliases": ["x", "y"]}],
    "destroyGraceSeconds": 2,
    "stopTimeout": 5,
    "init": True,
    "tmpfs": {"/run": "size=1m"},
    "securityOpts": ["no-new-privileges:true"],
    "sysctls": {"net.core.somaxconn": "512"},
    "hostname": "h",
    "dns": ["192.0.2.1"],
    "workingDir": "/",
    "user": "0",
}


def checked(
    token: str, arguments: dict[str, Any], kept_name: str = "made-up"
) -> tuple[dict[str, Any], list[str]]:
    inputs, failures = check(
        arguments,
        PACKAGE,
        token,
        resource_name="r",
        make_name=lambda: kept_name,
    )
    return inputs, [failure.reason for failure in failures]


def inputs_of(token: str, arguments: dict[str, Any], kept_name: str = "made-up") -> dict[str, Any]:
    inputs, failures = checked(token, arguments, kept_name)
    assert failures == []
    return inputs


def edited(base: dict[str, Any], **edit: Any) -> dict[str, Any]:
    return {key: value for key, value in {**deepcopy(base), **edit}.items() if value is not None}


# -- schema


def test_the_schema_comes_from_the_sdk() -> None:
    arguments = resource_schemas()[CONTAINER].arguments
    assert arguments["image"] == Property(ValueType("string"), required=True)
    assert arguments["dnsSearches"] == Property(
        ValueType("array", element=ValueType("string")), required=False
    )
    ports = arguments["ports"].type.element
    assert ports is not None
    assert ports.properties["internal"] == Property(ValueType("integer"), required=True)
    assert arguments["logOpts"].type == ValueType("map", element=ValueType("string"))
    assert arguments["capabilities"].type.kind == "object"
    assert set(resource_schemas()[CONTAINER].outputs) - set(arguments) == {
        "bridge",
        "containerLogs",
        "exitCode",
        "networkDatas",
    }
    assert resource_schemas()[IMAGE].arguments["name"].required
    assert "host" in provider_arguments()


def test_an_argument_of_an_unknown_form_is_an_error() -> None:
    from sandbox.provider.schema import _value_type  # noqa: PLC0415

    with pytest.raises(TypeError, match="cannot carry"):
        _value_type(set[str])


@pytest.mark.parametrize("token", [NETWORK, VOLUME, IMAGE, CONTAINER])
def test_the_tables_name_only_what_the_sdk_has(token: str) -> None:
    behaviour, arguments = behaviours()[token], resource_schemas()[token].arguments
    paths = {
        *behaviour.updates_in_place,
        *behaviour.computed,
        *behaviour.kept_when_unset,
        *behaviour.computed_nested,
        *behaviour.sets,
        *behaviour.defaults,
        *behaviour.refused,
        *behaviour.validators,
        *(name for pair in behaviour.conflicts for name in pair),
    }
    assert [path for path in sorted(paths) if not path_exists(path, arguments)] == []


def test_the_provider_table_names_only_what_the_sdk_has() -> None:
    assert set(PROVIDER_REFUSED) < set(provider_arguments())


def test_the_package_schema_lists_what_is_carried() -> None:
    schema = package_schema("docker", "5.2.0", resource_schemas().values())
    assert schema["resources"][CONTAINER]["requiredInputs"] == ["image"]
    assert schema["resources"][NETWORK]["inputProperties"]["ipv6"] == {"type": "boolean"}


# -- check


@pytest.mark.parametrize(
    ("token", "arguments", "reason"),
    [
        (CONTAINER, {"image": None}, "Missing required argument 'image'"),
        (CONTAINER, {"nonsense": 1}, "Invalid or unknown key. Examine values at 'r.nonsense'"),
        (CONTAINER, {"labells": []}, "(did you mean 'labels'?)"),
        (CONTAINER, {"command": "wait"}, "Expected a list, got a string"),
        (
            CONTAINER,
            {"memory": "much"},
            "Expected a whole number, got a string. Examine values at 'r.memory'",
        ),
        (CONTAINER, {"memory": 1.5}, "Expected a whole number, got a number"),
        (CONTAINER, {"memory": True}, "Expected a whole number, got true or false"),
        (CONTAINER, {"init": "yes"}, "Expected true or false, got a string"),
        (CONTAINER, {"hostname": ["a"]}, "Expected a string, got a list"),
        (CONTAINER, {"envs": {"A": "1"}}, "Expected a list, got a map"),
        (CONTAINER, {"envs": ["A=1", None]}, "Expected a string, got null. Examine values at 'r.envs[1]'"),
        (CONTAINER, {"logOpts": {"max-size": ["1"]}}, "Examine values at 'r.logOpts[\"max-size\"]'"),
        (CONTAINER, {"capabilities": [{"adds": []}]}, "Expected an object, got a list"),
        (CONTAINER, {"ports": {"internal": 1}}, "Expected a list, got a map"),
        (CONTAINER, {"ports": [{"external": 1}]}, "Missing required argument 'ports[0].internal'"),
        (CONTAINER, {"ports": [{"internal": 1, "foo": 2}]}, "Examine values at 'r.ports[0].foo'"),
        (CONTAINER, {"ports": [{"internal": "x"}]}, "Examine values at 'r.ports[0].internal'"),
        (CONTAINER, {"restart": "sometimes"}, "'sometimes' doesn't match the pattern"),
        (CONTAINER, {"memory": -1}, "'-1' cannot be lower than 0"),
        (CONTAINER, {"memorySwap": -2}, "'-2' cannot be lower than -1"),
        (CONTAINER, {"healthcheck": {"interval": "1x"}}, "'1x' is not a valid duration"),
        (CONTAINER, {"healthcheck": {"interval": "-1s"}}, "'-1s' duration must not be negative"),
        (CONTAINER, {"volumes": [{"hostPath": "srv"}]}, "'srv' must be an absolute path"),
        (CONTAINER, {"mounts": [{"type": "foo", "target": "/x"}]}, "'foo' doesn't match the pattern"),
        (CONTAINER, {"mounts": [{"target": "/x"}]}, "Missing required argument 'mounts[0].type'"),
        (CONTAINER, {"uploads": [{"file": "/a", "contentBase64": "***"}]}, "is not base64 decodeable"),
        (CONTAINER, {"uploads": [{"file": "/a", "permissions": "99"}]}, "'99' doesn't match the pattern"),
        (CONTAINER, {"command": [""]}, "may not be empty"),
        (CONTAINER, {"gpus": "all"}, "does not carry 'gpus'"),
        (CONTAINER, {"deviceCgroupRules": ["c 1:3 r"]}, "does not carry 'deviceCgroupRules'"),
        (
            CONTAINER,
            {"uploads": [{"file": "/a", "owner": "1"}]},
            "pulumi plugin install resource docker 5.2.0",
        ),
        (CONTAINER, {"networksAdvanced": [{"name": "n", "gwPriority": 1}]}, "'networksAdvanced.gwPriority'"),
        (NETWORK, {"foo": 1}, "Invalid or unknown key"),
        (NETWORK, {"ipv6": "maybe"}, "Expected true or false"),
        (NETWORK, {"ipamConfigs": "10.0.0.0/8"}, "Expected a list"),
        (NETWORK, {"labels": [{"label": "a"}]}, "Missing required argument 'labels[0].value'"),
        (VOLUME, {"cluster": {"scope": "single"}}, "does not carry 'cluster'"),
        (IMAGE, {"name": None}, "Missing required argument 'name'"),
        (IMAGE, {"build": {"useLegacyBuilder": True}}, "Missing required argument 'build.context'"),
        (IMAGE, {"build": {"context": "."}}, "needs useLegacyBuilder to be true"),
        (IMAGE, {"build": {"context": ".", "useLegacyBuilder": False}}, "needs useLegacyBuilder to be true"),
        (
            IMAGE,
            {"build": {"context": ".", "useLegacyBuilder": True, "label": {"a": "b"}}},
            "does not carry 'build.label'",
        ),
        (
            IMAGE,
            {"build": {"context": ".", "useLegacyBuilder": True}, "pullTriggers": ["a"]},
            "'build' cannot go together with 'pullTriggers'",
        ),
    ],
)
def test_wrong_arguments_are_refused(token: str, arguments: dict[str, Any], reason: str) -> None:
    base = {CONTAINER: {"name": "c", "image": "app:1"}, IMAGE: {"name": "app:1"}}.get(token, {"name": "x"})
    _, reasons = checked(token, edited(base, **arguments) | {k: v for k, v in arguments.items() if v is None})
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_all_that_is_wrong_is_told_at_once_and_no_value_with_a_wrong_type() -> None:
    _, reasons = checked(CONTAINER, {"memory": "secret-1", "command": "secret-2", "foo": "secret-3"})
    assert len(reasons) == 4
    assert "secret" not in " ".join(reasons)


def test_what_can_be_converted_without_loss_is() -> None:
    inputs = inputs_of(
        CONTAINER, {"image": "app:1", "memory": "64", "init": "true", "hostname": 5, "envs": [True]}
    )
    assert (inputs["memory"], inputs["init"], inputs["hostname"], inputs["envs"]) == (64, True, "5", ["true"])


def test_defaults_are_filled_in_and_listed() -> None:
    inputs = inputs_of(
        CONTAINER, {"image": "app:1", "ports": [{"internal": 80}], "healthcheck": {"tests": ["NONE"]}}
    )
    assert inputs["__defaults"] == [
        "containerReadRefreshTimeoutMilliseconds",
        "mustRun",
        "name",
        "networkMode",
        "removeVolumes",
        "restart",
        "start",
        "waitTimeout",
    ]
    assert inputs["ports"] == [
        {"internal": 80, "ip": "0.0.0.0", "protocol": "tcp", "__defaults": ["ip", "protocol"]}
    ]
    assert inputs["healthcheck"]["startPeriod"] == "0s"
    assert inputs["name"] == "made-up"


def test_unknown_values_pass_any_type() -> None:
    inputs = inputs_of(
        CONTAINER,
        {
            "image": UNKNOWN,
            "memory": UNKNOWN,
            "envs": ["A=1", UNKNOWN],
            "ports": [{"internal": UNKNOWN}],
            "hosts": UNKNOWN,
        },
    )
    assert inputs["memory"] == inputs["hosts"] == UNKNOWN


def test_made_up_names() -> None:
    assert made_up_name("web", b"1") == made_up_name("web", b"1") != made_up_name("web", b"2")
    assert made_up_name("web", b"1").startswith("web-")
    assert made_up_name("web", b"1", "proposed") == "proposed"
    assert made_up_name("web", b"") != made_up_name("web", b"")


def test_the_provider_takes_a_host_with_options_of_ssh_and_refuses_tls_and_contexts() -> None:
    for right in (
        {"host": UNKNOWN, "version": "5.2.0"},
        {"host": "ssh://root@relay", "sshOpts": ["-F", "config"]},
    ):
        assert check_provider(right, PACKAGE, resource_name="p") == []
    for wrong in (
        {"hosst": "x"},
        {"host": ["x"]},
        {"sshOpts": "-i key"},
        {"certPath": "/tls"},
        {"context": "remote"},
    ):
        assert len(check_provider(wrong, PACKAGE, resource_name="p")) == 1


@pytest.mark.parametrize(
    "host",
    ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://localhost:2375"],
)
def test_local_daemons_are_served(host: str) -> None:
    assert resolve_host(host) == host


@pytest.mark.parametrize(
    "host",
    [
        "tcp://192.0.2.1:2375",
        "tcp://relay:2375",
        "npipe:////./pipe/docker",
        "unix://a",
    ],
)
def test_daemons_elsewhere_are_refused_with_the_remedy(host: str) -> None:
    with pytest.raises(RefusedError, match="pulumi plugin install resource docker"):
        resolve_host(host)


@pytest.mark.parametrize(
    ("host", "options", "command"),
    [
        ("ssh://relay", [], "ssh -o ConnectTimeout=30 -T -- relay"),
        ("ssh://root@192.0.2.1", ["-F", "f"], "ssh -l root -F f -o ConnectTimeout=30 -T -- 192.0.2.1"),
        (
            "ssh://a%20b@[2001:db8::1]:2222",
            ["-oConnectTimeout=5", "-T"],
            "ssh -l 'a b' -p 2222 -oConnectTimeout=5 -T -- 2001:db8::1",
        ),
    ],
)
def test_a_daemon_behind_ssh_is_reached_as_the_real_plugin_does(
    host: str, options: list[str], command: str
) -> None:
    assert resolve_host(host) == host
    assert shlex.join(ssh_command(host, options)) == command


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("ssh://", "hostname is empty"),
        ("ssh://root:pass-word@relay", "plain-text password is not supported"),
        ("ssh://relay?a=b", "query parameters and fragments are not allowed"),
        ("ssh://relay#a", "query parameters and fragments are not allowed"),
        ("ssh://relay:99999", "SSH host connection is not valid: Port out of range"),
        ("ssh://relay/run/docker.sock", "takes no path of a socket"),
    ],
)
def test_wrong_addresses_behind_ssh_are_refused(host: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as refused:
        resolve_host(host)
    assert "pass-word" not in str(refused.value)


def test_the_daemon_without_a_host_is_the_environments_or_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    assert resolve_host(None) == "unix:///run/other.sock"
    monkeypatch.delenv("DOCKER_HOST")
    assert resolve_host("") == "unix:///var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    with pytest.raises(RefusedError):
        resolve_host(None)


# -- diff: the table is what the real plugin answered to the same edits


def container_state() -> dict[str, Any]:
    """Return FULL's state as Docker's answers make it."""
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    found = {
        "entrypoints": ["/app"],
        "hostname": "h",
        "ipcMode": "private",
        "platform": "linux",
        "runtime": "runc",
        "shmSize": 64,
        "stopSignal": "",
        "maxRetryCount": 0,
        "cpuShares": 0,
        "cpuSet": "",
        "domainname": "",
        "privileged": False,
        "publishAllPorts": False,
        "usernsMode": "",
        "networkDatas": [],
        # as Docker lists them: by internal port
        "ports": [
            {"internal": 80, "external": 18080, "ip": "0.0.0.0", "protocol": "tcp"},
            {"internal": 443, "external": 18443, "ip": "0.0.0.0", "protocol": "tcp"},
            {"internal": 443, "external": 18443, "ip": "0.0.0.0", "protocol": "udp"},
        ],
    }
    return created(inputs_of(CONTAINER, FULL), found, schema, behaviour)


HEALTH = FULL["healthcheck"]

CHANGES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    # nothing changes
    ("nothing", {}, {}),
    ("order of variables", {"envs": ["B=2", "A=1"]}, {}),
    ("order of hosts", {"hosts": FULL["hosts"][::-1]}, {}),
    ("order of volumes", {"volumes": FULL["volumes"][::-1]}, {}),
    ("order of uploads", {"uploads": FULL["uploads"][::-1]}, {}),
    ("order of ports", {"ports": PORTS[::-1]}, {}),
    ("command left to the image", {"command": None}, {}),
    ("variables left out", {"envs": None}, {}),
    ("labels left out", {"labels": None}, {}),
    ("health check left to the image", {"healthcheck": None}, {}),
    ("host name left out", {"hostname": None}, {}),
    ("log driver left out", {"logDriver": None}, {}),
    ("init left out", {"init": None}, {}),
    ("stop timeout left out", {"stopTimeout": None}, {}),
    ("security options left out", {"securityOpts": None}, {}),
    ("user left out", {"user": None}, {}),
    ("working folder left out", {"workingDir": None}, {}),
    ("entry point as it is", {"entrypoints": ["/app"]}, {}),
    ("runtime as it is", {"runtime": "runc"}, {}),
    # in place
    ("memory", {"memory": 65}, {"memory": "UPDATE"}),
    ("no memory", {"memory": None}, {"memory": "DELETE"}),
    ("no swap", {"memorySwap": None}, {"memorySwap": "DELETE"}),
    ("restart", {"restart": "always"}, {"restart": "UPDATE"}),
    ("restart left out", {"restart": None}, {"restart": "UPDATE"}),
    ("health check", {"healthcheck": {**HEALTH, "interval": "2s"}}, {"healthcheck.interval": "UPDATE"}),
    (
        "60s for 1m0s",
        {"healthcheck": {**HEALTH, "startPeriod": "60s"}},
        {"healthcheck.startPeriod": "UPDATE"},
    ),
    ("init", {"init": False}, {"init": "UPDATE"}),
    ("tmpfs", {"tmpfs": {"/run": "size=2m"}}, {'tmpfs["/run"]': "UPDATE"}),
    ("no tmpfs", {"tmpfs": None}, {'tmpfs["/run"]': "DELETE"}),
    ("grace", {"destroyGraceSeconds": 3}, {"destroyGraceSeconds": "UPDATE"}),
    ("no grace", {"destroyGraceSeconds": None}, {"destroyGraceSeconds": "DELETE"}),
    ("wait", {"wait": True}, {"wait": "UPDATE"}),
    ("must run", {"mustRun": False}, {"mustRun": "UPDATE"}),
    ("rm", {"rm": True}, {"rm": "UPDATE"}),
    ("cpu shares", {"cpuShares": 100}, {"cpuShares": "UPDATE"}),
    # replaced
    ("image", {"image": "app:2"}, {"image": "UPDATE_REPLACE"}),
    ("command", {"command": ["wait", "x"]}, {"command[1]": "ADD_REPLACE"}),
    ("entry point", {"entrypoints": ["/x"]}, {"entrypoints[0]": "UPDATE_REPLACE"}),
    ("variable", {"envs": ["A=1", "B=3"]}, {"envs[1]": "UPDATE_REPLACE"}),
    ("new variable", {"envs": ["A=1", "B=2", "C=3"]}, {"envs[2]": "ADD_REPLACE"}),
    ("prefix", {"capabilities": {"adds": ["NET_ADMIN"]}}, {"capabilities.adds[0]": "UPDATE_REPLACE"}),
    ("no capabilities", {"capabilities": None}, {"capabilities": "DELETE_REPLACE"}),
    ("no hosts", {"hosts": None}, {"hosts": "DELETE_REPLACE"}),
    ("log option", {"logOpts": {"max-size": "11m"}}, {'logOpts["max-size"]': "UPDATE_REPLACE"}),
    ("no log options", {"logOpts": None}, {'logOpts["max-size"]': "DELETE_REPLACE"}),
    (
        "label",
        {"labels": [{"label": "a", "value": "z"}, FULL["labels"][1]]},
        {"labels[0].value": "UPDATE_REPLACE"},
    ),
    ("fewer labels", {"labels": [FULL["labels"][1]]}, {"labels[0]": "DELETE_REPLACE"}),
    ("no ulimits", {"ulimits": None}, {"ulimits": "DELETE_REPLACE"}),
    ("fewer volumes", {"volumes": [FULL["volumes"][1]]}, {"volumes[0]": "DELETE_REPLACE"}),
    ("no uploads", {"uploads": None}, {"uploads": "DELETE_REPLACE"}),
    ("no ports", {"ports": None}, {"ports": "DELETE_REPLACE"}),
    ("no networks", {"networksAdvanced": None}, {"networksAdvanced": "DELETE_REPLACE"}),
    ("no dns", {"dns": None}, {"dns": "DELETE_REPLACE"}),
    ("stop timeout", {"stopTimeout": 6}, {"stopTimeout": "UPDATE_REPLACE"}),
    ("sysctl", {"sysctls": {"net.core.somaxconn": "1"}}, {'sysctls["net.core.somaxconn"]': "UPDATE_REPLACE"}),
    ("host name", {"hostname": "h2"}, {"hostname": "UPDATE_REPLACE"}),
    ("user", {"user": "1"}, {"user": "UPDATE_REPLACE"}),
    ("privileged", {"privileged": True}, {"privileged": "UPDATE_REPLACE"}),
    ("read only", {"readOnly": True}, {"readOnly": "UPDATE_REPLACE"}),
    ("network mode", {"networkMode": "host"}, {"networkMode": "UPDATE_REPLACE"}),
    ("name", {"name": "c2"}, {"name": "UPDATE_REPLACE"}),
    ("pid mode", {"pidMode": "host"}, {"pidMode": "ADD_REPLACE"}),
    ("unknown image", {"image": UNKNOWN}, {"image": "UPDATE_REPLACE"}),
]


def told(
    token: str, state: dict[str, Any], inputs: dict[str, Any], ignored: tuple[str, ...] = ()
) -> dict[str, str]:
    found = diff(state, inputs, resource_schemas()[token], behaviours()[token], ignored)
    return {
        path: change.value + ("_REPLACE" if path in found.replacing else "")
        for path, change in found.changes.items()
    }


@pytest.mark.parametrize(("edit", "changes"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_changes_of_containers(edit: dict[str, Any], changes: dict[str, str]) -> None:
    inputs = inputs_of(CONTAINER, edited(FULL, **edit), kept_name="c")
    assert told(CONTAINER, container_state(), inputs) == changes
    found = diff(container_state(), inputs, resource_schemas()[CONTAINER], behaviours()[CONTAINER])
    assert found.delete_before_replace == any(change.endswith("REPLACE") for change in changes.values())


@pytest.mark.parametrize(
    "edit",
    [
        [{**PORTS[0], "external": 18444}, *PORTS[1:]],
        [{**PORTS[0], "ip": "127.0.0.1"}, *PORTS[1:]],
        PORTS[:2],
        [*PORTS, {"internal": 81}],
    ],
    ids=["moved", "bound", "fewer", "more"],
)
def test_changed_ports_replace(edit: list[dict[str, Any]]) -> None:
    found = diff(
        container_state(),
        inputs_of(CONTAINER, edited(FULL, ports=edit)),
        resource_schemas()[CONTAINER],
        behaviours()[CONTAINER],
    )
    assert found.replaced_properties == ["ports"]


def test_a_container_goes_first_even_if_its_name_is_made_up() -> None:
    inputs = inputs_of(CONTAINER, edited(FULL, name=None, image="app:2"), kept_name="c")
    assert "name" in inputs["__defaults"]
    found = diff(container_state(), inputs, resource_schemas()[CONTAINER], behaviours()[CONTAINER])
    assert found.replaced_properties == ["image"]
    assert found.delete_before_replace


def test_a_port_that_docker_chose_is_no_change() -> None:
    state = container_state() | {
        "ports": [{"internal": 80, "external": 32768, "ip": "0.0.0.0", "protocol": "tcp"}]
    }
    assert told(CONTAINER, state, inputs_of(CONTAINER, edited(FULL, ports=[{"internal": 80}]))) == {}


def test_ports_of_two_protocols_are_told_apart() -> None:
    tcp, udp = (
        {"internal": 1, "protocol": "tcp", "external": 1},
        {"internal": 1, "protocol": "udp", "external": 1},
    )
    assert same_ports([tcp, udp], [udp, tcp])
    assert not same_ports([tcp], [udp])
    assert not same_ports([tcp, udp], [tcp])


def test_ignored_changes_are_left_out() -> None:
    inputs = inputs_of(CONTAINER, edited(FULL, hostname="h2", logOpts={"max-size": "1m"}, memory=1))
    assert told(CONTAINER, container_state(), inputs, ("hostname", 'logOpts["max-size"]')) == {
        "memory": "UPDATE"
    }
    assert told(CONTAINER, container_state(), inputs, ("*",)) == {}


def test_a_container_that_was_made_only_partly_is_replaced() -> None:
    """Unless the program gives both command and entry point: then the real plugin does not notice either."""
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    for given, replaced in (
        ({}, ["command", "entrypoints"]),
        ({"command": ["a"]}, ["entrypoints"]),
        ({"command": ["a"], "entrypoints": ["b"]}, []),
    ):
        inputs = inputs_of(CONTAINER, {"image": "app:1", **given})
        found = diff(planned(inputs, schema, behaviour), inputs, schema, behaviour)
        assert found.replaced_properties == replaced
        assert "networkDatas" in found.changes


def network_inspection(**edit: Any) -> dict[str, Any]:
    return {
        "Id": "1234",
        "Name": "n",
        "Driver": "bridge",
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "EnableIPv6": True,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [{"Subnet": "fd00::/64"}, {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}],
        },
        "Options": {},
        "Scope": "local",
        "Labels": {"a": "b"},
        **edit,
    }


def test_an_ipv6_subnet_alone_shows_a_change_only_after_a_refresh() -> None:
    schema, behaviour = resource_schemas()[NETWORK], behaviours()[NETWORK]
    inputs = inputs_of(
        NETWORK, {"name": "n", "ipv6": True, "ipamConfigs": [{"subnet": "fd00::/64"}], "labels": []}
    )
    found = network.observed(network_inspection(Labels={}))
    fresh = created(inputs, found, schema, behaviour)
    assert told(NETWORK, fresh, inputs) == {}
    refreshed = {**fresh, **found}
    assert told(NETWORK, refreshed, inputs) == {"ipamConfigs[1]": "DELETE_REPLACE"}
    assert told(NETWORK, refreshed, inputs, ("ipamConfigs",)) == {}
    assert refreshed_inputs(inputs, refreshed, schema, behaviour)["ipamConfigs"] == [
        {"subnet": "fd00::/64", "__defaults": []}
    ]


def test_every_change_of_a_network_replaces_it_and_a_given_name_goes_first() -> None:
    schema, behaviour = resource_schemas()[NETWORK], behaviours()[NETWORK]
    inputs = inputs_of(NETWORK, {"name": "n", "ipv6": True, "labels": [{"label": "a", "value": "b"}]})
    state = created(inputs, network.observed(network_inspection()), schema, behaviour)
    edits: list[tuple[dict[str, Any], str]] = [
        ({"internal": True}, "internal"),
        ({"labels": []}, "labels"),
        ({"ipv6": False}, "ipv6"),
        ({"driver": "macvlan"}, "driver"),
        ({"options": {"com.docker.network.bridge.name": "br1"}}, "options"),
    ]
    for edit, name in edits:
        found = diff(state, inputs_of(NETWORK, {**inputs, **edit}), schema, behaviour)
        assert found.replaced_properties == [name]
        assert found.delete_before_replace
    unnamed = inputs_of(NETWORK, {"internal": True}, kept_name="n")
    assert not diff(state, unnamed, schema, behaviour).delete_before_replace


def test_changes_of_images() -> None:
    schema, behaviour = resource_schemas()[IMAGE], behaviours()[IMAGE]
    build = {"context": "/src", "useLegacyBuilder": True, "buildArgs": {"A": "1"}}
    inputs = inputs_of(IMAGE, {"name": "app:1", "build": build})
    state = created(inputs, image.observed("app:1", {"Id": "sha256:1", "RepoDigests": []}), schema, behaviour)
    assert state["id"] == "sha256:1app:1"
    assert told(IMAGE, state, inputs) == {}
    changed = inputs_of(IMAGE, {"name": "app:1", "build": {**build, "buildArgs": {"A": "2"}}})
    assert told(IMAGE, state, changed) == {"build.buildArgs.A": "UPDATE_REPLACE"}
    kept = inputs_of(IMAGE, {"name": "app:1", "build": build, "keepLocally": True})
    assert told(IMAGE, state, kept) == {"keepLocally": "ADD"}


# -- state


def test_a_capability_without_prefix_shows_a_change_only_after_a_refresh() -> None:
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    inputs = inputs_of(CONTAINER, {"image": "app:1", "capabilities": {"adds": ["NET_ADMIN"]}})
    found = {
        "capabilities": {"adds": ["CAP_NET_ADMIN"], "drops": []},
        "command": [],
        "entrypoints": [],
        "networkDatas": [],
    }
    fresh = created(inputs, found, schema, behaviour)
    assert told(CONTAINER, fresh, inputs) == {}
    assert told(CONTAINER, {**fresh, **found}, inputs) == {"capabilities.adds[0]": "UPDATE_REPLACE"}


def test_inputs_keep_their_order_and_take_docker_values_in_a_refresh() -> None:
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    inputs = inputs_of(CONTAINER, FULL)
    state = container_state() | {"hosts": FULL["hosts"][::-1], "memory": 32, "restart": "always"}
    refreshed = refreshed_inputs(inputs, state, schema, behaviour)
    assert [each["host"] for each in refreshed["hosts"]] == ["gateway", "a"]
    assert (refreshed["memory"], refreshed["restart"]) == (32, "always")
    assert "runtime" not in refreshed
    stopped = refreshed_inputs(inputs, state | {"mustRun": False}, schema, behaviour)
    assert stopped["mustRun"] is False
    assert "mustRun" not in stopped["__defaults"]


def test_an_import_finds_what_is_neither_zero_nor_default() -> None:
    state = {**network.observed(network_inspection()), "ipamDriver": "default"}
    assert imported_inputs(state, resource_schemas()[NETWORK], behaviours()[NETWORK]) == {
        "__defaults": [],
        "driver": "bridge",
        "ipamConfigs": [
            {"__defaults": [], "subnet": "fd00::/64"},
            {"__defaults": [], "subnet": "172.18.0.0/16", "gateway": "172.18.0.1"},
        ],
        "ipv6": True,
        "labels": [{"__defaults": [], "label": "a", "value": "b"}],
        "name": "n",
    }


def test_a_preview_does_not_know_what_docker_fills_in() -> None:
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    state = planned(
        inputs_of(CONTAINER, {"image": "a", "ports": [{"internal": 1}]}), schema, behaviour, computed=UNKNOWN
    )
    assert state["hostname"] == state["networkDatas"] == state["ports"][0]["external"] == UNKNOWN
    assert state["user"] is None


def test_an_update_keeps_what_was_read_and_what_is_ignored() -> None:
    schema, behaviour = resource_schemas()[CONTAINER], behaviours()[CONTAINER]
    old = container_state()
    state = updated(
        old, inputs_of(CONTAINER, edited(FULL, memory=65, hostname="h2")), schema, behaviour, ["hostname"]
    )
    assert (state["memory"], state["ipcMode"], state["hostname"]) == (65, "private", "h")


def test_values_lose_secrets_and_keep_whole_numbers() -> None:
    secret = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "value": "s"}
    assert from_struct(to_struct({"a": 1, "b": secret, "c": [1.5, None], "d": {"e": True}})) == {
        "a": 1,
        "b": "s",
        "c": [1.5, None],
        "d": {"e": True},
    }
    asset = {"4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17", "text": "x"}
    with pytest.raises(NotAPlainValueError):
        from_struct(to_struct({"a": asset}))


# -- translation

NOT_IN_THE_PAYLOAD = {
    "name": "given beside it",
    "platform": "given beside it",
    "networksAdvanced": "connected afterwards",
    "uploads": "put in afterwards",
    "attach": "life",
    "containerReadRefreshTimeoutMilliseconds": "has no effect upstream either",
    "destroyGraceSeconds": "life",
    "logs": "life",
    "mustRun": "life",
    "removeVolumes": "life",
    "start": "life",
    "wait": "life",
    "waitTimeout": "life",
}

SAMPLES: dict[str, Any] = {
    "capabilities": {"adds": ["CAP_NET_ADMIN"]},
    "cpuSet": "0",
    "cpus": "0.5",
    "devices": [{"hostPath": "/dev/null"}],
    "healthcheck": {"tests": ["NONE"]},
    "hosts": [{"host": "a", "ip": "10.0.0.1"}],
    "image": "app:2",
    "labels": [{"label": "a", "value": "b"}],
    "maxRetryCount": 3,
    "mounts": [{"type": "tmpfs", "target": "/t"}],
    "ports": [{"internal": 80}],
    "restart": "always",
    "ulimits": [{"name": "nofile", "soft": 1, "hard": 2}],
    "volumes": [{"containerPath": "/x"}],
}


def test_no_argument_is_left_out_of_the_payload() -> None:
    """Whatever Check lets pass must change what is sent to Docker, or be accounted for here."""
    arguments, refused = resource_schemas()[CONTAINER].arguments, behaviours()[CONTAINER].refused
    base = container.config({"image": "app:1"})
    plain = {"string": "x", "integer": 7, "boolean": True, "array": ["x"], "map": {"x": "y"}}
    silent = [
        name
        for name, argument in arguments.items()
        if name not in refused
        and container.config({"image": "app:1", name: SAMPLES.get(name, plain.get(argument.type.kind))})
        == base
    ]
    assert sorted(silent) == sorted(NOT_IN_THE_PAYLOAD)


def test_a_container_as_docker_takes_it() -> None:
    body = container.config(inputs_of(CONTAINER, FULL))
    host = body["HostConfig"]
    assert body["Image"] == "app:1"
    assert body["Env"] == ["A=1", "B=2"]
    assert body["StopTimeout"] == 5
    assert body["Healthcheck"] == {
        "Test": ["CMD", "/app", "ok"],
        "Interval": 10**9,
        "Timeout": 0,
        "StartPeriod": 60 * 10**9,
        "StartInterval": 0,
        "Retries": 3,
    }
    assert body["ExposedPorts"] == {"443/tcp": {}, "443/udp": {}, "80/tcp": {}}
    assert host["PortBindings"]["443/udp"] == [{"HostPort": "18443", "HostIp": "0.0.0.0"}]
    assert host["ExtraHosts"] == ["gateway:host-gateway", "a:10.0.0.1"]
    assert host["Binds"] == ["data:/data:rw", "/srv/www:/srv:ro"]
    assert (host["Memory"], host["MemorySwap"]) == (64 * 2**20, 128 * 2**20)
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m"}}
    assert host["RestartPolicy"] == {"Name": "unless-stopped", "MaximumRetryCount": 0}
    assert host["CapAdd"] == ["CAP_NET_ADMIN"]
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 1024, "Hard": 2048}]
    assert host["Tmpfs"] == {"/run": "size=1m"}
    assert host["Init"] is True


def test_unlimited_swap_stays_unlimited_and_unconfined_paths_are_resolved() -> None:
    host = container.config(
        {"image": "a", "memorySwap": -1, "securityOpts": ["systempaths=unconfined", "apparmor=unconfined"]}
    )["HostConfig"]
    assert host["MemorySwap"] == -1
    assert host["SecurityOpt"] == ["apparmor=unconfined"]
    assert host["MaskedPaths"] == host["ReadonlyPaths"] == []


def test_capabilities_are_written_as_the_real_plugins_client_does() -> None:
    capabilities = {"adds": ["net_admin", "CAP_NET_ADMIN", "CAP_CHOWN"], "drops": ["all"]}
    host = container.config({"image": "a", "capabilities": capabilities})["HostConfig"]
    assert (host["CapAdd"], host["CapDrop"]) == (["CAP_CHOWN", "CAP_NET_ADMIN"], ["ALL"])


def test_arguments_that_do_not_go_together_fail_before_anything_is_made() -> None:
    for wrong in (
        {"volumes": [{"volumeName": "v"}]},
        {"volumes": [{"fromContainer": "c", "containerPath": "/x"}]},
        {"cpus": "many"},
    ):
        with pytest.raises(OperationError):
            container.config({"image": "a", **wrong})


def test_uploads_are_packed_with_their_modes(tmp_path: Any) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\0from a file")
    uploads: list[tuple[dict[str, Any], bytes, int]] = [
        ({"content": "caf\u00e9"}, "caf\u00e9".encode(), 0o644),
        ({"contentBase64": base64.b64encode(b"\xff").decode(), "executable": True}, b"\xff", 0o744),
        ({"source": str(source), "permissions": "0600"}, b"\0from a file", 0o600),
    ]
    for upload, content, mode in uploads:
        packed = container.upload_archive({"file": "/etc/app/x", **upload}, 1.0)
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            (member,) = tar.getmembers()
            unpacked = tar.extractfile(member)
            assert unpacked is not None
            assert (unpacked.read(), member.mode, member.name.lstrip("/")) == (content, mode, "etc/app/x")


@pytest.mark.parametrize("upload", [{}, {"content": "a", "source": "/b"}, {"source": "/nonexistent/file"}])
def test_an_upload_needs_one_content_that_can_be_read(upload: dict[str, str]) -> None:
    with pytest.raises(OperationError):
        container.upload_archive({"file": "/a", **upload}, 1.0)


def test_networks_as_docker_takes_them() -> None:
    arguments = network.create_arguments(
        inputs_of(NETWORK, {"name": "n", "ipv6": True, "ipamConfigs": [{"subnet": "fd00::/64"}]})
    )
    assert arguments["enable_ipv6"] is True
    assert arguments["ipam"] == {
        "Driver": "default",
        "Config": [{"Subnet": "fd00::/64", "IPRange": "", "Gateway": "", "AuxiliaryAddresses": {}}],
    }


def test_volumes_as_docker_takes_them() -> None:
    assert volume.create_arguments({"name": "v", "labels": [{"label": "a", "value": "b"}]}) == {
        "name": "v",
        "driver": None,
        "driver_opts": None,
        "labels": {"a": "b"},
    }


def test_an_endpoint_as_docker_takes_it() -> None:
    assert container.endpoint(
        {"name": "n", "aliases": ["a"], "ipv4Address": "10.0.0.2", "driverOpts": ["a=b=c"]}
    ) == {
        "net_id": "n",
        "aliases": ["a"],
        "ipv4_address": "10.0.0.2",
        "ipv6_address": None,
        "link_local_ips": None,
        "mac_address": None,
        "driver_opt": {"a": "b=c"},
    }


@pytest.mark.parametrize(
    ("name", "pulled"),
    [
        ("caddy", ("caddy", "latest")),
        ("caddy:2", ("caddy", "2")),
        ("localhost:5000/caddy", ("localhost:5000/caddy", "latest")),
        ("ghcr.io/a/b:1@sha256:00", ("ghcr.io/a/b", "sha256:00")),
        ("localhost:5000/a@sha256:00", ("localhost:5000/a", "sha256:00")),
    ],
)
def test_names_of_images_for_a_pull(name: str, pulled: tuple[str, str]) -> None:
    assert image.repository_and_tag(name) == pulled


def test_the_digest_that_belongs_to_the_name() -> None:
    digests = ["mirror.example/caddy@sha256:1", "caddy@sha256:2"]
    assert image.repo_digest("caddy:2", digests) == "caddy@sha256:2"
    assert image.repo_digest("other:2", digests) == "mirror.example/caddy@sha256:1"
    assert image.repo_digest("caddy:2", []) == ""


@pytest.mark.parametrize(
    ("text", "nanoseconds", "again"),
    [
        ("0s", 0, "0s"),
        ("0", 0, "0s"),
        ("60s", 60 * 10**9, "1m0s"),
        ("1m30s", 90 * 10**9, "1m30s"),
        ("1.5s", 15 * 10**8, "1.5s"),
        ("250ms", 250 * 10**6, "250ms"),
        ("2h", 7200 * 10**9, "2h0m0s"),
        ("1us", 1000, "1\u00b5s"),
        ("-1s", -(10**9), "-1s"),
    ],
)
def test_durations(text: str, nanoseconds: int, again: str) -> None:
    assert parse_duration(text) == nanoseconds
    assert format_duration(nanoseconds) == again


@pytest.mark.parametrize("text", ["", "s", "1", "1 s", "1x", "1s2", "one second"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
