"""The Hetzner Cloud API of the sandbox, driven by the official client, without machines."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hcloud import APIException, Client
from hcloud.actions import ActionFailedException, BoundAction
from hcloud.firewalls import (
    FirewallResource,
    FirewallResourceLabelSelector,
    FirewallRule,
)
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import Server, ServerCreatePublicNetwork
from hcloud.zones import ZoneRecord, ZoneRRSet

from sandbox import machines
from sandbox.hcloud_api import ServedApi, serve
from sandbox.hcloud_api.cloud import NoMachines
from sandbox.hcloud_api.state import STATE_FILE, StateError

# of `ssh-keygen -t ed25519`, with what `ssh-keygen -l -E md5` says of it
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO5jUk3upRzxjmvP6CT0/HF0WLdgH/dDXGCHvlahHcz+ deploy@example"
FINGERPRINT = "b6:89:d5:6f:93:8b:76:12:60:33:3b:00:3e:f2:87:b3"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILwpgy/nh3AJDcqwoz9sluSjQpB8TecxHN0Uv+xy6cMV"

EVERYWHERE = ["0.0.0.0/0", "::/0"]
HTTPS = FirewallRule("in", "tcp", EVERYWHERE, port="443", description="HTTPS")
NUREMBERG = Location(name="nbg1")
ASKED_SECONDS = 10


class Recorder(NoMachines):
    """Machines that write down what they are told, and fail when they are told to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, Any]] = []
        self.failure: str | None = None

    def _note(self, what: str, server_id: int, value: Any = None) -> None:
        self.told.append((what, server_id, value))
        if self.failure is not None:
            raise machines.MachineError(self.failure)

    def create(self, spec: machines.MachineSpec) -> None:
        self._note("create", spec.server_id, spec)

    def power_on(self, server_id: int) -> None:
        self._note("power_on", server_id)

    def power_off(self, server_id: int) -> None:
        self._note("power_off", server_id)

    def delete(self, server_id: int) -> None:
        self._note("delete", server_id)

    def set_firewall(self, server_id: int, rules: Sequence[machines.FirewallRule] | None) -> None:
        self._note("set_firewall", server_id, None if rules is None else list(rules))

    def commands(self) -> list[str]:
        """Return what was told since the last time, without values."""
        told, self.told = self.told, []
        return [what for what, _, _ in told]


def client_of(api: ServedApi) -> Any:
    # not Client: it has every field of an answer as one that may be None
    client = Client(api.token, api_endpoint=api.endpoint, poll_interval=0.005, timeout=ASKED_SECONDS)
    # the client's own pauses between tries are seconds
    client._client._retry_interval_func = lambda retries: 0.01  # noqa: ARG005
    return client


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def api(recorder: Recorder) -> Iterator[ServedApi]:
    with serve(recorder) as served:
        yield served


@pytest.fixture
def client(api: ServedApi) -> Any:
    return client_of(api)


@pytest.fixture(scope="module")
def shared_api() -> Iterator[ServedApi]:
    """Serve one API to all tests that leave nothing behind."""
    with serve() as served:
        yield served


@pytest.fixture(scope="module")
def shared(shared_api: ServedApi) -> Any:
    return client_of(shared_api)


def ask(
    api: ServedApi, method: str, path: str, token: str | None = None, **options: Any
) -> requests.Response:
    headers = {"Authorization": f"Bearer {api.token if token is None else token}"}
    return requests.request(
        method, f"{api.endpoint}{path}", headers=headers, timeout=ASKED_SECONDS, **options
    )


def ask_sandbox(api: ServedApi, method: str, path: str, **options: Any) -> requests.Response:
    answer = requests.request(
        method,
        f"{api.sandbox}{path}",
        headers={"Authorization": f"Bearer {api.token}"},
        timeout=ASKED_SECONDS,
        **options,
    )
    answer.raise_for_status()
    return answer


def fault(api: ServedApi, **fields: Any) -> None:
    ask_sandbox(api, "POST", "/faults", json=fields)


def new_server(client: Any, name: str = "derp", **options: Any) -> Any:
    """Order a server and wait until it is as it was ordered."""
    options = {
        "server_type": ServerType(name="cx23"),
        "image": Image(name="debian-12"),
        "location": NUREMBERG,
    } | options
    ordered = client.servers.create(name, **options)
    for action in (ordered.action, *ordered.next_actions):
        action.wait_until_finished()
    ordered.server.reload()
    return ordered.server


def new_ip(client: Any, kind: str = "ipv4", name: str = "address", **options: Any) -> Any:
    return client.primary_ips.create(
        name=name, **({"type": kind, "location": NUREMBERG} | options)
    ).primary_ip


def new_firewall(client: Any, name: str = "firewall", *rules: FirewallRule) -> Any:
    return client.firewalls.create(name, rules=list(rules)).firewall


def wait(actions: list[BoundAction]) -> None:
    for action in actions:
        action.wait_until_finished()


def refused(code: str, call: Callable[[], Any]) -> APIException:
    with pytest.raises(APIException) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value


def fields_of(error: APIException) -> set[str]:
    """Return the names of the fields that an invalid_input complains of."""
    return {field["name"] for field in error.details["fields"]}


def to(server: Any) -> list[FirewallResource]:
    return [FirewallResource("server", server=Server(id=server.id))]


def by_label(selector: str) -> list[FirewallResource]:
    return [FirewallResource("label_selector", label_selector=FirewallResourceLabelSelector(selector))]


# -- who may ask


@pytest.mark.parametrize(
    "header", [None, "Bearer ", "Bearer wrong", "Basic {token}", "{token}", "bearer{token}"]
)
def test_nobody_is_answered_without_the_token(shared_api: ServedApi, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.format(token=shared_api.token)}
    for url in (
        f"{shared_api.endpoint}/servers",
        f"{shared_api.sandbox}/requests",
        f"{shared_api.endpoint}/nothing",
    ):
        answer = requests.get(url, headers=headers, timeout=ASKED_SECONDS)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "unauthorized"


def test_token_is_as_long_as_clients_want_it(shared_api: ServedApi) -> None:
    assert len(shared_api.token) == 64
    assert shared_api.endpoint == f"http://127.0.0.1:{shared_api.port}/v1"


