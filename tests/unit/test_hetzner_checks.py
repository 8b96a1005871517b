"""What relayctl asks Hetzner Cloud before Pulumi does anything, and what it removes, against the API."""

from __future__ import annotations

import datetime as dt
import io
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import hcloud
import pytest
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import ServerCreatePublicNetwork
from hcloud.zones import ZoneRecord
from pulumi.automation.events import DiagnosticEvent, EngineEvent
from rich.console import Console

from relayctl import hetzner
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.stack import _Account, without
from sandbox.hcloud_api import ServedApi, serve
from sandbox.hcloud_api.catalogue import SERVER_TYPES
from settings import Settings, read_stack_file, settings_from
from ssh.keys import new_private_key, public_key
from tests.unit.declared import MINIMAL
from tests.unit.served_api import asked, changes, fault, quick, sandbox

STACK = "nbg"
NAME = "derp-nbg"
WHERE = "stacks/Pulumi.nbg.yaml"
FIREWALL = "hcloud:index/firewall:Firewall"
SSH_KEY = "hcloud:index/sshKey:SshKey"
PRIMARY_IP = "hcloud:index/primaryIp:PrimaryIp"
RECORD = "hcloud:index/zoneRrset:ZoneRrset"
KEY = public_key(new_private_key("test"))
OURS = {"derp-relays.stack": NAME}
NUREMBERG = Location(name="nbg1")
SITES = ("blog.example.com", "shop.example.com")
# longer ago than any test, and after its end
BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
LATER = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def served() -> Iterator[ServedApi]:
    with serve() as api:
        yield api


