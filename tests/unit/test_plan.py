"""Plans made of the events that Pulumi's engine tells in previews, cut down to what they are made of."""

from __future__ import annotations

from typing import Any

import pytest
from pulumi.automation import EngineEvent

from relayctl.plan import Change, Plan, Sessions

CONTAINER = "docker:index/container:Container"
IMAGE = "docker:index/remoteImage:RemoteImage"
NETWORK = "docker:index/network:Network"
VOLUME = "docker:index/volume:Volume"
CONFIGURATION = "pulumi-python:dynamic/caddy:Configuration"
SERVER = "hcloud:index/server:Server"
DOCKER = "pulumi:providers:docker"
STACK = "pulumi:pulumi:Stack"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def event(operation: str, type_: str, name: str, **told: Any) -> EngineEvent:
    """Return the event of a step: ``told`` has the states ``old`` and ``new``, and why."""
    return EngineEvent.from_json({"resourcePreEvent": {"metadata": step(operation, type_, name, **told)}})


def step(operation: str, type_: str, name: str, **told: Any) -> dict[str, Any]:
    """Return a step as Pulumi tells it: what is there before has ``old``, what there is to be ``new``."""
    urn = f"urn:pulumi:test::derp-relays::derp-relays:components:Any${type_}::{name}"
    state = {"type": type_, "urn": urn}
    there, wanted = operation != "create", not operation.startswith("delete")
    states = {
        "old": {**state, **told.get("old", {})} if there else None,
        "new": {**state, **told.get("new", {})} if wanted else None,
    }
    return {"op": operation, "type": type_, "urn": urn, "detailedDiff": None, **told, **states}


def same(type_: str, name: str, **told: Any) -> EngineEvent:
    return event("same", type_, name, **told)


def replaced(type_: str, name: str, *keys: str, **states: Any) -> list[EngineEvent]:
    """Return the three events of what is removed before it is made anew."""
    why = {"keys": list(keys), "diffs": list(keys)} if keys else {}
    return [
        event("delete-replaced", type_, name, **states),
        event("replace", type_, name, **states, **why),
        event("create-replacement", type_, name, **states, **why),
    ]


def image_replaced(program: str, old: str, new: str) -> list[EngineEvent]:
    """Return the events of another image, which is there before the old one goes."""
    states = {"old": {"inputs": {"name": old}}, "new": {"inputs": {"name": new}}}
    why = {"keys": ["name"], "diffs": ["name"]}
    image = f"{program}-built" if new.startswith("derp-relays/") else program
    return [
        event("create-replacement", IMAGE, image, **states, **why),
        event("replace", IMAGE, image, **states, **why),
        *replaced(CONTAINER, program, "image", new={"inputs": {"image": UNKNOWN}}),
        event("delete-replaced", IMAGE, image, old={**states["old"], "delete": True}),
    ]


def configuration(
    old: dict[str, str], new: dict[str, str], delay: str | None = None, operation: str = "update"
) -> EngineEvent:
    """Return the event of a configuration with these sites' digests, as the dynamic provider compares it."""
    before = {"digest": "5fa2", "sites": old} | ({"streamCloseDelay": delay} if delay is not None else {})
    states = {"old": {"inputs": before}, "new": {"inputs": {"digest": "2435", "sites": new}}}
    return event(operation, CONFIGURATION, "configuration", **states)


DERPER, CADDY = same(CONTAINER, "derper"), same(CONTAINER, "caddy")
RUNNING = [same(STACK, "derp-relays-test"), same(NETWORK, "network"), DERPER, CADDY]


def test_where_nothing_changes_that_is_all_that_is_told() -> None:
    plan = Plan.of([*RUNNING, same(VOLUME, "derp_data")])
    assert plan == Plan()
    assert plan.told().plain == "Nothing to change."


def test_sites_are_named_and_keep_sessions() -> None:
    old = {"blog.example.com": "1", "www.example.com": "2", "__defaults": "3"}
    new = {"www.example.com": "4", "new.example.com": "5"}
    plan = Plan.of([*RUNNING, configuration(old, new)])
    assert plan.told().plain.splitlines() == [
        (
            "  update  Caddy's configuration: 1 site added (new.example.com),"
            " 1 site changed (www.example.com), 1 site removed (blog.example.com)"
        ),
        "Relay sessions: kept",
    ]