def test_rate_limit_is_told_and_heeded() -> None:
    with serve(requests_per_hour=3) as api:
        answers = [ask(api, "GET", "/servers") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["RateLimit-Limit"] == "3"
    assert int(answers[3].headers["RateLimit-Reset"]) > int(answers[0].headers["RateLimit-Reset"])
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"


def test_what_the_sandbox_does_not_have_is_no_missing_resource(shared_api: ServedApi) -> None:
    for method, path in (
        ("GET", "/networks"),
        ("GET", "/volumes/1"),
        ("POST", "/servers/1/actions/attach_iso"),
    ):
        answer = ask(shared_api, method, path)
        assert answer.status_code == 501
        assert answer.json()["error"]["code"] == "unsupported_error"


def test_what_the_api_has_given_up_is_gone(shared_api: ServedApi) -> None:
    for path in ("/datacenters", "/actions"):
        answer = ask(shared_api, "GET", path)
        assert answer.status_code == 410
        assert answer.json()["error"]["code"] == "deprecated_api_endpoint"


@pytest.mark.parametrize("body", [b"{", b"[]", b'"name"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(shared_api: ServedApi, body: bytes) -> None:
    answer = ask(shared_api, "POST", "/ssh_keys", data=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "json_error")


def test_answers_name_themselves(shared_api: ServedApi) -> None:
    correlations = {ask(shared_api, "GET", "/servers").headers["X-Correlation-Id"] for _ in range(3)}
    assert len(correlations) == 3


# -- what can be ordered


def test_locations(shared: Any) -> None:
    assert [location.name for location in shared.locations.get_all()] == [
        *("fsn1", "nbg1", "hel1", "ash", "hil", "sin")
    ]
    ashburn = shared.locations.get_by_name("ash")
    assert ashburn is not None
    assert ashburn.network_zone == "us-east"
    assert shared.locations.get_by_id(2).name == "nbg1"


@pytest.mark.parametrize(
    ("name", "size", "locations"),
    [
        ("cx23", ("x86", 4, 40), {"fsn1", "nbg1", "hel1"}),
        ("cax11", ("arm", 4, 40), {"fsn1", "nbg1", "hel1"}),
        ("cpx22", ("x86", 4, 80), {"fsn1", "nbg1", "hel1", "sin"}),
        ("cpx11", ("x86", 2, 40), {"ash", "hil"}),
        ("ccx13", ("x86", 8, 80), {"fsn1", "nbg1", "hel1", "ash", "hil", "sin"}),
    ],
)
def test_server_types(shared: Any, name: str, size: tuple[str, int, int], locations: set[str]) -> None:
    found = shared.server_types.get_by_name(name)
    assert (found.architecture, found.memory, found.disk) == size
    assert {one.location.name for one in found.locations if one.available} == locations
    assert shared.server_types.get_by_id(found.id).name == name


def test_images_of_one_name_differ_by_architecture(shared: Any) -> None:
    assert {(image.name, image.architecture) for image in shared.images.get_all()} == {
        (name, architecture)
        for name in ("debian-12", "debian-13", "ubuntu-24.04")
        for architecture in ("x86", "arm")
    }
    image = shared.images.get_by_name_and_architecture("debian-13", "arm")
    assert image is not None
    assert (image.architecture, image.os_flavor) == ("arm", "debian")


# -- lists


def test_lists_come_in_pages(api: ServedApi, client: Any) -> None:
    for number in range(7):
        client.placement_groups.create(f"group-{number}", "spread")
    page = ask(api, "GET", "/placement_groups?per_page=3&page=2").json()
    assert [group["name"] for group in page["placement_groups"]] == ["group-3", "group-4", "group-5"]
    assert page["meta"]["pagination"] == {
        "page": 2,
        "per_page": 3,
        "previous_page": 1,
        "next_page": 3,
        "last_page": 3,
        "total_entries": 7,
    }
    client.placement_groups.max_per_page = 2
    assert len(client.placement_groups.get_all()) == 7
    none = ask(api, "GET", "/servers").json()
    assert none["servers"] == []
    assert none["meta"]["pagination"]["next_page"] is None


def test_lists_are_sorted_as_asked(api: ServedApi, client: Any) -> None:
    for name in ("b", "c", "a"):
        client.placement_groups.create(name, "spread")

    def names(query: str) -> list[str]:
        groups = ask(api, "GET", f"/placement_groups?{query}").json()["placement_groups"]
        return [group["name"] for group in groups]

    assert names("") == ["b", "c", "a"]
    assert names("sort=name") == ["a", "b", "c"]
    assert names("sort=name:desc") == ["c", "b", "a"]


@pytest.mark.parametrize(
    "query", ["sort=colour", "sort=name:up", "page=0", "per_page=x", "label_selector=a=b=c"]
)
def test_lists_refuse_what_they_cannot_heed(shared_api: ServedApi, query: str) -> None:
    answer = ask(shared_api, "GET", f"/placement_groups?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")


def test_label_selectors(client: Any) -> None:
    labels = {
        "eu": {"region": "eu", "stage": "test", "example.com/relay": ""},
        "us": {"region": "us"},
        "none": {},
    }
    for name, given in labels.items():
        client.placement_groups.create(name, "spread", labels=given)
    for selector, names in {
        "region=eu": {"eu"},
        "region==eu": {"eu"},
        "region!=eu": {"us", "none"},
        "region": {"eu", "us"},
        "!region": {"none"},
        "region in (eu, us)": {"eu", "us"},
        "region notin (eu)": {"us", "none"},
        "region in (eu,us),stage!=test": {"us"},
        "example.com/relay=": {"eu"},
    }.items():
        groups = client.placement_groups.get_all(label_selector=selector)
        assert {group.name for group in groups} == names, selector


@pytest.mark.parametrize(
    "labels",
    [
        {"": "v"},
        {"-a": "v"},
        {"a b": "v"},
        {"k": "-v"},
        {"k": "v" * 64},
        {"hetzner.cloud/k": "v"},
        {"A_/k": "v"},
    ],
)
def test_labels_have_to_be_well_formed(shared: Any, labels: dict[str, str]) -> None:
    error = refused("invalid_input", lambda: shared.placement_groups.create("group", "spread", labels=labels))
    assert fields_of(error) == {"labels"}


# -- SSH keys


def test_ssh_key(client: Any) -> None:
    key = client.ssh_keys.create("deploy", f"{KEY}\n", {"stack": "eu"})
    assert (key.fingerprint, key.public_key, key.labels) == (FINGERPRINT, KEY, {"stack": "eu"})
    assert [one.id for one in client.ssh_keys.get_all(fingerprint=FINGERPRINT)] == [key.id]
    assert client.ssh_keys.get_by_name("other") is None
    assert key.update(name="renamed", labels={}).name == "renamed"
    key.delete()
    refused("not_found", lambda: client.ssh_keys.get_by_id(key.id))


def test_ssh_keys_are_unique_by_name_and_by_key(client: Any) -> None:
    client.ssh_keys.create("one", KEY)
    other_comment = f"{KEY.rsplit(' ', 1)[0]} somebody else"
    error = refused("uniqueness_error", lambda: client.ssh_keys.create("two", other_comment))
    assert fields_of(error) == {"public_key"}
    error = refused("uniqueness_error", lambda: client.ssh_keys.create("one", OTHER_KEY))
    assert fields_of(error) == {"name"}
    two = client.ssh_keys.create("two", OTHER_KEY)
    refused("uniqueness_error", lambda: two.update(name="one"))
    assert two.update(name="two").name == "two"


@pytest.mark.parametrize("text", ["", "no key", "ssh-ed25519", "ssh-ed25519 AAAA", KEY[:-40]])
def test_ssh_key_has_to_be_one(shared: Any, text: str) -> None:
    assert fields_of(refused("invalid_input", lambda: shared.ssh_keys.create("key", text))) == {"public_key"}


# -- servers


def test_server_as_it_is_ordered(api: ServedApi, client: Any, recorder: Recorder) -> None:
    key = client.ssh_keys.create("deploy", KEY)
    ipv4, ipv6 = new_ip(client), new_ip(client, "ipv6", "network")
    firewall = new_firewall(client, "firewall", HTTPS)
    group = client.placement_groups.create("group", "spread").placement_group
    ordered = client.servers.create(
        "derp",
        ServerType(name="cx23"),
        Image(name="debian-12"),
        ssh_keys=[key],
        firewalls=[firewall],
        user_data="#cloud-config",
        labels={"stack": "eu"},
        location=NUREMBERG,
        placement_group=group,
        public_net=ServerCreatePublicNetwork(ipv4=ipv4, ipv6=ipv6),
    )
    assert ordered.server.status in ("initializing", "starting", "running")
    assert ordered.root_password is None
    assert [action.command for action in (ordered.action, *ordered.next_actions)] == [
        "create_server",
        "start_server",
    ]
    wait([ordered.action, *ordered.next_actions])
    server = client.servers.get_by_id(ordered.server.id)
    assert (server.name, server.status, server.labels) == ("derp", "running", {"stack": "eu"})
    assert (server.location.name, server.server_type.name) == ("nbg1", "cx23")
    assert (server.image.name, server.image.architecture) == ("debian-12", "x86")
    assert (server.primary_disk_size, server.backup_window, server.iso) == (40, None, None)
    assert server.placement_group is not None
    assert server.placement_group.servers == [server.id]
    net = server.public_net
    assert (net.ipv4.ip, net.primary_ipv4.id) == (ipv4.ip, ipv4.id)
    assert (net.ipv6.ip, net.primary_ipv6.id) == (ipv6.ip, ipv6.id)
    assert [(one.firewall.id, one.status) for one in net.firewalls] == [(firewall.id, "applied")]
    rules = [machines.FirewallRule("tcp", "443", ("0.0.0.0/0", "::/0"))]
    assert [what for what, _, _ in recorder.told] == ["delete", "set_firewall", "create"]
    assert recorder.told[1][2] == rules
    assert recorder.told[2][2] == machines.MachineSpec(
        server.id, "derp", ipv4.ip, ipv6.ip, "#cloud-config", (KEY,), "debian-12", 4096
    )
    raw = ask(api, "GET", f"/servers/{server.id}").json()["server"]
    assert raw["protection"] == {"delete": False, "rebuild": False}
    assert (
        raw["private_net"]
        == raw["volumes"]
        == raw["load_balancers"]
        == raw["public_net"]["floating_ips"]
        == []
    )
    assert raw["rescue_enabled"] is raw["locked"] is False
    assert isinstance(raw["included_traffic"], int)
    # gone since 1 July 2026
    assert "datacenter" not in raw


def test_server_gets_addresses_of_its_own(client: Any) -> None:
    server = new_server(client)
    made = {ip.type: ip for ip in client.primary_ips.get_all()}
    assert made["ipv4"].ip == server.public_net.ipv4.ip
    assert made["ipv6"].ip == server.public_net.ipv6.ip
    assert all(ip.auto_delete and ip.assignee_id == server.id for ip in made.values())
    server.delete().wait_until_finished()
    assert client.primary_ips.get_all() == []


def test_server_without_an_address_family(client: Any, recorder: Recorder) -> None:
    server = new_server(client, public_net=ServerCreatePublicNetwork(enable_ipv4=False))
    assert server.public_net.ipv4 is None
    assert server.public_net.ipv6.ip.endswith("::/64")
    assert recorder.told[-1][2].ipv4 is None
    neither = ServerCreatePublicNetwork(enable_ipv4=False, enable_ipv6=False)
    refused("invalid_input", lambda: new_server(client, "off", public_net=neither))
    off = new_server(client, "off", public_net=neither, start_after_create=False)
    assert off.status == "off"
    refused("unsupported_error", off.power_on)


def test_arm_server_gets_the_image_for_it(client: Any) -> None:
    server = new_server(client, server_type=ServerType(name="cax11"))
    assert (server.image.name, server.image.architecture) == ("debian-12", "arm")
    assert fields_of(
        refused("invalid_input", lambda: new_server(client, "other", image=Image(id=server.image.id)))
    ) == {"image"}


def test_server_without_a_location_goes_where_it_can(client: Any) -> None:
    assert new_server(client, location=None).location.name == "fsn1"
    address = new_ip(client, name="there", location=Location(name="hel1"))
    net = ServerCreatePublicNetwork(ipv4=address)
    assert new_server(client, "there", location=None, public_net=net).location.name == "hel1"
    assert (
        new_server(client, "us", location=None, server_type=ServerType(name="cpx11")).location.name == "ash"
    )


def test_server_without_keys_gets_a_password(client: Any) -> None:
    ordered = client.servers.create("derp", ServerType(name="cx23"), Image(name="debian-12"))
    assert ordered.root_password


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"server_type": ServerType(name="cx11")}, "server_type"),
        ({"location": Location(name="ash")}, "server_type"),
        ({"location": Location(name="mars")}, "location"),
        ({"image": Image(name="debian-1")}, "image"),
        ({"ssh_keys": [machines]}, "ssh_keys"),
        ({"user_data": "x" * (32 * 1024 + 1)}, "user_data"),
        ({"user_data": "ö" * (16 * 1024 + 1)}, "user_data"),
        ({"labels": {"a": "b c"}}, "labels"),
    ],
)
def test_server_that_cannot_be(shared: Any, options: dict[str, Any], field: str) -> None:
    if field == "ssh_keys":
        key = shared.ssh_keys.create("gone", KEY)
        key.delete()
        options = {"ssh_keys": [key]}
    error = refused("invalid_input", lambda: new_server(shared, **options))
    assert field in fields_of(error)
    assert shared.servers.get_all() == []
    assert shared.primary_ips.get_all() == []


