"""The provider of sites' DNS records, against the sandbox's API."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hcloud
import pytest
from hcloud.zones import ZoneRecord

from components import hetzner_api, site_records
from components.site_records import SiteRecordsError, _Provider
from sandbox.hcloud_api import ServedApi, serve
from tests.unit.served_api import asked, changes, fault, quick

STACK = {"derp-relays.stack": "derp-nbg"}
OURS = {**STACK, "derp-relays.records": "sites"}
V4, V6 = "203.0.113.9", "2001:db8:9::1"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less between tries than seconds, and leave Python's errors to the other tests as they are."""
    monkeypatch.setattr(site_records, "api_client", lambda *given: quick(hetzner_api.api_client(*given)))
    monkeypatch.setattr(site_records, "_POLL", 0.01)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    monkeypatch.delenv("HCLOUD_TOKEN", raising=False)
    monkeypatch.delenv("HCLOUD_ENDPOINT", raising=False)


@pytest.fixture
def served() -> Iterator[ServedApi]:
    with serve() as api:
        yield api


@pytest.fixture
def zone(served: ServedApi) -> Any:
    return new_zone(served)


def new_zone(served: ServedApi, name: str = "example.com") -> Any:
    client = quick(hcloud.Client(served.token, api_endpoint=served.endpoint))
    return client.zones.create(name=name, mode="primary").zone


def props(served: ServedApi, *names: str, **others: Any) -> dict[str, Any]:
    """Return what Pulumi hands over: numbers are floating-point ones, and what is null is not there."""
    given = {
        "zone": "example.com",
        "names": sorted(names),
        "ipv4": V4,
        "ipv6": V6,
        "ttl": 300.0,
        "labels": OURS,
        "token": served.token,
        "endpoint": served.endpoint,
        **others,
    }
    return {key: value for key, value in given.items() if value is not None}


def create(given: dict[str, Any]) -> dict[str, Any]:
    return dict(_Provider().create(given).outs or {})


def update(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return dict(_Provider().update("derp-nbg", old, new).outs or {})


def read(state: dict[str, Any]) -> dict[str, Any]:
    return dict(_Provider().read("derp-nbg", state).outs or {})


def changes_of(old: dict[str, Any], new: dict[str, Any]) -> bool | None:
    return _Provider().diff("derp-nbg", old, new).changes


def there(zone: Any) -> dict[str, str]:
    """Return the values of the zone's addresses by id."""
    return {
        str(each.id): ",".join(record.value for record in each.records)
        for each in zone.get_rrset_all(type=["A", "AAAA", "CNAME"])
    }


def put(zone: Any, name: str, type_: str = "A", value: str = "192.0.2.1", **labels: Any) -> None:
    zone.create_rrset(name=name, type=type_, records=[ZoneRecord(value)], **labels)


def refused(call: Callable[[], Any]) -> str:
    """Return what is said of an error, which must be the one line that Pulumi then shows."""
    with pytest.raises(SiteRecordsError) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value, limit=sys.tracebacklimit)).splitlines()
    assert len(shown) == 1, shown
    return str(caught.value)


# -- what is made, changed and removed


def test_every_name_leads_to_both_addresses(served: ServedApi, zone: Any) -> None:
    given = props(served, "blog", "@")
    made = _Provider().create(given)
    assert (made.id, made.outs) == ("derp-nbg", given)
    assert there(zone) == {"@/A": V4, "@/AAAA": V6, "blog/A": V4, "blog/AAAA": V6}
    for each in zone.get_rrset_all(label_selector="derp-relays.records=sites"):
        assert (each.ttl, each.labels) == (300, OURS)
    assert read(given) == given
    assert not changes_of(given, given)


def test_without_ipv6_there_are_no_records_of_it(served: ServedApi, zone: Any) -> None:
    given = create(props(served, "blog", ipv6=None))
    assert there(zone) == {"blog/A": V4}
    both = update(given, props(served, "blog"))
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6}
    update(both, given)
    assert there(zone) == {"blog/A": V4}


def test_no_names_are_no_records(served: ServedApi, zone: Any) -> None:
    given = create(props(served))
    assert there(zone) == {}
    assert read(given) == given
    full = update(given, props(served, "blog"))
    assert len(there(zone)) == 2
    update(full, given)
    assert there(zone) == {}