@pytest.fixture
def api(served: ServedApi, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return relayctl's own client, with shorter pauses between tries than its seconds.

    Not as ``hcloud.Client``, which has every field of an answer as one that may be ``None``.
    """
    monkeypatch.setenv("HCLOUD_ENDPOINT", served.endpoint)
    return quick(hetzner.client(served.token))


def settings(*sites: str, **host: Any) -> Settings:
    given = {
        "host": {"kind": "hetzner", "location": "nbg1", "sshFrom": ["198.18.0.1"], **host},
        "certificate": {"source": "internal"},
        "sites": [{"names": [name], "redirect": "https://example.net/"} for name in sites],
    }
    return settings_from({**MINIMAL, **given}, WHERE)


def check(api: Any, deployment: dict[str, Any] | None = None, **host: Any) -> None:
    hetzner.check(api, STACK, settings(**host), deployment or {}, WHERE)


def site_records(*names: str) -> dict[str, Any]:
    """Return what a state has of the records of sites."""
    outputs = {"zone": "example.com", "names": list(names)}
    return {"type": "pulumi-python:dynamic/hetzner:SiteRecords", "id": NAME, "outputs": outputs}


def refused(call: Callable[[], Any]) -> PrerequisiteError:
    with pytest.raises(PrerequisiteError) as caught:
        call()
    return caught.value


def new_address(api: Any, version: str = "ipv4", **options: Any) -> Any:
    return api.primary_ips.create(
        name=f"{NAME}-nbg1-{version}", type=version, **{"location": NUREMBERG, "labels": OURS} | options
    ).primary_ip


def new_server(api: Any, address: Any = None, **options: Any) -> Any:
    """Order a server and wait until it runs."""
    ordered = api.servers.create(
        **{
            "name": NAME,
            "server_type": ServerType(name="cx23"),
            "image": Image(name="debian-13"),
            "location": NUREMBERG,
            "labels": OURS,
            "public_net": ServerCreatePublicNetwork(ipv4=address),
        }
        | options
    )
    for action in (ordered.action, *ordered.next_actions):
        action.wait_until_finished()
    return ordered.server


def entry(type_: str, found: Any, **more: Any) -> dict[str, Any]:
    """Return what a state has of something at the API."""
    return {"type": type_, "id": str(found.id), "urn": f"urn:{type_}::{found.id}", **more}


# -- the token


@pytest.mark.parametrize("token", [None, ""])
def test_no_token(token: str | None) -> None:
    error = refused(lambda: hetzner.client(token))
    assert error.what == "there is no API token for Hetzner Cloud"
    assert "export HCLOUD_TOKEN=" in error.mend
    assert "pulumi config set --secret hcloud:token" in error.mend


@pytest.mark.parametrize("length", [63, 65])
def test_a_token_of_the_wrong_length(length: int) -> None:
    error = refused(lambda: hetzner.client("t" * length))
    assert error.what == (
        f"the API token for Hetzner Cloud has {length} characters, and every one of theirs has 64"
    )
    assert "ttt" not in str(error)


@pytest.mark.usefixtures("api")
def test_a_token_that_the_api_does_not_know() -> None:
    error = refused(lambda: check(hetzner.client("t" * 64)))
    assert error.what == "Hetzner Cloud does not know the API token"
    assert "Read & Write" in error.mend


# -- what a stack asks for


@pytest.mark.parametrize(
    "host",
    [
        {},
        {"serverType": "cax11"},
        {"location": "ash", "serverType": "cpx21"},
        {"image": "ubuntu-24.04"},
        {"image": "debian-12", "location": "hel1"},
    ],
)
def test_what_can_be_had_is_not_refused(api: Any, host: dict[str, Any]) -> None:
    check(api, **host)


def test_an_unknown_type_and_what_the_location_has_instead(api: Any) -> None:
    error = refused(lambda: check(api, serverType="cx99"))
    assert f"{WHERE} does not fit Hetzner Cloud; nothing was changed" in error.what
    assert "host.serverType: there is no server type cx99" in error.what
    assert "Give one that nbg1 has: cax11, " in error.what
    assert "cpx11" not in error.what, "it is for America alone"


def test_a_type_that_is_not_in_the_location(api: Any) -> None:
    error = refused(lambda: check(api, location="ash", serverType="cx23"))
    assert "host.serverType: cx23 is not to be had in ash now" in error.what
    assert "cpx11" in error.what


def test_a_type_that_is_sold_out_is_kept_where_there_is_a_server_already(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = type(SERVER_TYPES["cx23"]).shown

    def sold_out(server_type: Any) -> dict[str, Any]:
        told: dict[str, Any] = shown(server_type)
        if server_type.name == "cx23":
            told["locations"] = [{**each, "available": False} for each in told["locations"]]
        return told

    monkeypatch.setattr(type(SERVER_TYPES["cx23"]), "shown", sold_out)
    with serve() as other:
        client = hcloud.Client(other.token, api_endpoint=other.endpoint)
        error = refused(lambda: check(client))
        assert "host.serverType: cx23 is not to be had in nbg1 now" in error.what
        assert re.search(r"Give one that is: .*, cx33, ", error.what)
        assert ", cx23" not in error.what
        check(client, {"resources": [{"type": hetzner.SERVER, "id": "1"}]})
    check(api)


def test_a_location_that_is_not_there(api: Any) -> None:
    error = refused(lambda: check(api, location="mars1", serverType="cx23"))
    assert "host.location: there is no location mars1" in error.what
    assert "Give one of ash, fsn1, hel1, hil, nbg1, sin." in error.what


def test_an_image_that_is_not_there(api: Any) -> None:
    error = refused(lambda: check(api, image="debian-7", serverType="cax11"))
    assert "host.image: there is no image debian-7 for arm" in error.what
    assert "debian-13" in error.what


def test_a_zone_that_is_not_there(api: Any) -> None:
    error = refused(lambda: check(api, dnsZone="example.com"))
    assert "host.dnsZone: this project at Hetzner has no zone example.com" in error.what
    api.zones.create(name="example.com", mode="primary")
    check(api, dnsZone="example.com")


def test_records_of_somebody_else_are_found_before_anything_is_made(served: ServedApi, api: Any) -> None:
    zone = api.zones.create(name="example.com", mode="primary").zone
    for name, type_, value in (("derp", "A", "192.0.2.1"), ("blog", "CNAME", "example.net.")):
        zone.create_rrset(name=name, type=type_, records=[ZoneRecord(value)])
    zone.create_rrset(name="shop", type="A", records=[ZoneRecord("192.0.2.1")], labels=OURS)
    before = changes(served)
    error = refused(lambda: hetzner.check(api, STACK, settings(*SITES, dnsZone="example.com"), {}, WHERE))
    assert (
        "host.dnsZone: example.com has records that are not this stack's: blog.example.com CNAME,"
        " derp.example.com A:\n"
    ) in error.what
    assert "or take the names out of sites and domain." in error.what
    assert changes(served) == before


def test_a_zone_is_not_looked_through_for_names_that_the_state_has(served: ServedApi, api: Any) -> None:
    api.zones.create(name="example.com", mode="primary").zone.create_rrset(
        name="blog", type="A", records=[ZoneRecord("192.0.2.1")]
    )
    own = [{"type": RECORD, "id": f"derp/{type_}"} for type_ in ("A", "AAAA")]
    state = {"resources": [*own, site_records("blog", "shop")]}
    hetzner.check(api, STACK, settings(*SITES, dnsZone="example.com"), state, WHERE)
    assert not [line for line in asked(served) if "/rrsets" in line and line.startswith("GET")]
    state = {"resources": [*own, site_records("shop")]}
    with pytest.raises(PrerequisiteError, match=r"blog\.example\.com A"):
        hetzner.check(api, STACK, settings(*SITES, dnsZone="example.com"), state, WHERE)


def test_an_example_that_was_not_edited_makes_no_server(served: ServedApi, api: Any) -> None:
    example = read_stack_file("eu-nuremberg")
    error = refused(lambda: hetzner.check(api, STACK, example, {}, WHERE))
    assert "host.sshFrom: 203.0.113.4/32 is the example's, from where nobody can come" in error.what
    assert "domain: derp-nbg.example.com is the example's, for which nobody gets a certificate" in error.what
    assert changes(served) == []


@pytest.mark.parametrize("networks", [["203.0.113.4", "198.18.0.1"], ["198.0.0.0/8"]])
def test_networks_that_are_not_of_an_example_alone(api: Any, networks: list[str]) -> None:
    check(api, sshFrom=networks)


def test_all_is_told_at_once_and_nothing_is_changed(served: ServedApi, api: Any) -> None:
    error = refused(lambda: check(api, serverType="cx99", image="debian-7", dnsZone="example.com"))
    assert [
        line.partition(":")[0].strip() for line in error.what.splitlines() if line.startswith("  host")
    ] == [
        "host.serverType",
        "host.image",
        "host.dnsZone",
    ]
    assert changes(served) == []


def test_names_that_somebody_else_has(api: Any) -> None:
    made = {
        "server": new_server(api, labels={}),
        "firewall": api.firewalls.create(NAME).firewall,
        "SSH key": api.ssh_keys.create(name=NAME, public_key=KEY),
    }
    addresses = [new_address(api, version, labels={}) for version in ("ipv4", "ipv6")]
    error = refused(lambda: check(api))
    for what, each in made.items():
        assert f"there is a {what} {NAME} (id {each.id}) at Hetzner, which is not this stack's" in error.what
    for address in addresses:
        assert f"there is a primary IP {address.name} (id {address.id}) at Hetzner" in error.what
    types = {"server": hetzner.SERVER, "firewall": FIREWALL, "SSH key": SSH_KEY}
    own = [entry(types[what], each) for what, each in made.items()]
    check(api, {"resources": [*own, *(entry(PRIMARY_IP, each) for each in addresses)]})


# -- an API that fails


def test_requests_beyond_the_limit_are_repeated(served: ServedApi, api: Any) -> None:
    fault(served, path="/server_types", times=3, status=429, code="rate_limit_exceeded", message="slow down")
    check(api)


@pytest.mark.parametrize(("status", "code"), [(502, "bad_gateway"), (504, "timeout"), (409, "conflict")])
def test_what_passes_is_asked_again(served: ServedApi, api: Any, status: int, code: str) -> None:
    fault(served, path="/locations", times=2, status=status, code=code, message="try again")
    check(api)


@pytest.mark.parametrize(
    "path", ["/server_types", "/locations", "/images", "/zones", "/servers", "/firewalls"]
)
def test_an_error_of_the_api_is_told_in_its_words(served: ServedApi, api: Any, path: str) -> None:
    fault(served, path=path, times=0, status=503, code="unavailable", message="come later")
    error = refused(lambda: check(api, dnsZone="example.com"))
    assert error.what == "Hetzner Cloud: come later (unavailable)"
    assert "nothing was changed" in error.mend


def test_a_limit_that_stays_reached_is_told(served: ServedApi, api: Any) -> None:
    fault(served, path=".*", times=0, status=429, code="rate_limit_exceeded", message="slow down")
    assert refused(lambda: check(api)).what == "Hetzner Cloud: slow down (rate_limit_exceeded)"


def test_an_api_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HCLOUD_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        api = hetzner.client("t" * 64)
        for call in (lambda: check(api), lambda: hetzner.find(api, {"id": "1"})):
            error = refused(call)
            assert error.what.startswith("Hetzner Cloud's API does not answer: ")
            assert "network" in error.mend


# -- the server that is in the state


def test_a_server_is_found_or_gone(served: ServedApi, api: Any) -> None:
    server = new_server(api)
    found = hetzner.find(api, {"id": str(server.id)})
    assert found is not None
    assert found.id == server.id
    sandbox(served, "POST", f"/servers/{server.id}/vanish")
    assert hetzner.find(api, {"id": str(server.id)}) is None


def test_that_the_api_does_not_say_is_not_taken_for_gone(served: ServedApi, api: Any) -> None:
    server = new_server(api)
    fault(served, path=f"/servers/{server.id}", status=500, code="server_error", message="oops")
    error = refused(lambda: hetzner.find(api, {"id": str(server.id)}))
    assert error.what == "Hetzner Cloud: oops (server_error)"


def test_a_server_that_is_off_is_switched_on(api: Any) -> None:
    server = new_server(api)
    server.power_off().wait_until_finished()
    server.reload()
    told = io.StringIO()
    hetzner.switch_on(server, Progress(Console(file=told)))
    server.reload()
    assert server.status == server.STATUS_RUNNING
    assert f"Switching on the server {NAME}" in told.getvalue()


def test_a_server_that_runs_is_left_alone(served: ServedApi, api: Any) -> None:
    server = new_server(api)
    server.reload()
    before = changes(served)
    told = io.StringIO()
    hetzner.switch_on(server, Progress(Console(file=told)))
    assert changes(served) == before
    assert told.getvalue() == ""


def test_a_server_that_cannot_be_switched_on(served: ServedApi, api: Any) -> None:
    server = new_server(api)
    server.power_off().wait_until_finished()
    server.reload()
    fault(served, action="start_server", error={"code": "server_error", "message": "no host has room"})
    error = refused(lambda: hetzner.switch_on(server, Progress(Console(file=io.StringIO()))))
    assert "no host has room" in error.what
    fault(served, path=".*/poweron", status=423, code="locked", message="server is locked")
    error = refused(lambda: hetzner.switch_on(server, Progress(Console(file=io.StringIO()))))
    assert error.what == "Hetzner Cloud: server is locked (locked)"


def test_a_protected_server_is_not_shut_down_in_vain() -> None:
    outputs = {"name": NAME, "deleteProtection": True}
    state = {"resources": [{"type": hetzner.SERVER, "id": "1", "outputs": outputs}]}
    error = refused(lambda: hetzner.check_can_be_deleted(state, WHERE))
    assert f"{NAME} is protected from deletion; nothing was changed" in error.what
    assert f"host.deleteProtection: false in {WHERE}" in error.mend
    outputs["deleteProtection"] = False
    hetzner.check_can_be_deleted(state, WHERE)
    hetzner.check_can_be_deleted({}, WHERE)


def test_a_server_that_is_only_still_to_be_deleted_is_not_the_stacks() -> None:
    old, new = ({"type": hetzner.SERVER, "id": each} for each in ("1", "2"))
    assert hetzner.server_of({"resources": [{**old, "delete": True}, new]}) == new
    assert hetzner.server_of({"resources": [{**old, "delete": True}]}) is None
    assert hetzner.server_of({"resources": None}) is None


# -- what an update that did not end has left


class Left:
    """All that a stack makes at Hetzner, as an update made it whose state has none of it."""

    def __init__(self, api: Any) -> None:
        self.api = api
        zone = api.zones.create(name="example.com", mode="primary").zone
        zone.create_rrset(name="derp", type="A", records=[ZoneRecord("203.0.113.9")], labels=OURS)
        zone.create_rrset(name="www", type="A", records=[ZoneRecord("203.0.113.9")])
        self.zone = zone
        self.key = api.ssh_keys.create(name=NAME, public_key=KEY, labels=OURS)
        self.firewall = api.firewalls.create(NAME, labels=OURS).firewall
        self.address = new_address(api)
        self.server: Any = None

    def order(self) -> None:
        self.server = new_server(self.api, self.address, firewalls=[self.firewall])

    def remove(self, deployment: dict[str, Any], since: dt.datetime | None, **options: Any) -> None:
        progress = Progress(Console(file=io.StringIO()))
        hetzner.remove_leftovers(self.api, STACK, deployment, since, progress, **options)

    def there(self) -> set[str]:
        api = self.api
        kinds = (api.servers, api.firewalls, api.ssh_keys, api.primary_ips)
        names = {type(each).__name__ for kind in kinds for each in kind.get_all()}
        return names | {str(record.id) for record in self.zone.get_rrset_all()}

    def state(self, *without_: str) -> dict[str, Any]:
        """Return the state that knows it all but ``without_`` these types."""
        known = {FIREWALL: self.firewall, SSH_KEY: self.key, PRIMARY_IP: self.address}
        resources = [entry(type_, found) for type_, found in known.items()]
        resources.append({"type": RECORD, "id": "derp/A", "urn": "urn:record"})
        if self.server is not None:
            resources.append(entry(hetzner.SERVER, self.server))
        return {"resources": [each for each in resources if each["type"] not in without_]}


def pending(type_: str, name: str) -> dict[str, Any]:
    return {"type": "creating", "resource": {"type": type_, "inputs": {"name": name}}}


OTHERS = {"www/A", "@/NS", "@/SOA"}
EVERYTHING = {"BoundServer", "BoundFirewall", "BoundSSHKey", "BoundPrimaryIP", "derp/A"}


@pytest.fixture
def left(api: Any) -> Left:
    return Left(api)


def test_what_no_state_knows_is_removed_once_an_update_did_not_end(left: Left) -> None:
    left.remove({}, BEFORE)
    assert left.there() == OTHERS & left.there()
    assert "www/A" in left.there()


def test_what_the_state_knows_stays(left: Left) -> None:
    left.order()
    left.remove(left.state(), BEFORE)
    assert left.there() >= EVERYTHING


def test_nothing_is_asked_after_an_update_that_ended(served: ServedApi, left: Left) -> None:
    before = sandbox(served, "GET", "/requests").json()
    left.remove({}, None)
    assert sandbox(served, "GET", "/requests").json() == before


def test_a_server_whose_order_was_cut_short_is_removed(left: Left) -> None:
    """The others, which are known, stay for the next one."""
    left.order()
    state = left.state(hetzner.SERVER)
    left.remove({**state, "pending_operations": [pending(hetzner.SERVER, NAME)]}, None)
    assert left.there() >= EVERYTHING - {"BoundServer"}
    assert "BoundServer" not in left.there()


def test_a_server_that_is_still_being_made_is_waited_for(served: ServedApi, left: Left) -> None:
    fault(served, action="create_server", seconds=0.5, error={"code": "server_error", "message": "no room"})
    left.api.servers.create(
        name=NAME,
        server_type=ServerType(name="cx23"),
        image=Image(name="debian-13"),
        location=NUREMBERG,
        labels=OURS,
        public_net=ServerCreatePublicNetwork(ipv4=left.address),
    )
    begun = time.monotonic()
    left.remove(left.state(), BEFORE)
    assert time.monotonic() - begun > 0.3
    assert "BoundServer" not in left.there()


@pytest.mark.parametrize("since", [None, LATER])
def test_what_was_there_before_the_update_stays(left: Left, since: dt.datetime | None) -> None:
    """It is another state's, as far as anybody can tell, unless this one was about to make it."""
    left.order()
    pending_operations = [pending(FIREWALL, "other"), {**pending(SSH_KEY, NAME), "type": "deleting"}]
    left.remove({**left.state(hetzner.SERVER, SSH_KEY), "pending_operations": pending_operations}, since)
    assert left.there() >= EVERYTHING


def test_what_something_else_uses_stays(left: Left) -> None:
    """A server at addresses that are not the state's is another's, and so is what it uses."""
    left.order()
    left.remove({"resources": [entry(SSH_KEY, left.key)]}, BEFORE)
    assert left.there() >= EVERYTHING - {"derp/A"}


def test_what_has_not_the_stacks_label_stays(api: Any) -> None:
    address = new_address(api, labels={"derp-relays.stack": "derp-other"})
    api.ssh_keys.create(name=NAME, public_key=KEY)
    began = [pending(SSH_KEY, NAME), pending(PRIMARY_IP, str(address.name))]
    state = {"pending_operations": began}
    hetzner.remove_leftovers(api, STACK, state, BEFORE, Progress(Console(file=io.StringIO())))
    assert [each.id for each in api.primary_ips.get_all()] == [address.id]
    assert len(api.ssh_keys.get_all()) == 1


def test_records_that_an_update_goes_on_with_stay(left: Left) -> None:
    """Those of sites that the state has, or that are wanted by now; a thousand are not made twice."""
    for name in ("blog", "shop", "gone"):
        left.zone.create_rrset(name=name, type="A", records=[ZoneRecord("203.0.113.9")], labels=OURS)
    state = left.state()
    state["resources"].append(site_records("shop"))
    left.remove(state, BEFORE, wanted=["blog.example.com"])
    assert left.there() >= {"derp/A", "www/A", "blog/A", "shop/A"}
    assert "gone/A" not in left.there()
    left.remove({}, BEFORE)
    assert not left.there() & {"derp/A", "blog/A", "shop/A"}
    assert "www/A" in left.there()


def test_records_that_are_those_of_sites_by_now() -> None:
    urn = "urn:pulumi:nbg::derp-relays::derp-relays:components:HetznerHost$hcloud:index/zoneRrset:ZoneRrset::"
    resources = [
        {"type": RECORD, "urn": f"{urn}{name} {type_}", "inputs": {"zone": zone}}
        for name, type_, zone in (
            ("derp.example.com", "A", "example.com"),
            ("blog.example.com", "A", "example.com"),
            ("blog.example.com", "AAAA", "example.com"),
            ("shop.example.com", "A", "example.org"),
            ("old.example.com", "A", "example.com"),
        )
    ]
    found = hetzner.records_of_sites({"resources": resources}, settings(*SITES, dnsZone="example.com"))
    assert found == [f"{urn}blog.example.com A", f"{urn}blog.example.com AAAA"]


def test_an_api_that_does_not_remove_is_told(served: ServedApi, left: Left) -> None:
    fault(served, method="DELETE", path="/ssh_keys/.*", status=503, code="unavailable", message="come later")
    error = refused(lambda: left.remove({}, BEFORE))
    assert error.what == "Hetzner Cloud: come later (unavailable)"
    left.remove({}, BEFORE)
    assert not left.there() & EVERYTHING


# -- what an update says

BRIDGE = "  sdk-v2/provider2.go:571: sdk.helper_schema: {}: provider=hcloud@1.43.3"
URN = "urn:pulumi:nbg::derp-relays::derp-relays:components:HetznerHost$hcloud:index/server:Server::host"
REASON = "creation failed (server_error, 100000037)"


@pytest.mark.parametrize(
    "messages",
    [
        # As pulumi-hcloud 1.43.3 gives them: for an order, a failed action, a change and a removal.
        [BRIDGE.format(REASON), f"1 error occurred:\n\t* {REASON}\n\n"],
        [
            BRIDGE.format(REASON),
            f"1 error occurred:\n\t* creating {URN}: 1 error occurred:\n\t* {REASON}\n\n\n\n",
        ],
        [BRIDGE.format(REASON), f"updating {URN}: 1 error occurred:\n\t* {REASON}\n\n"],
        [f"deleting {URN}: 1 error occurred:\n\t* {REASON}\n\n", "update failed"],
    ],
)
def test_a_provider_that_tells_an_error_twice_is_quoted_once(messages: list[str]) -> None:
    account = _Account(Progress(Console(file=io.StringIO())))
    for message in messages:
        urn = "" if message == "update failed" else URN
        said = DiagnosticEvent(
            message=f"<{{%fg 1%}}>{message}<{{%reset%}}>\n", color="raw", severity="error", urn=urn
        )
        account.event(EngineEvent(sequence=1, timestamp=1, diagnostic_event=said))
    assert account.told() == f"Server host: {REASON}"


# -- a state without its server


def test_a_state_without_its_server_and_what_was_on_it() -> None:
    server, provider, network, site = (f"urn:pulumi:nbg::derp::{each}" for each in "spnt")
    resources: list[dict[str, Any]] = [
        {"urn": "urn:stack"},
        {"urn": "urn:ip", "dependencies": []},
        {"urn": server, "dependencies": ["urn:ip"]},
        {
            "urn": "urn:rdns",
            "dependencies": ["urn:ip", server],
            "propertyDependencies": {"address": ["urn:ip", server], "name": None},
        },
        {"urn": provider, "type": "pulumi:providers:docker", "dependencies": [server]},
        {"urn": "urn:other-provider", "type": "pulumi:providers:hcloud"},
        {"urn": network, "provider": f"{provider}::0b8b", "deletedWith": server},
        {"urn": site, "provider": f"{provider}::0b8b", "deletedWith": server, "dependencies": [network]},
        {"urn": "urn:component", "dependencies": None},
    ]
    kept = without(resources, server)
    assert [each["urn"] for each in kept] == [
        "urn:stack",
        "urn:ip",
        "urn:rdns",
        "urn:other-provider",
        "urn:component",
    ]
    (rdns,) = (each for each in kept if each["urn"] == "urn:rdns")
    assert rdns["dependencies"] == ["urn:ip"]
    assert rdns["propertyDependencies"] == {"address": ["urn:ip"], "name": []}
    assert resources[3]["dependencies"] == ["urn:ip", server], "what was given is left as it was"


def test_a_state_whose_server_has_nothing_on_it_yet() -> None:
    resources: list[dict[str, Any]] = [{"urn": "urn:ip"}, {"urn": "urn:server", "dependencies": ["urn:ip"]}]
    assert [each["urn"] for each in without(resources, "urn:server")] == ["urn:ip"]