def test_user_data_may_be_32_kib(client: Any) -> None:
    assert new_server(client, user_data="x" * 32 * 1024).status == "running"


@pytest.mark.parametrize("name", ["", "under_score", "-dash", "dot.", "a b", "x" * 64])
def test_server_name_is_a_host_name(shared: Any, name: str) -> None:
    assert fields_of(refused("invalid_input", lambda: new_server(shared, name))) == {"name"}


def test_server_names_are_unique_however_many_ask_at_once(api: ServedApi) -> None:
    def order(_: int) -> str:
        try:
            new_server(client_of(api), "derp")
        except APIException as error:
            return str(error.code)
        return "made"

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(order, range(8)))
    assert outcomes == ["made"] + ["uniqueness_error"] * 7
    assert len(client_of(api).primary_ips.get_all()) == 2


def test_server_is_renamed_and_labelled(client: Any) -> None:
    server, other = new_server(client), new_server(client, "other")
    assert server.update(name="renamed", labels={"a": "b"}).labels == {"a": "b"}
    refused("uniqueness_error", lambda: other.update(name="renamed"))
    refused("invalid_input", lambda: other.update(name="under_score"))
    assert [one.id for one in client.servers.get_all(name="renamed")] == [server.id]


def test_power(client: Any, recorder: Recorder) -> None:
    server = new_server(client)
    recorder.commands()
    for act, told, status in (
        (server.power_on, [], "running"),
        (server.power_off, ["power_off"], "off"),
        (server.power_off, [], "off"),
        (server.power_on, ["set_firewall", "power_on"], "running"),
        (server.reboot, ["power_off", "set_firewall", "power_on"], "running"),
        (server.reset, ["power_off", "set_firewall", "power_on"], "running"),
        (server.shutdown, ["power_off"], "off"),
        (server.shutdown, [], "off"),
    ):
        act().wait_until_finished()
        assert client.servers.get_by_id(server.id).status == status
        assert recorder.commands() == told


def test_server_that_was_never_started_is_made_when_it_is(client: Any, recorder: Recorder) -> None:
    server = new_server(client, start_after_create=False)
    assert server.status == "off"
    assert recorder.commands() == []
    server.power_on().wait_until_finished()
    assert recorder.commands() == ["delete", "set_firewall", "create"]