def test_many_sites_are_counted_in_one_line() -> None:
    plan = Plan.of([*RUNNING, configuration({}, {f"{n:04}.example.com": "1" for n in range(1000)})])
    (change,) = plan.changes
    assert change.properties == (
        "1000 sites added (0000.example.com, 0001.example.com, 0002.example.com, 997 more)",
    )


def test_sites_that_are_not_known_before_are_not_told() -> None:
    unknown: Any = UNKNOWN
    plan = Plan.of([*RUNNING, configuration({}, unknown)])
    assert plan.changes == (Change("update", "Caddy's configuration"),)


def test_what_refresh_finds_is_not_taken_for_what_is_wanted() -> None:
    found = configuration({"blog.example.com": "1"}, {"blog.example.com": "1"}, operation="refresh")
    plan = Plan.of([found, *RUNNING, configuration({"blog.example.com": "1"}, {})])
    assert plan.changes == (
        Change("update", "Caddy's configuration", ("1 site removed (blog.example.com)",)),
    )


def test_how_long_kept_sessions_last_is_told() -> None:
    plan = Plan.of([*RUNNING, configuration({}, {"blog.example.com": "1"}, delay="24h")])
    assert plan.sessions is Sessions.KEPT
    assert plan.told().plain.endswith("Relay sessions: kept, up to 24h (caddy.streamCloseDelay)")


def test_a_reload_ends_sessions_where_the_delay_is_off() -> None:
    plan = Plan.of([*RUNNING, configuration({}, {"blog.example.com": "1"}, delay="0")])
    assert plan.sessions is Sessions.END
    assert plan.reasons == ("Caddy's configuration is reloaded, and caddy.streamCloseDelay was 0",)


def test_another_image_is_told_once_for_image_and_container() -> None:
    plan = Plan.of([*RUNNING[:2], CADDY, *image_replaced("derper", "derper@sha256:1", "derper@sha256:2")])
    assert plan.told().plain.splitlines() == [
        "  replace derper's container: image",
        "  replace derper's image: name",
        (
            "Relay sessions will end: derper's container is replaced (image)."
            " Clients come back by themselves within seconds."
        ),
    ]


@pytest.mark.parametrize(
    ("old", "new", "sessions"),
    [
        ("caddy:2@sha256:1", "caddy:2@sha256:2", Sessions.END),
        ("caddy:2@sha256:1", "caddy:2.11@sha256:1", Sessions.UNKNOWN),
        ("derp-relays/caddy:2.11.4-1", "derp-relays/caddy:2.11.5-2", Sessions.END),
        ("caddy:2", "caddy:3", Sessions.END),
        ("caddy:2@sha256:1", "caddy:3", Sessions.END),
    ],
    ids=["digest", "tag alone", "built", "no digest", "no digest any more"],
)
def test_another_name_of_the_same_image_may_replace_nothing(old: str, new: str, sessions: Sessions) -> None:
    plan = Plan.of([*RUNNING[:2], DERPER, *image_replaced("caddy", old, new)])
    assert plan.sessions is sessions


@pytest.mark.parametrize(
    ("old", "new", "sessions"),
    [
        ("derp-relays/caddy:2.11.4-1", "caddy:2@sha256:1", Sessions.END),
        ("caddy:2@sha256:1", "derp-relays/caddy:2.11.4-1", Sessions.END),
        ("derp-relays/caddy:2.11.4-1", "derp-relays/caddy:2.11.4-1", Sessions.UNKNOWN),
    ],
    ids=["built, then pulled", "pulled, then built", "the same one"],
)
def test_an_image_may_come_from_another_resource(old: str, new: str, sessions: Sessions) -> None:
    changed = [
        event("create", IMAGE, "caddy-built", new={"inputs": {"name": new}}),
        *replaced(CONTAINER, "caddy", "image", new={"inputs": {"image": UNKNOWN}}),
        event("delete", IMAGE, "caddy", old={"inputs": {"name": old}}),
    ]
    plan = Plan.of([*RUNNING[:2], DERPER, *changed])
    assert plan.changes == (
        Change("replace", "Caddy's container", ("image",)),
        Change("delete", "Caddy's image"),
        Change("create", "Caddy's image"),
    )
    assert plan.sessions is sessions