@pytest.mark.parametrize(
    ("new", "requests"),
    [
        ({"ttl": 600.0}, ["POST {}/blog/A/actions/change_ttl", "POST {}/blog/AAAA/actions/change_ttl"]),
        ({"ipv4": "203.0.113.10"}, ["POST {}/blog/A/actions/set_records"]),
        ({"labels": {**OURS, "team": "network"}}, ["PUT {}/blog/A", "PUT {}/blog/AAAA"]),
        ({"names": ["blog", "www"]}, ["POST {}", "POST {}"]),
        ({"names": []}, ["DELETE {}/blog/A", "DELETE {}/blog/AAAA"]),
    ],
)
@pytest.mark.usefixtures("zone")
def test_what_differs_alone_is_changed(served: ServedApi, new: dict[str, Any], requests: list[str]) -> None:
    old = create(props(served, "blog"))
    before = len(changes(served))
    assert changes_of(old, {**old, **new})
    assert read(update(old, {**old, **new})) == {**old, **new}
    told = [re.sub(r"/zones/[^/]+/rrsets", "{}", line) for line in changes(served)[before:]]
    assert told == requests


@pytest.mark.usefixtures("zone")
def test_another_token_is_kept_and_changes_no_record(served: ServedApi) -> None:
    """Of the state's a refresh makes use, when the other one is no good any more."""
    old = create(props(served, "blog", token="x" * 64) | {"token": served.token})
    before = len(changes(served))
    new = {**old, "token": "y" * 64}
    assert changes_of(old, new)
    assert update(new, old)["token"] == served.token
    assert changes(served)[before:] == []


def test_another_zone_gets_the_records_before_the_first_one_loses_them(served: ServedApi, zone: Any) -> None:
    old, other = create(props(served, "blog")), new_zone(served, "example.org")
    put(other, "blog")
    new = props(served, "blog", zone="example.org")
    assert "blog.example.org A" in refused(lambda: update(old, new))
    assert len(there(zone)) == 2
    other.get_rrset("blog", "A").delete_rrset()
    update(old, new)
    assert there(zone) == {}
    assert there(other) == {"blog/A": V4, "blog/AAAA": V6}


def test_removal_takes_what_is_the_sites_alone(served: ServedApi, zone: Any) -> None:
    put(zone, "derp", labels=STACK)
    put(zone, "other", labels={**OURS, "derp-relays.stack": "derp-ash"})
    put(zone, "www")
    given = create(props(served, "blog", "shop"))
    _Provider().delete("derp-nbg", given)
    assert there(zone).keys() == {"derp/A", "other/A", "www/A"}
    _Provider().delete("derp-nbg", given)
    zone.delete()
    _Provider().delete("derp-nbg", given)


def test_an_update_leaves_the_relays_records_and_others_alone(served: ServedApi, zone: Any) -> None:
    put(zone, "derp", labels=STACK)
    put(zone, "other", labels={**OURS, "derp-relays.stack": "derp-ash"})
    given = create(props(served, "blog"))
    update(given, props(served))
    assert there(zone).keys() == {"derp/A", "other/A"}


def test_a_record_that_was_the_stacks_is_taken_over(served: ServedApi, zone: Any) -> None:
    """As of before all sites' were one resource."""
    put(zone, "blog", value=V4, labels=STACK, ttl=300)
    create(props(served, "blog"))
    assert zone.get_rrset("blog", "A").labels == OURS
    assert len([line for line in changes(served) if line.startswith("PUT ")]) == 1
    assert len(there(zone)) == 2


# -- what is somebody else's


@pytest.mark.parametrize(
    ("type_", "value", "labels", "told"),
    [
        ("A", V4, {}, "shop.example.com A."),
        ("AAAA", V6, {"team": "network"}, "shop.example.com AAAA."),
        ("A", V4, {"derp-relays.stack": "derp-ash"}, "shop.example.com A (of derp-ash)."),
        ("CNAME", "example.net.", {}, "shop.example.com CNAME."),
        ("CNAME", "example.net.", STACK, "shop.example.com CNAME (of derp-nbg)."),
    ],
)
def test_what_is_in_the_way_is_refused_before_anything_is_changed(  # noqa: PLR0913, PLR0917 - one of each
    served: ServedApi, zone: Any, type_: str, value: str, labels: dict[str, str], told: str
) -> None:
    put(zone, "shop", type_, value, labels=labels)
    before, records = changes(served), there(zone)
    said = refused(lambda: create(props(served, "blog", "shop")))
    assert f"records of sites' names that are not this stack's: {told} No record" in said
    assert "take the names out of sites in the stack's file" in said
    assert changes(served) == before
    old = create(props(served, "blog"))
    before = changes(served)
    assert told in refused(lambda: update(old, props(served, "shop")))
    assert changes(served) == before
    assert there(zone) == records | {"blog/A": V4, "blog/AAAA": V6}


def test_of_many_in_the_way_some_are_named(served: ServedApi, zone: Any) -> None:
    names = [f"shop{number}" for number in range(9)]
    for name in names:
        put(zone, name)
    said = refused(lambda: create(props(served, *names)))
    assert "shop0.example.com A, " in said
    assert "shop4.example.com A, 4 more. No record" in said