def test_change_of_type(client: Any, recorder: Recorder) -> None:
    server = new_server(client)
    larger = ServerType(name="cx33")
    refused("server_not_stopped", lambda: server.change_type(larger, upgrade_disk=False))
    server.power_off().wait_until_finished()
    recorder.commands()
    server.change_type(larger, upgrade_disk=False).wait_until_finished()
    server.reload()
    assert (server.server_type.name, server.primary_disk_size, server.status) == ("cx33", 40, "running")
    assert recorder.commands() == ["set_firewall", "power_on"]
    server.power_off().wait_until_finished()
    server.change_type(ServerType(name="cx23"), upgrade_disk=True).wait_until_finished()
    server.power_off().wait_until_finished()
    server.change_type(larger, upgrade_disk=True).wait_until_finished()
    server.power_off().wait_until_finished()
    server.reload()
    assert server.primary_disk_size == 80
    for wrong in ("cx23", "cx33", "cax21", "cpx21"):
        refused(
            "invalid_server_type",
            lambda wrong=wrong: server.change_type(ServerType(name=wrong), upgrade_disk=False),  # type: ignore[misc]
        )
    refused("invalid_input", lambda: server.change_type(ServerType(name="cx1"), upgrade_disk=False))


def test_rebuild(client: Any, recorder: Recorder) -> None:
    server = new_server(client, user_data="old", ssh_keys=[client.ssh_keys.create("key", KEY)])
    recorder.commands()
    rebuilt = server.rebuild(Image(name="ubuntu-24.04"))
    rebuilt.action.wait_until_finished()
    assert rebuilt.root_password is None
    spec = recorder.told[-1][2]
    assert (spec.image, spec.user_data, spec.authorized_keys) == ("ubuntu-24.04", "old", (KEY,))
    assert recorder.commands() == ["delete", "set_firewall", "create"]
    server.reload()
    assert (server.status, server.image.name) == ("running", "ubuntu-24.04")
    refused("invalid_input", lambda: server.rebuild(Image(name="debian-1")))


def test_backups(client: Any) -> None:
    server = new_server(client)
    server.enable_backup().wait_until_finished()
    assert client.servers.get_by_id(server.id).backup_window == "22-02"
    server.disable_backup().wait_until_finished()
    assert client.servers.get_by_id(server.id).backup_window is None


def test_protection_of_a_server(client: Any) -> None:
    server = new_server(client)
    refused("invalid_input", lambda: server.change_protection(delete=True))
    server.change_protection(delete=True, rebuild=True).wait_until_finished()
    assert client.servers.get_by_id(server.id).protection == {"delete": True, "rebuild": True}
    refused("protected", server.delete)
    refused("protected", lambda: server.rebuild(Image(name="debian-12")))
    server.change_protection(delete=False, rebuild=False).wait_until_finished()
    server.delete().wait_until_finished()
    refused("not_found", lambda: client.servers.get_by_id(server.id))


def test_server_that_is_deleted_leaves_everything(client: Any, recorder: Recorder) -> None:
    ipv4, firewall = new_ip(client), new_firewall(client)
    group = client.placement_groups.create("group", "spread").placement_group
    server = new_server(
        client,
        public_net=ServerCreatePublicNetwork(ipv4=ipv4),
        firewalls=[firewall],
        placement_group=group,
    )
    refused("resource_in_use", group.delete)
    refused("resource_in_use", firewall.delete)
    action = server.delete()
    assert action.command == "delete_server"
    action.wait_until_finished()
    assert recorder.commands()[-1] == "delete"
    assert [(ip.id, ip.assignee_id) for ip in client.primary_ips.get_all()] == [(ipv4.id, None)]
    assert client.firewalls.get_by_id(firewall.id).applied_to == []
    group.delete()
    firewall.delete()
    ipv4.delete()


def test_only_one_thing_is_done_to_a_server_at_a_time(api: ServedApi, client: Any) -> None:
    fault(api, action="start_server", seconds=30)
    ordered = client.servers.create("derp", ServerType(name="cx23"), Image(name="debian-12"))
    ordered.action.wait_until_finished()
    server = client.servers.get_by_id(ordered.server.id)
    assert (server.status, server.locked) == ("starting", True)
    for act in (server.power_off, server.delete, server.enable_backup, server.reboot):
        refused("locked", act)
    # names and labels, and firewalls, are not of the machine
    server.update(labels={"a": "b"})
    firewall = new_firewall(client)
    wait(firewall.apply_to_resources(to(server)))


def test_machine_that_does_not_boot(client: Any, recorder: Recorder) -> None:
    recorder.failure = "no kernel"
    ordered = client.servers.create("derp", ServerType(name="cx23"), Image(name="debian-12"))
    ordered.action.wait_until_finished()
    with pytest.raises(ActionFailedException, match="no kernel"):
        ordered.next_actions[0].wait_until_finished()
    server = client.servers.get_by_id(ordered.server.id)
    assert (server.status, server.locked) == ("off", False)
    with pytest.raises(ActionFailedException, match="no kernel"):
        server.delete().wait_until_finished()
    assert client.servers.get_by_id(server.id).status == "off"
    recorder.failure = None
    server.delete().wait_until_finished()
    assert client.servers.get_all() == []


# -- actions


def test_slow_action_is_seen_running(api: ServedApi, client: Any) -> None:
    fault(api, action="create_server", seconds=0.5)
    ordered = client.servers.create("derp", ServerType(name="cx23"), Image(name="debian-12"))
    seen: set[int] = set()
    action = ordered.action
    while action.status == "running":
        seen.add(action.progress)
        assert action.finished is None
        action = client.actions.get_by_id(action.id)
    assert len(seen) > 1
    assert (action.status, action.progress, action.error) == ("success", 100, None)
    assert action.finished is not None
    assert action.resources == [{"id": ordered.server.id, "type": "server"}]


def test_actions_are_listed_by_resource_and_by_id(api: ServedApi, client: Any) -> None:
    server, other = new_server(client), new_server(client, "other")
    commands = [action.command for action in server.get_actions()]
    assert commands == ["create_server", "start_server"]
    assert len(client.servers.actions.get_all()) == 4
    first = server.get_actions()[0]
    query = f"id={first.id}&id={other.get_actions()[0].id}&sort=status&sort=id:desc"
    assert [action["id"] for action in ask(api, "GET", f"/actions?{query}").json()["actions"]] == [
        other.get_actions()[0].id,
        first.id,
    ]
    for path in (
        f"/actions/{first.id}",
        f"/servers/actions/{first.id}",
        f"/servers/{server.id}/actions/{first.id}",
    ):
        assert ask(api, "GET", path).json()["action"]["command"] == "create_server"
    assert ask(api, "GET", "/actions/1").status_code == 404


def test_actions_of_what_is_no_server(client: Any) -> None:
    firewall, ipv4 = new_firewall(client), new_ip(client)
    ipv4.change_protection(delete=True)
    zone = client.zones.create(name="example.com", mode="primary").zone
    for resource, kind, command in (
        (firewall, client.firewalls, "set_firewall_rules"),
        (ipv4, client.primary_ips, "change_protection"),
        (zone, client.zones, "create_zone"),
    ):
        assert [action.command for action in resource.get_actions()] == [command]
        assert [action.command for action in kind.actions.get_all()] == [command]


# -- primary IPs


def test_primary_ip(client: Any) -> None:
    ipv4 = new_ip(client, labels={"a": "b"})
    assert (ipv4.assignee_id, ipv4.assignee_type, ipv4.auto_delete) == (None, "unassigned", False)
    assert (ipv4.location.name, ipv4.labels) == ("nbg1", {"a": "b"})
    assert ipv4.dns_ptr == [{"ip": ipv4.ip, "dns_ptr": "static.10.0.19.198.clients.your-server.de"}]
    ipv6 = new_ip(client, "ipv6", "network")
    assert ipv6.ip.endswith("::/64")
    assert ipv6.dns_ptr == []
    changed = ipv4.update(name="renamed", labels={}, auto_delete=True)
    assert (changed.name, changed.labels, changed.auto_delete) == ("renamed", {}, True)
    refused("uniqueness_error", lambda: new_ip(client, name="renamed"))
    refused("uniqueness_error", lambda: ipv6.update(name="renamed"))
    assert client.primary_ips.get_list(ip=ipv4.ip).primary_ips[0].id == ipv4.id