@pytest.mark.parametrize(
    ("there", "sessions"),
    [("sha256:1", Sessions.KEPT), ("sha256:2", Sessions.END), (None, Sessions.END)],
    ids=["the same", "another", "not there"],
)
def test_an_image_that_is_there_under_its_new_name_is_compared_before(
    there: str | None, sessions: Sessions
) -> None:
    """As after going back to an image by its name: taking the edit back replaces nothing."""
    old, new = "derp-relays/caddy:1", "derp-relays/caddy:2"
    events = [
        *image_replaced("caddy", old, new)[:2],
        *replaced(
            CONTAINER,
            "caddy",
            "image",
            old={"inputs": {"image": "sha256:1"}},
            new={"inputs": {"image": UNKNOWN}},
        ),
    ]
    plan = Plan.of([*RUNNING[:2], DERPER, *events], {} if there is None else {new: there})
    assert plan.sessions is sessions


def test_what_may_turn_out_to_be_the_same_is_said_to_be_uncertain() -> None:
    plan = Plan.of([*RUNNING[:2], DERPER, *image_replaced("caddy", "caddy:2@sha256:1", "caddy:3@sha256:1")])
    assert plan.told().plain.endswith(
        "Relay sessions may end: Caddy's container is replaced (image), unless it turns out to be the same."
    )


def test_what_a_trigger_replaces_is_told_though_pulumi_names_nothing() -> None:
    """Ports and subnets are left out of what is compared (components.container, components.network)."""
    ports = [{"inputs": {"ports": [{"external": port}], "envs": []}} for port in (3478, 13478)]
    subnets = [
        {"inputs": {"ipamConfigs": [{"subnet": net}], "ipv6": True}} for net in ("fd12::/64", "fd34::/64")
    ]
    plan = Plan.of(
        [
            *replaced(NETWORK, "network", old=subnets[0], new=subnets[1]),
            *replaced(CONTAINER, "derper", old=ports[0], new=ports[1]),
            CADDY,
        ]
    )
    assert plan.changes == (
        Change("replace", "the network", ("subnet",)),
        Change("replace", "derper's container", ("ports",)),
    )
    assert plan.sessions is Sessions.END


def test_a_cause_is_told_before_what_follows_from_it() -> None:
    """Containers on a network are removed first, without a reason, which comes once they are made anew."""
    containers = [
        each
        for name in ("caddy", "derper")
        for each in (
            event("delete-replaced", CONTAINER, name),
            event("replace", CONTAINER, name),
            event("create-replacement", CONTAINER, name, keys=["networksAdvanced"]),
        )
    ]
    plan = Plan.of([*containers, configuration({}, {}), *replaced(NETWORK, "network")])
    assert plan.changes == (
        Change("replace", "the network"),
        Change("replace", "Caddy's container", ("network",)),
        Change("replace", "derper's container", ("network",)),
        Change("update", "Caddy's configuration"),
    )
    assert plan.reasons[0] == "the network is replaced"
    assert plan.lasting is None


def test_a_network_that_goes_ends_sessions() -> None:
    plan = Plan.of([DERPER, CADDY, event("delete", NETWORK, "network")])
    assert plan.reasons == ("the network is removed",)


def test_metrics_that_are_turned_on_are_told_by_their_network_and_end_sessions() -> None:
    containers = [
        *replaced(CONTAINER, "derper", "envs", "networksAdvanced"),
        *replaced(CONTAINER, "caddy", "networksAdvanced"),
    ]
    plan = Plan.of([*RUNNING[:2], event("create", NETWORK, "metrics"), *containers])
    assert plan.changes == (
        Change("replace", "Caddy's container", ("network",)),
        Change("replace", "derper's container", ("environment", "network")),
        Change("create", "the network for metrics"),
    )
    assert plan.sessions is Sessions.END
    assert plan.reasons == (
        "Caddy's container is replaced (network)",
        "derper's container is replaced (environment, network)",
    )


def test_a_volume_that_goes_takes_its_data_along() -> None:
    plan = Plan.of([*RUNNING, *replaced(VOLUME, "derp_data", "name")])
    assert plan.sessions is Sessions.END
    assert plan.changes == (Change("replace", "the volume derp_data", ("name", "its data is lost")),)