def test_what_an_address_can_be_beside_is_not_in_the_way(served: ServedApi, zone: Any) -> None:
    put(zone, "blog", "TXT", '"a text"')
    put(zone, "blog", "AAAA", V6)
    create(props(served, "blog", ipv6=None))
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6}


def test_what_somebody_makes_meanwhile_is_not_taken(served: ServedApi, zone: Any) -> None:
    fault(served, method="POST", path="/zones/example.com/rrsets", delay=1)
    said: list[str] = []
    run = threading.Thread(target=lambda: said.append(refused(lambda: create(props(served, "blog")))))
    run.start()
    while "GET /zones/example.com/rrsets" not in asked(served):
        time.sleep(0.01)
    put(zone, "blog")
    run.join()
    assert "not this stack's: blog.example.com A. No record" in said[0]
    assert there(zone) == {"blog/A": "192.0.2.1"}


# -- drift


def removed(zone: Any) -> None:
    zone.get_rrset("blog", "AAAA").delete_rrset()


def led_elsewhere(zone: Any) -> None:
    zone.get_rrset("blog", "A").set_rrset_records([ZoneRecord("192.0.2.1")])


def one_more(zone: Any) -> None:
    zone.get_rrset("blog", "A").add_rrset_records([ZoneRecord("192.0.2.1")])


def longer(zone: Any) -> None:
    zone.get_rrset("blog", "A").change_rrset_ttl(3600)


def labelled(zone: Any) -> None:
    zone.get_rrset("blog", "A").update_rrset(labels={**OURS, "team": "network"})


def not_of_sites(zone: Any) -> None:
    zone.get_rrset("blog", "A").update_rrset(labels=STACK)


@pytest.mark.parametrize("edit", [removed, led_elsewhere, one_more, longer, labelled, not_of_sites])
def test_what_was_changed_elsewhere_is_told_and_mended(
    served: ServedApi, zone: Any, edit: Callable[[Any], None]
) -> None:
    given = create(props(served, "blog", "shop"))
    edit(zone)
    found = read(given)
    assert found == {**given, "names": ["shop"]}
    assert changes_of(found, given)
    before = len(changes(served))
    assert read(update(found, given)) == given
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6, "shop/A": V4, "shop/AAAA": V6}
    assert not [line for line in changes(served)[before:] if "shop" in line]


def test_what_a_failed_update_left_is_told_and_removed(served: ServedApi, zone: Any) -> None:
    given = create(props(served, "blog"))
    put(zone, "shop", labels=OURS)
    found = read(given)
    assert found["names"] == ["blog", "shop"]
    update(found, given)
    assert there(zone).keys() == {"blog/A", "blog/AAAA"}


def test_records_of_ipv6_that_are_too_many_are_told(served: ServedApi, zone: Any) -> None:
    given = create(props(served, "blog", ipv6=None))
    put(zone, "blog", "AAAA", V6, labels=OURS)
    found = read(given)
    assert found["names"] == []
    update(found, given)
    assert there(zone) == {"blog/A": V4}


def test_a_zone_that_is_gone(served: ServedApi, zone: Any) -> None:
    given = create(props(served, "blog"))
    zone.delete()
    assert not _Provider().read("derp-nbg", given).id, "Pulumi then makes it anew"
    said = refused(lambda: create(given))
    assert said.startswith("this project at Hetzner has no zone example.com. ")
    assert "host.dnsZone" in said


# -- an API that fails


@pytest.mark.parametrize(
    ("method", "path", "number"),
    [
        ("GET", "/zones/example.com/rrsets", 2),
        ("POST", "/zones/example.com/rrsets", 4),
        ("DELETE", "/zones/[^/]+/rrsets/.*", 2),
    ],
)
def test_requests_beyond_the_limit_are_repeated(
    served: ServedApi, zone: Any, method: str, path: str, number: int
) -> None:
    limit = {"status": 429, "code": "rate_limit_exceeded", "message": "slow down"}
    fault(served, method=method, path=path, times=3, **limit)
    given = create(props(served, "blog", "shop"))
    update(given, props(served, "blog"))
    assert len([line for line in asked(served) if re.fullmatch(f"{method} {path}", line)]) == number + 3
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6}