def test_addresses_come_back_last() -> None:
    with serve() as api:
        client = client_of(api)
        first, second = new_ip(client, name="first"), new_ip(client, name="second")
        first.delete()
        third = new_ip(client, name="third")
        assert len({first.ip, second.ip, third.ip}) == 3


class Few(NoMachines):
    """Machines in a network of 3 addresses that can be given."""

    ipv4_network = "198.19.0.0/28"


def test_addresses_run_out_and_come_back() -> None:
    with serve(Few()) as api:
        client = client_of(api)
        made = [new_ip(client, name=str(number)) for number in range(5)]
        assert [ip.ip for ip in made] == [f"198.19.0.{number}" for number in range(10, 15)]
        assert (
            ask(
                api, "POST", "/primary_ips", json={"name": "x", "type": "ipv4", "location": "fsn1"}
            ).status_code
            == 412
        )
        refused("unavailable", lambda: new_server(client))
        # the IPv6 network that the server would have had is not left behind
        assert len(client.primary_ips.get_all()) == 5
        made[2].delete()
        assert new_ip(client, name="again").ip == made[2].ip


def test_server_has_to_be_off_for_other_addresses(client: Any, recorder: Recorder) -> None:
    server, spare = new_server(client), new_ip(client)
    own = client.primary_ips.get_by_id(server.public_net.primary_ipv4.id)
    refused("server_not_stopped", own.unassign)
    refused("server_not_stopped", lambda: spare.assign(server.id, "server"))
    server.power_off().wait_until_finished()
    refused("server_has_ipv4", lambda: spare.assign(server.id, "server"))
    refused("must_be_unassigned", own.delete)
    own.unassign().wait_until_finished()
    refused("invalid_input", own.unassign)
    spare.assign(server.id, "server").wait_until_finished()
    refused("primary_ip_already_assigned", lambda: spare.assign(server.id, "server"))
    own.delete()
    spare.reload()
    assert (spare.assignee_id, spare.assignee_type) == (server.id, "server")
    recorder.commands()
    server.power_on().wait_until_finished()
    assert recorder.told[-1][2].ipv4 == spare.ip
    # its addresses are the machine's from its making
    assert recorder.commands() == ["delete", "set_firewall", "create"]


def test_primary_ip_for_a_server_that_is_off(client: Any) -> None:
    net = ServerCreatePublicNetwork(enable_ipv4=False)
    server = new_server(client, public_net=net)
    order = {"name": "late", "type": "ipv4", "assignee_id": server.id, "assignee_type": "server"}
    refused("server_not_stopped", lambda: client.primary_ips.create(**order))
    server.power_off().wait_until_finished()
    made = client.primary_ips.create(**order)
    assert made.action is not None
    made.action.wait_until_finished()
    server.reload()
    assert server.public_net.ipv4.ip == made.primary_ip.ip
    refused("server_has_ipv4", lambda: client.primary_ips.create(**order | {"name": "other"}))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "ipv5"}, "type"),
        ({"location": "mars"}, "location"),
        ({"location": None}, "location"),
        ({"assignee_id": 1}, "location"),
        ({"name": None}, "name"),
        ({"auto_delete": "yes"}, "auto_delete"),
        ({"assignee_type": "router"}, "assignee_type"),
    ],
)
def test_primary_ip_that_cannot_be(shared_api: ServedApi, change: dict[str, Any], field: str) -> None:
    answer = ask(
        shared_api, "POST", "/primary_ips", json={"name": "x", "type": "ipv4", "location": "fsn1"} | change
    )
    assert answer.status_code == 422
    assert [one["name"] for one in answer.json()["error"]["details"]["fields"]] == [field]


def test_primary_ips_that_do_not_fit_a_server(client: Any) -> None:
    def order(**net: Any) -> Callable[[], Any]:
        return lambda: new_server(client, "new", public_net=ServerCreatePublicNetwork(**net))

    taken = client.primary_ips.get_by_id(new_server(client).public_net.primary_ipv4.id)
    refused("primary_ip_assigned", order(ipv4=taken))
    refused("primary_ip_version_mismatch", order(ipv4=new_ip(client, "ipv6", "network")))
    elsewhere = new_ip(client, name="elsewhere", location=Location(name="hel1"))
    refused("primary_ip_datacenter_mismatch", order(ipv4=elsewhere))
    gone = new_ip(client, name="gone")
    gone.delete()
    refused("not_found", order(ipv4=gone))
    assert [server.name for server in client.servers.get_all()] == ["derp"]


def test_protection_of_a_primary_ip(client: Any) -> None:
    ipv4 = new_ip(client)
    ipv4.change_protection(delete=True).wait_until_finished()
    refused("protected", ipv4.delete)
    ipv4.change_protection(delete=False).wait_until_finished()
    ipv4.delete()
    refused("not_found", lambda: client.primary_ips.get_by_id(ipv4.id))


def test_reverse_dns(client: Any) -> None:
    ipv4, ipv6 = new_ip(client), new_ip(client, "ipv6", "network")
    host = ipv6.ip.replace("/64", "1")
    ipv4.change_dns_ptr(ipv4.ip, "derp.example.com").wait_until_finished()
    ipv6.change_dns_ptr(host.replace("::", ":0:0::"), "derp.example.com").wait_until_finished()
    server = new_server(client, public_net=ServerCreatePublicNetwork(ipv4=ipv4, ipv6=ipv6))
    assert server.public_net.ipv4.dns_ptr == "derp.example.com"
    assert server.public_net.ipv6.dns_ptr == [{"ip": host, "dns_ptr": "derp.example.com"}]
    server.change_dns_ptr(host, "other.example.com").wait_until_finished()
    assert client.primary_ips.get_by_id(ipv6.id).dns_ptr == [{"ip": host, "dns_ptr": "other.example.com"}]
    server.change_dns_ptr(ipv4.ip, None).wait_until_finished()
    server.change_dns_ptr(host, None).wait_until_finished()
    assert client.primary_ips.get_by_id(ipv6.id).dns_ptr == []
    assert client.primary_ips.get_by_id(ipv4.id).dns_ptr[0]["dns_ptr"].startswith("static.")
    refused("not_found", lambda: ipv4.change_dns_ptr("192.0.2.1", "derp.example.com"))
    refused("invalid_input", lambda: ipv4.change_dns_ptr("nowhere", "derp.example.com"))
    refused("invalid_input", lambda: ipv4.change_dns_ptr(ipv4.ip, "under_score.example.com"))


# -- firewalls


def test_firewall_rules_reach_the_machine(client: Any, recorder: Recorder) -> None:
    server = new_server(client)
    assert recorder.told[1][1:] == (server.id, None)
    recorder.commands()
    firewall = new_firewall(client, "firewall", HTTPS)
    wait(firewall.apply_to_resources(to(server)))
    assert recorder.told[-1][2] == [machines.FirewallRule("tcp", "443", ("0.0.0.0/0", "::/0"))]
    ping = FirewallRule("in", "icmp", ["192.0.2.0/24"])
    out = FirewallRule("out", "udp", [], port="any", destination_ips=["::/0"])
    actions = firewall.set_rules([ping, out])
    assert [action.command for action in actions] == ["set_firewall_rules", "apply_firewall"]
    wait(actions)
    # a rule for what goes out lets nothing in
    assert recorder.told[-1][2] == [machines.FirewallRule("icmp", None, ("192.0.2.0/24",))]
    wait(firewall.set_rules([]))
    assert recorder.told[-1][2] == []
    wait(firewall.remove_from_resources(to(server)))
    assert recorder.told[-1][2] is None
    wait(firewall.remove_from_resources(to(server)))
    firewall.delete()