def test_what_docker_changes_in_place_keeps_sessions() -> None:
    changed = event("update", CONTAINER, "caddy", diffs=["memory", "memorySwap"])
    plan = Plan.of([*RUNNING[:2], DERPER, changed])
    assert plan.changes == (Change("update", "Caddy's container", ("memory", "memorySwap")),)
    assert plan.sessions is Sessions.KEPT


def test_an_environment_is_told_by_its_property_alone() -> None:
    """With the memory goes Go's own limit: that replaces the container."""
    secret = {"inputs": {"envs": ["TOKEN=hunter2"], "memory": 600}}
    paths = {"envs[0]": {"diffKind": "update-replace"}, "memory": {"diffKind": "update"}}
    why = {"keys": ["envs"], "diffs": ["envs", "memory"], "detailedDiff": paths}
    changed = [
        event("delete-replaced", CONTAINER, "caddy", old=secret),
        event("replace", CONTAINER, "caddy", old=secret, new=secret, **why),
        event("create-replacement", CONTAINER, "caddy", old=secret, new=secret, **why),
    ]
    plan = Plan.of([*RUNNING[:2], DERPER, *changed])
    assert plan.changes == (Change("replace", "Caddy's container", ("environment",)),)
    assert "hunter2" not in f"{plan} {plan.told().plain}"


def test_values_of_outputs_are_not_told() -> None:
    name, before = "derp-relays-test", {"url": "hunter2", "ipv4": "1"}
    # They are told twice: before and after the program has exported them.
    exported = [
        {"metadata": step("same", STACK, name, old={"outputs": before}, new={"outputs": outputs})}
        for outputs in (before, {**before, "url": "hunter3"})
    ]
    plan = Plan.of([*RUNNING, *(EngineEvent.from_json({"resOutputsEvent": each}) for each in exported)])
    assert plan.changes == (Change("update", "the stack's outputs", ("url",)),)
    assert plan.sessions is Sessions.KEPT
    assert "hunter" not in f"{plan} {plan.told().plain}"


@pytest.mark.parametrize("protected", [True, False])
def test_protection_is_told_though_pulumi_has_no_step_for_it(protected: bool) -> None:  # noqa: FBT001
    states = {"old": {"protect": not protected or None}, "new": {"protect": protected or None}}
    plan = Plan.of([*RUNNING, same(VOLUME, "derp_data", **states)])
    assert plan.changes == (Change("update", "the volume derp_data", ("protection",)),)
    assert plan.sessions is Sessions.KEPT


def test_a_new_stack_has_no_sessions() -> None:
    made = [
        event("create", STACK, "derp-relays-test"),
        event("create", "derp-relays:components:DerperRelay", "derper"),
        event("create", CONTAINER, "derper"),
        event("create", CONTAINER, "caddy"),
        event("create", CONFIGURATION, "configuration", new={"inputs": {"sites": {"www.example.com": "1"}}}),
    ]
    plan = Plan.of(made)
    assert plan.changes == (
        Change("create", "Caddy's configuration", ("1 site added (www.example.com)",)),
        Change("create", "Caddy's container"),
        Change("create", "derper's container"),
    )
    assert plan.sessions is Sessions.NONE_YET
    assert plan.reasons == ()


@pytest.mark.parametrize(
    "derper",
    [
        [event("create", CONTAINER, "derper")],
        # An update was interrupted after it had removed it.
        [event("replace", CONTAINER, "derper"), event("create-replacement", CONTAINER, "derper")],
        [event("update", CONTAINER, "derper", diffs=["mustRun"])],
        [],
    ],
    ids=["gone", "half replaced", "stopped", "never there"],
)
def test_without_one_of_the_two_containers_there_are_no_sessions_to_lose(derper: list[EngineEvent]) -> None:
    plan = Plan.of([*RUNNING[:2], *derper, *replaced(CONTAINER, "caddy", "envs")])
    assert plan.sessions is Sessions.NONE_YET


def test_what_an_interrupted_update_left_goes_without_a_word_on_sessions() -> None:
    left = [
        event("delete-replaced", VOLUME, "derp_data", old={"delete": True}),
        event("delete-replaced", IMAGE, "derper", old={"delete": True}),
    ]
    plan = Plan.of([*RUNNING, *left])
    assert [change.operation for change in plan.changes] == ["delete", "delete"]
    assert all("interrupted" in change.name for change in plan.changes)
    assert plan.sessions is Sessions.KEPT