def test_a_run_that_a_limit_ended_is_gone_on_from(tmp_path: Path) -> None:
    names = [f"site{number}" for number in range(20)]
    with serve(folder=tmp_path, requests_per_hour=15) as served:
        new_zone(served)
        said = refused(lambda: create(props(served, *names)))
        assert re.fullmatch(
            r"site\d+\.example\.com A+ could not be put\. Hetzner Cloud: rate limit exceeded"
            r" \(rate_limit_exceeded\); run it again: what was done is kept\.",
            said,
        )
    with serve(folder=tmp_path) as served:
        zone = hcloud.Client(served.token, api_endpoint=served.endpoint).zones.get("example.com")
        made = there(zone)
        assert len(made) == 13, "all that the limit left beside the zone and the list"
        create(props(served, *names))
        assert len(changes(served)) == 40 - len(made)
        assert len(there(zone)) == 40


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/rrsets"),
        ("POST", "/rrsets/.*/change_ttl"),
        ("POST", "/rrsets/.*/set_records"),
        ("PUT", "/rrsets/.*"),
        ("DELETE", "/rrsets/.*"),
    ],
)
def test_an_answer_that_is_lost_doubles_nothing(served: ServedApi, zone: Any, method: str, path: str) -> None:
    put(zone, "blog", labels=STACK)
    before = len(changes(served))
    lost = {"status": 504, "code": "timeout", "message": "no answer", "applied": True}
    fault(served, method=method, path=f"/zones/[^/]+{path}", times=1, **lost)
    given = create(props(served, "blog", "shop"))
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6, "shop/A": V4, "shop/AAAA": V6}
    update(given, props(served, "blog"))
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6}
    assert read(props(served, "blog")) == props(served, "blog")
    assert len(changes(served)) - before == 3 + 3 + 2 + 1, "one is asked for once more"


def test_what_takes_time_is_waited_for_at_once(served: ServedApi, zone: Any) -> None:
    fault(served, action="create_rrset", times=0, seconds=0.5)
    begun = time.monotonic()
    create(props(served, *(f"site{number}" for number in range(10))))
    assert 0.4 < time.monotonic() - begun < 4, "one after the other it would be 10 seconds"
    assert {action.status for action in zone.get_actions()} == {"success"}


def test_what_takes_too_long_is_told(served: ServedApi, zone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_records, "_POLLS", 3)
    fault(served, action="create_rrset", seconds=1)
    said = refused(lambda: create(props(served, "blog")))
    assert said.startswith("the zone example.com does not take blog.example.com A within 0 seconds.")
    create(props(served, "blog"))
    assert there(zone).keys() == {"blog/A", "blog/AAAA"}


def test_what_the_zone_does_not_take_is_told_and_made_the_next_time(served: ServedApi, zone: Any) -> None:
    failure = {"code": "server_error", "message": "no name server took it"}
    fault(served, action="create_rrset", seconds=0.1, error=failure)
    given = props(served, "blog", "shop")
    said = refused(lambda: create(given))
    assert said.startswith("the zone example.com did not take blog.example.com A. ")
    assert "no name server took it" in said
    assert there(zone).keys() == {"blog/AAAA", "shop/A", "shop/AAAA"}
    assert create(given) == given
    assert len(there(zone)) == 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"token": None},
            "there is no API token for Hetzner Cloud, for the records of sites: export",
        ),
        ({"token": "x" * 64}, "Hetzner Cloud does not know the API token; make a new one in the Hetzner Con"),
        ({"endpoint": "http://127.0.0.1:1/v1"}, "Hetzner Cloud's API does not answer: "),
    ],
)
@pytest.mark.usefixtures("zone")
def test_an_api_that_cannot_be_asked(served: ServedApi, given: dict[str, Any], told: str) -> None:
    for call in (
        lambda: create(props(served, "blog", **given)),
        lambda: read(props(served, "blog", **given)),
        lambda: _Provider().delete("derp-nbg", props(served, "blog", **given)),
    ):
        said = refused(call)
        assert told in said
        assert "xxx" not in said


def test_token_and_endpoint_of_the_environment(
    served: ServedApi, zone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HCLOUD_TOKEN", served.token)
    monkeypatch.setenv("HCLOUD_ENDPOINT", served.endpoint)
    create(props(served, "blog", token=None, endpoint=None))
    assert there(zone) == {"blog/A": V4, "blog/AAAA": V6}


# -- how much is asked


def test_a_thousand_names_are_made_once_and_then_only_what_changes() -> None:
    with serve(requests_per_hour=100_000) as served:
        zone = new_zone(served)
        names = [f"site{number}" for number in range(1000)]

        def requests_of(call: Callable[[], Any]) -> int:
            before = len(asked(served))
            call()
            return len(asked(served)) - before

        # With IPv6 it is twice as many: the API's limit is 3600 an hour.
        given = props(served, *names, ipv6=None)
        assert requests_of(lambda: create(given)) == 1 + 1000
        assert requests_of(lambda: read(given)) == 20
        new = props(served, *names[1:], "blog", ipv6=None)
        assert requests_of(lambda: update(given, new)) == 20 + 2
        assert requests_of(lambda: update(new, new)) == 20
        assert len(there(zone)) == 1000
        assert requests_of(lambda: _Provider().delete("derp-nbg", new)) == 20 + 1000
        assert there(zone) == {}