def test_firewalls_add_up(client: Any, recorder: Recorder) -> None:
    udp = FirewallRule("in", "udp", ["::/0"], port="3478")
    firewalls: list[Any] = [
        new_firewall(client, "one", HTTPS),
        new_firewall(client, "two", udp),
    ]
    new_server(client, firewalls=firewalls)
    assert [rule.port for rule in recorder.told[1][2]] == ["443", "3478"]


def test_firewall_as_it_is_shown(client: Any) -> None:
    server = new_server(client)
    range_ = FirewallRule("in", "udp", ["2001:0db8:0::/48"], port="100-200")
    made = client.firewalls.create("firewall", rules=[HTTPS, range_], resources=to(server), labels={"a": "b"})
    assert made.actions is not None
    assert [action.command for action in made.actions] == ["set_firewall_rules", "apply_firewall"]
    wait(made.actions)
    firewall = client.firewalls.get_by_name("firewall")
    assert firewall is not None
    assert [(rule.protocol, rule.port, rule.description) for rule in firewall.rules] == [
        ("tcp", "443", "HTTPS"),
        ("udp", "100-200", None),
    ]
    assert firewall.rules[1].source_ips == ["2001:db8::/48"]
    assert [resource.server.id for resource in firewall.applied_to] == [server.id]
    assert firewall.update(name="renamed", labels={}).name == "renamed"
    refused("uniqueness_error", lambda: new_firewall(client, "renamed"))


def test_firewall_by_label(client: Any, recorder: Recorder) -> None:
    firewall = new_firewall(client, "firewall", HTTPS)
    wait(firewall.apply_to_resources(by_label("relay")))
    refused("resource_in_use", firewall.delete)
    server = new_server(client, labels={"relay": ""})
    assert recorder.told[1][2] == [machines.FirewallRule("tcp", "443", ("0.0.0.0/0", "::/0"))]
    firewall.reload()
    (selected,) = firewall.applied_to
    assert selected.label_selector.selector == "relay"
    assert [one.server.id for one in selected.applied_to_resources] == [server.id]
    refused("firewall_managed_by_label_selector", lambda: firewall.remove_from_resources(to(server)))
    refused("firewall_already_applied", lambda: firewall.apply_to_resources(by_label("relay")))
    server.update(labels={})
    wait(server.get_actions())
    assert recorder.told[-1] == ("set_firewall", server.id, None)
    server.update(labels={"relay": "yes"})
    wait(server.get_actions())
    wait(firewall.remove_from_resources(by_label("relay")))
    assert recorder.told[-1] == ("set_firewall", server.id, None)
    firewall.delete()


def test_firewall_resources_that_do_not_fit(client: Any) -> None:
    server, firewall = new_server(client), new_firewall(client)
    gone = [FirewallResource("server", server=Server(id=1))]
    error = refused("firewall_resource_not_found", lambda: firewall.apply_to_resources(gone))
    assert "1" in error.message
    refused("firewall_resource_not_found", lambda: firewall.remove_from_resources(gone))
    refused("firewall_resource_not_found", lambda: client.firewalls.create("other", resources=gone))
    refused("server_already_added", lambda: client.firewalls.create("other", resources=to(server) * 2))
    wait(firewall.apply_to_resources(to(server)))
    refused("firewall_already_applied", lambda: firewall.apply_to_resources(to(server)))
    assert [one.name for one in client.firewalls.get_all()] == ["firewall"]


def test_firewall_that_the_machine_refuses_is_not_applied(client: Any, recorder: Recorder) -> None:
    server, firewall = new_server(client), new_firewall(client)
    recorder.failure = "nft: syntax error"
    with pytest.raises(ActionFailedException, match="syntax error"):
        wait(firewall.apply_to_resources(to(server)))
    assert client.firewalls.get_by_id(firewall.id).applied_to == []


RULE: dict[str, Any] = {"direction": "in", "protocol": "tcp", "port": "80", "source_ips": ["0.0.0.0/0"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"direction": "up"}, "direction"),
        ({"protocol": "http"}, "protocol"),
        ({"port": None}, "port"),
        ({"port": "0"}, "port"),
        ({"port": "65536"}, "port"),
        ({"port": "20-10"}, "port"),
        ({"port": "80,443"}, "port"),
        ({"port": 80}, "port"),
        ({"protocol": "icmp"}, "port"),
        ({"source_ips": []}, "source_ips"),
        ({"source_ips": ["10.0.0.1/8"]}, "source_ips"),
        ({"source_ips": ["10.0.0.1"]}, "source_ips"),
        ({"source_ips": ["::/0"] * 101}, "source_ips"),
        ({"destination_ips": ["::/0"]}, "destination_ips"),
        ({"direction": "out"}, "source_ips"),
        ({"description": "x" * 256}, "description"),
    ],
)
def test_firewall_rule_that_cannot_be(
    shared_api: ServedApi, shared: Any, change: dict[str, Any], field: str
) -> None:
    firewall = new_firewall(shared, "firewall", HTTPS)
    rules = [RULE, RULE | change]
    for path, body in (
        ("/firewalls", {"name": "other", "rules": rules}),
        (f"/firewalls/{firewall.id}/actions/set_rules", {"rules": rules}),
    ):
        answer = ask(shared_api, "POST", path, json=body)
        assert answer.status_code == 422
        assert f"rules.1.{field}" in [one["name"] for one in answer.json()["error"]["details"]["fields"]]
    (left,) = shared.firewalls.get_all()
    assert (left.id, len(left.rules)) == (firewall.id, 1)
    left.delete()


def test_firewall_has_50_rules_at_most(client: Any) -> None:
    rules = [FirewallRule("in", "tcp", EVERYWHERE, port=str(port)) for port in range(1, 52)]
    refused("invalid_input", lambda: new_firewall(client, "firewall", *rules))
    assert len(new_firewall(client, "firewall", *rules[:50]).rules) == 50


# -- placement groups


def test_placement_group(client: Any) -> None:
    group = client.placement_groups.create("group", "spread").placement_group
    server = new_server(client)
    refused("server_not_stopped", lambda: server.add_to_placement_group(group))
    server.power_off().wait_until_finished()
    server.add_to_placement_group(group).wait_until_finished()
    refused("already_in_placement_group", lambda: server.add_to_placement_group(group))
    assert client.placement_groups.get_by_id(group.id).servers == [server.id]
    server.remove_from_placement_group().wait_until_finished()
    assert client.placement_groups.get_by_id(group.id).servers == []
    assert group.update(name="renamed", labels={"a": "b"}).name == "renamed"
    refused("invalid_input", lambda: client.placement_groups.create("other", "pack"))
    refused("uniqueness_error", lambda: client.placement_groups.create("renamed", "spread"))


def test_placement_group_has_10_servers_at_most(client: Any) -> None:
    group = client.placement_groups.create("group", "spread").placement_group
    for number in range(10):
        new_server(client, f"derp-{number}", placement_group=group)
    refused("placement_error", lambda: new_server(client, placement_group=group))


# -- DNS


@pytest.fixture
def zone(client: Any) -> Any:
    return client.zones.create(name="example.com", mode="primary", ttl=600).zone


def values(rrset: Any) -> list[str]:
    return [record.value for record in rrset.records]