def test_a_server_made_anew_is_the_one_reason() -> None:
    """Names on it are not known before it is there (components.host.lives_on)."""
    unknown = {"new": {"inputs": {"name": UNKNOWN}}}
    plan = Plan.of(
        [
            *replaced(SERVER, "host", "location"),
            event("update", DOCKER, "host", diffs=["host"]),
            *(e for name in ("derper", "caddy") for e in replaced(CONTAINER, name, "name", **unknown)),
            *replaced(NETWORK, "network", "name", **unknown),
        ]
    )
    assert plan.changes[0] == Change("replace", "the server", ("location",))
    assert plan.reasons == ("the server is replaced (location)",)
    assert plan.told().plain.endswith("Clients come back by themselves once the server is back.")


@pytest.mark.parametrize("container", ["derper", "caddy"])
def test_what_is_replaced_for_unknown_values_alone_may_be_kept(container: str) -> None:
    other = CADDY if container == "derper" else DERPER
    unknown = {"new": {"inputs": {"volumes": [{"volumeName": UNKNOWN}]}}}
    plan = Plan.of([*RUNNING[:2], other, *replaced(CONTAINER, container, "volumes", **unknown)])
    assert plan.sessions is Sessions.UNKNOWN


@pytest.mark.parametrize(
    ("properties", "sessions"),
    [
        (["serverType"], Sessions.END),
        (["labels"], Sessions.KEPT),
        (["backups"], Sessions.KEPT),
    ],
)
def test_a_server_that_is_switched_off_for_a_change_ends_sessions(
    properties: list[str], sessions: Sessions
) -> None:
    plan = Plan.of([*RUNNING, event("update", SERVER, "host", diffs=properties)])
    assert plan.changes == (Change("update", "the server", tuple(properties)),)
    assert plan.sessions is sessions


@pytest.mark.parametrize(
    ("properties", "sessions"), [(["host"], Sessions.UNKNOWN), (["sshOpts"], Sessions.KEPT)]
)
def test_another_way_to_docker_may_lead_to_another_engine(properties: list[str], sessions: Sessions) -> None:
    plan = Plan.of([*RUNNING, event("update", DOCKER, "host", diffs=properties)])
    assert plan.sessions is sessions


@pytest.mark.parametrize(
    ("old", "sessions"),
    [({}, Sessions.UNKNOWN), ({"initErrors": ["is unhealthy"]}, Sessions.KEPT)],
    ids=["provider not known", "not well when it was made"],
)
def test_an_update_without_a_difference_is_one_that_could_not_be_compared(
    old: dict[str, Any], sessions: Sessions
) -> None:
    plan = Plan.of([*RUNNING[:2], CADDY, event("update", CONTAINER, "derper", old=old)])
    assert plan.sessions is sessions


def test_records_and_firewalls_keep_sessions() -> None:
    plan = Plan.of(
        [
            *RUNNING,
            *replaced("hcloud:index/zoneRrset:ZoneRrset", "blog.example.com A", "name"),
            event("update", "hcloud:index/firewall:Firewall", "host", diffs=["rules"]),
        ]
    )
    assert plan.changes == (
        Change("replace", "the DNS record blog.example.com A", ("name",)),
        Change("update", "the firewall", ("rules",)),
    )
    assert plan.sessions is Sessions.KEPT


def test_what_pulumi_only_does_not_know_before_is_not_told() -> None:
    labels = {"old": {"inputs": {"labels": {}}}, "new": {"inputs": {"labels": {"a": "b"}}}}
    changed = event(
        "update", "hcloud:index/primaryIp:PrimaryIp", "ipv4", diffs=["assigneeId", "labels"], **labels
    )
    plan = Plan.of([*RUNNING, changed])
    assert plan.changes == (Change("update", "the ipv4 address", ("labels",)),)
    assert plan.sessions is Sessions.KEPT


def test_many_that_change_alike_are_counted() -> None:
    volumes = [e for n in range(6) for e in replaced(VOLUME, f"volume{n}", "name")]
    plan = Plan.of([*RUNNING, *volumes])
    assert len(plan.changes) == len(plan.reasons) == 6
    change, outcome = plan.told().plain.splitlines()
    assert change == "  replace the volume volume0 and 5 more like it: name, its data is lost"
    assert outcome.count(" is replaced") == 3
    assert "; 3 more." in outcome