def new_rrset(zone: Any, name: str = "derp", kind: str = "A", *records: str, **options: Any) -> Any:
    made = zone.create_rrset(
        name=name,
        type=kind,
        records=[ZoneRecord(value) for value in records or ("192.0.2.1",)],
        **options,
    )
    made.action.wait_until_finished()
    return made.rrset


def test_zone(client: Any, zone: Any) -> None:
    assert (zone.ttl, zone.mode, zone.record_count) == (600, "primary", 4)
    assert client.zones.get("example.com").id == client.zones.get(zone.id).id == zone.id
    assert client.zones.get_all(name="other.com") == []
    zone.change_ttl(3600).wait_until_finished()
    zone.change_protection(delete=True).wait_until_finished()
    zone = client.zones.get("example.com")
    assert (zone.ttl, zone.protection) == (3600, {"delete": True})
    refused("protected", zone.delete)
    assert zone.update(labels={"a": "b"}).labels == {"a": "b"}
    refused("uniqueness_error", lambda: client.zones.create(name="example.com", mode="primary"))
    refused("invalid_input", lambda: client.zones.create(name="Example.org", mode="primary"))
    refused("invalid_input", lambda: client.zones.create(name="example.org", mode="primary", ttl=59))
    assert "derp" not in zone.export_zonefile().zonefile
    assert [action.command for action in zone.get_actions()] == [
        "create_zone",
        "change_ttl",
        "change_protection",
    ]
    zone.change_protection(delete=False).wait_until_finished()
    zone.delete().action.wait_until_finished()
    refused("not_found", lambda: client.zones.get("example.com"))


def test_zone_with_record_sets(client: Any) -> None:
    rrset = ZoneRRSet(name="www", type="CNAME", records=[ZoneRecord("example.org.")])
    zone = client.zones.create(name="example.com", mode="primary", rrsets=[rrset]).zone
    assert values(zone.get_rrset("www", "CNAME")) == ["example.org."]
    assert "www IN CNAME example.org." in zone.export_zonefile().zonefile


def test_record_set(zone: Any) -> None:
    rrset = new_rrset(zone, ttl=300, labels={"stack": "eu"})
    assert (rrset.id, rrset.ttl, rrset.labels, values(rrset)) == (
        "derp/A",
        300,
        {"stack": "eu"},
        ["192.0.2.1"],
    )
    rrset.set_rrset_records([ZoneRecord("192.0.2.2", comment="new")]).wait_until_finished()
    rrset.add_rrset_records([ZoneRecord("192.0.2.3")]).wait_until_finished()
    rrset.update_rrset_records([ZoneRecord("192.0.2.3", comment="third")]).wait_until_finished()
    rrset.change_rrset_ttl(None).wait_until_finished()
    rrset = zone.get_rrset("derp", "A")
    assert rrset.ttl is None
    assert [(record.value, record.comment) for record in rrset.records] == [
        ("192.0.2.2", "new"),
        ("192.0.2.3", "third"),
    ]
    rrset.remove_rrset_records([ZoneRecord("192.0.2.2")]).wait_until_finished()
    assert values(zone.get_rrset("derp", "A")) == ["192.0.2.3"]
    assert rrset.update_rrset(labels={}).labels == {}
    refused("not_found", lambda: rrset.remove_rrset_records([ZoneRecord("192.0.2.9")]))
    refused("invalid_input", lambda: rrset.add_rrset_records([ZoneRecord("192.0.2.3")]))
    # the set goes with its last record
    rrset.remove_rrset_records([ZoneRecord("192.0.2.3")]).wait_until_finished()
    refused("not_found", lambda: zone.get_rrset("derp", "A"))


def test_record_sets_at_the_apex_and_by_filter(zone: Any) -> None:
    new_rrset(zone, "@")
    new_rrset(zone, "@", "AAAA", "2001:db8::1")
    new_rrset(zone, "*.sites", "AAAA", "2001:db8::1")
    assert values(zone.get_rrset("@", "AAAA")) == ["2001:db8::1"]
    assert {rrset.id for rrset in zone.get_rrset_all(type=["A", "AAAA"])} == {"@/A", "@/AAAA", "*.sites/AAAA"}
    assert {rrset.id for rrset in zone.get_rrset_all(name="@")} == {"@/A", "@/AAAA", "@/NS", "@/SOA"}
    zone.get_rrset("@", "A").delete_rrset().action.wait_until_finished()
    refused("not_found", lambda: zone.get_rrset("@", "A"))


def test_records_are_added_to_a_set_that_is_not_there_yet(zone: Any) -> None:
    missing = ZoneRRSet(zone=zone, name="new", type="TXT")
    zone.add_rrset_records(missing, [ZoneRecord('"a text"')], ttl=60).wait_until_finished()
    assert zone.get_rrset("new", "TXT").ttl == 60


def test_protection_of_a_record_set(zone: Any) -> None:
    rrset = new_rrset(zone)
    rrset.change_rrset_protection(change=True).wait_until_finished()
    assert zone.get_rrset("derp", "A").protection == {"change": True}
    for change in (
        lambda: rrset.set_rrset_records([ZoneRecord("192.0.2.2")]),
        lambda: rrset.change_rrset_ttl(60),
        rrset.delete_rrset,
    ):
        refused("protected", change)
    rrset.change_rrset_protection(change=False).wait_until_finished()
    rrset.delete_rrset().action.wait_until_finished()


@pytest.mark.parametrize(
    ("name", "kind", "records", "code"),
    [
        ("Derp", "A", ["192.0.2.1"], "invalid_input"),
        ("derp.", "A", ["192.0.2.1"], "invalid_input"),
        ("derp.example.com", "A", ["192.0.2.1"], "invalid_input"),
        ("derp", "B", ["192.0.2.1"], "invalid_input"),
        ("derp", "A", ["2001:db8::1"], "invalid_input"),
        ("derp", "AAAA", ["192.0.2.1"], "invalid_input"),
        ("derp", "A", [], "invalid_input"),
        ("derp", "A", ["192.0.2.1", "192.0.2.1"], "invalid_input"),
        ("derp", "TXT", ["no quotes"], "invalid_input"),
        ("derp", "SOA", ["x"], "unsupported_error"),
        ("taken", "A", ["192.0.2.1"], "uniqueness_error"),
        ("taken", "CNAME", ["example.org."], "invalid_input"),
    ],
)
def test_record_set_that_cannot_be(shared: Any, name: str, kind: str, records: list[str], code: str) -> None:
    zone = shared.zones.create(name="example.com", mode="primary").zone
    new_rrset(zone, "taken")
    body = {"name": name, "type": kind, "records": [{"value": value} for value in records]}
    refused(code, lambda: shared.request("POST", f"/zones/{zone.id}/rrsets", json=body))
    assert len(zone.get_rrset_all()) == 3
    zone.delete()


# -- faults


def test_request_fails_as_often_as_asked(api: ServedApi, client: Any) -> None:
    fault(
        api,
        method="POST",
        path="/servers",
        times=2,
        status=412,
        code="resource_unavailable",
        message="server location disabled",
    )
    for _ in range(2):
        error = refused("resource_unavailable", lambda: new_server(client))
        assert error.message == "server location disabled"
    assert client.servers.get_all() == client.primary_ips.get_all() == []
    assert new_server(client).status == "running"


def test_client_tries_again_what_can_be_tried_again(api: ServedApi, client: Any) -> None:
    fault(api, path="/placement_groups.*", status=429, code="rate_limit_exceeded")
    fault(api, path="/placement_groups.*", status=502, code="bad_gateway")
    client.placement_groups.create("group", "spread")
    asked = ask_sandbox(api, "GET", "/requests").json()["requests"]
    assert asked == [
        {"method": "POST", "path": "/placement_groups", "status": status} for status in (429, 502, 201)
    ]


def test_answer_is_lost_after_the_request_was_carried_out(api: ServedApi, client: Any) -> None:
    fault(api, method="POST", path="/servers", status=504, code="timeout", applied=True)
    # the client asks again, and meets its own server
    refused("uniqueness_error", lambda: new_server(client))
    assert len(client.servers.get_all()) == 1


def test_fault_without_end_ends_when_it_is_cleared(api: ServedApi, client: Any) -> None:
    fault(api, path="/servers", times=0, status=500, code="server_error")
    for _ in range(3):
        refused("server_error", client.servers.get_all)
    # the whole path has to match
    refused("not_found", lambda: client.servers.get_by_id(1))
    ask_sandbox(api, "DELETE", "/faults")
    assert client.servers.get_all() == []


def test_slow_answer_holds_up_nobody_else(api: ServedApi, client: Any) -> None:
    fault(api, path="/ssh_keys", delay=60)
    with socket.create_connection(("127.0.0.1", api.port)) as slow:
        slow.sendall(f"GET /v1/ssh_keys HTTP/1.1\r\nAuthorization: Bearer {api.token}\r\n\r\n".encode())
        # connections are accepted in their order
        assert new_server(client).status == "running"
        assert client.ssh_keys.get_all() == []
        assert select.select([slow], [], [], 0)[0] == []


@pytest.mark.parametrize("command", ["create_server", "start_server"])
def test_action_fails_on_request(api: ServedApi, client: Any, recorder: Recorder, command: str) -> None:
    fault(api, action=command, error={"code": "resource_unavailable", "message": "no capacity left"})
    ordered = client.servers.create("derp", ServerType(name="cx23"), Image(name="debian-12"))
    with pytest.raises(ActionFailedException, match="no capacity left") as caught:
        wait([ordered.action, *ordered.next_actions])
    error = caught.value.action.error
    assert error is not None
    assert error["code"] == "resource_unavailable"
    with pytest.raises(ActionFailedException):
        ordered.next_actions[0].wait_until_finished()
    assert client.servers.get_by_id(ordered.server.id).status == "off"
    assert recorder.commands() == []
    ordered.server.delete().wait_until_finished()


def test_immediate_action_fails_on_request_and_changes_nothing(api: ServedApi, client: Any) -> None:
    ipv4 = new_ip(client)
    fault(api, action="change_protection", error={"code": "action_failed", "message": "failed"})
    with pytest.raises(ActionFailedException):
        ipv4.change_protection(delete=True).wait_until_finished()
    ipv4.delete()


@pytest.mark.parametrize("fields", [{}, {"path": "("}, {"path": "/x", "times": "2"}, {"action": 1}])
def test_fault_that_cannot_be(shared_api: ServedApi, fields: dict[str, Any]) -> None:
    with pytest.raises(requests.HTTPError, match="422"):
        fault(shared_api, **fields)


def test_server_vanishes_as_if_deleted_elsewhere(api: ServedApi, client: Any, recorder: Recorder) -> None:
    ipv4 = new_ip(client)
    server = new_server(client, public_net=ServerCreatePublicNetwork(ipv4=ipv4))
    recorder.commands()
    ask_sandbox(api, "POST", f"/servers/{server.id}/vanish")
    assert recorder.commands() == ["delete"]
    refused("not_found", lambda: client.servers.get_by_id(server.id))
    assert [(ip.id, ip.assignee_id) for ip in client.primary_ips.get_all()] == [(ipv4.id, None)]


# -- what is kept


def test_everything_outlives_a_restart(tmp_path: Path) -> None:
    with serve(folder=tmp_path) as api:
        client = client_of(api)
        client.ssh_keys.create("key", KEY)
        firewall = new_firewall(client, "firewall", HTTPS)
        new_server(client, user_data="#cloud-config", firewalls=[firewall])
        new_server(client, "off").power_off().wait_until_finished()
        client.placement_groups.create("group", "spread")
        new_rrset(client.zones.create(name="example.com", mode="primary").zone)
        lists = (
            "ssh_keys",
            "firewalls",
            "servers",
            "primary_ips",
            "placement_groups",
            "zones",
            "zones/example.com/rrsets",
        )
        before = {name: ask(api, "GET", f"/{name}").json() for name in lists}
        token = api.token
    recorder = Recorder()
    with serve(recorder, folder=tmp_path) as api:
        assert api.token == token
        client = client_of(api)
        (server,) = client.servers.get_all(name="derp")
        wait(server.get_actions())
        assert {name: ask(api, "GET", f"/{name}").json() for name in lists} == before
        # the machines' disks are kept: that of the server that was on is powered on
        assert recorder.commands() == ["set_firewall", "power_on"]
        ids = [server.id, new_ip(client, name="new").id]
        assert ids == sorted(ids)
        client.servers.get_all(name="off")[0].power_on().wait_until_finished()
        assert recorder.commands() == ["set_firewall", "power_on"]


def test_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with serve(folder=folder) as api:
        new_server(client_of(api), user_data="a private key")
        assert "a private key" in (folder / STATE_FILE).read_text()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert {path.name for path in folder.iterdir()} == {STATE_FILE, "token"}


def test_action_that_was_running_is_redone_or_has_failed(tmp_path: Path) -> None:
    with serve(folder=tmp_path) as api:
        client = client_of(api)
        fault(api, action="start_server", seconds=60)
        going = client.servers.create("going", ServerType(name="cx23"), Image(name="debian-12"))
        going.action.wait_until_finished()
        gone = new_server(client, "gone")
        fault(api, action="delete_server", seconds=60)
        deletion = gone.delete()
        # as a kill would leave it
        killed = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(killed)
    with serve(folder=tmp_path) as api:
        client = client_of(api)
        server = client.servers.get_by_id(going.server.id)
        wait([action for action in server.get_actions() if action.status != "error"])
        assert client.servers.get_by_id(server.id).status == "running"
        assert [server.name for server in client.servers.get_all()] == ["going"]
        interrupted = client.actions.get_by_id(deletion.id)
        with pytest.raises(ActionFailedException, match="stopped"):
            interrupted.wait_until_finished()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"servers": [{}]}'])
def test_state_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(StateError, match="remove it to begin anew"), serve(folder=tmp_path):
        pass


def test_state_of_other_networks_is_said(tmp_path: Path) -> None:
    with serve(folder=tmp_path) as api:
        new_ip(client_of(api))
    with pytest.raises(StateError, match=r"198\.19\.0\.0/28"), serve(Few(), folder=tmp_path):
        pass


def test_state_that_another_process_uses_is_said(tmp_path: Path) -> None:
    with serve(folder=tmp_path), pytest.raises(StateError, match="in use"), serve(folder=tmp_path):
        pass
    with serve(folder=tmp_path):
        pass


def test_port_that_is_taken_is_said(api: ServedApi) -> None:
    with pytest.raises(OSError, match="in use"), serve(port=api.port):
        pass


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sandbox.hcloud_api", "--state", str(tmp_path), "--without-machines"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        token = (tmp_path / "token").read_text()
        client = Client(token, api_endpoint=f"http://127.0.0.1:{port}/v1", poll_interval=0.01)
        assert new_server(client).status == "running"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(ASKED_SECONDS) == 0
    (tmp_path / STATE_FILE).write_text("no state")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=ASKED_SECONDS, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: ")
    assert "remove it to begin anew" in ended.stderr
