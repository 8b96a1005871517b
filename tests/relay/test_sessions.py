"""Relay sessions while sites and images change: Tailscale's own client holds them and counts every packet."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery import Delivered, DeliveryError, content_of, deliver
from images import built_image
from images.recipe import host_goarch
from settings import settings_from
from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.relay.programs import program
from tests.relay.running_relay import CADDY, DERPER, RunningRelay, running_relay

PAIRS = 25
# Go's 50 ms: 1.6 s of packets fit derper's queue for a client, however busy the machine is meanwhile.
INTERVAL = "50ms"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def relay(host: DockerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRelay]:
    folder = tmp_path_factory.mktemp("relay")
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text("<h1>a folder</h1>")
    with running_relay(host, folder, network={"name": "sessions-test"}, volumes={"prefix": "s_"}) as made:
        yield made


@pytest.fixture
def delivering(relay: RunningRelay) -> Callable[..., Delivered]:
    """Return the step of an update that changes sites, by itself: for settings, merged into the relay's."""
    client = relay.host.client()

    def change(**changed: Any) -> Delivered:
        return deliver(
            client,
            content_of(settings_from({**relay.settings, **changed}, "a test"), STACK),
            {},
            caddy=str(client.containers.get(CADDY).id),
            program=str(client.images.get(built_image("deliver", host_goarch()).name).id),
            stack=STACK,
        )

    return change


def sites(number: int) -> list[dict[str, Any]]:
    """Return from none to nine sites, of every kind, of which some are new each time and some are gone."""
    kinds: list[dict[str, Any]] = [
        {"upstream": f"{DERPER}:80"},
        {"redirect": f"https://elsewhere{number}.example.com"},
        {"snippet": f"respond {number}"},
    ]
    return [{"names": [f"s{number % 7}-{n}.localhost"], **kinds[n % 3]} for n in range(number % 10)]


def test_fifty_clients_exchange_packets_through_a_hundred_changes_of_sites(
    relay: RunningRelay, delivering: Callable[..., Delivered], tmp_path: Path
) -> None:
    with relay.sessions(tmp_path, pairs=PAIRS, interval=INTERVAL) as running:
        # whole updates: a site is added, changed and removed
        www = {"names": ["www.localhost"], "folder": str(relay.checkout.folder / "www")}
        assert "Relay sessions: kept" in relay.up(sites=[www])
        assert "<h1>a folder</h1>" in relay.get("www.localhost")
        (relay.checkout.folder / "www" / "index.html").write_text("<h1>another</h1>")
        relay.up(sites=[www])
        assert "<h1>another</h1>" in relay.get("www.localhost")
        relay.up(sites=[])
        # what they do about sites, by itself
        heaps = [delivering(sites=sites(number)).heap for number in range(97)]
        assert relay.get("s5-2.localhost").endswith("96")
        report = running.end()
    assert report.sessions == 2 * PAIRS
    assert report.session_drops == ()
    assert report.lost == report.lost_in_outages == report.duplicated == report.reordered == 0
    assert report.sent == report.received > 2 * PAIRS * 100
    assert report.longest_pause < 1.5
    # One configuration is held by the sessions, and one serves: docs/upgrades.md
    assert max(heaps[10:]) < heaps[0] + 4 * MEBIBYTE


def test_configurations_that_sessions_hold_are_let_go_with_them_and_have_a_bound(
    relay: RunningRelay, delivering: Callable[..., Delivered], tmp_path: Path
) -> None:
    """Sessions of ten configurations: each holds its own, and all are let go once the sessions end."""
    many = [{"names": [f"m{n}.localhost"], "redirect": "https://example.com"} for n in range(200)]

    def change(number: int) -> int:
        return delivering(sites=[*many, {"names": ["n.localhost"], "snippet": f"respond {number}"}]).heap

    before = change(0)
    with contextlib.ExitStack() as opened:
        for number in range(1, 11):
            folder = tmp_path / str(number)
            folder.mkdir()
            opened.enter_context(relay.sessions(folder, pairs=1, interval="200ms"))
            after = change(number)
        each = (after - before) / 10
    let_go = [change(number) for number in range(11, 14)][-1]
    assert 0 < each < 3 * MEBIBYTE
    assert let_go < before + 5 * each


def test_no_configuration_is_loaded_that_might_not_fit(
    relay: RunningRelay, delivering: Callable[..., Delivered], monkeypatch: pytest.MonkeyPatch
) -> None:
    delivering(sites=[{"names": ["fits.localhost"], "snippet": "respond fits"}])
    # as if what sessions hold had come near the limit
    monkeypatch.setattr("delivery.caddy._HEAP_SHARE", 0.001)
    with pytest.raises(DeliveryError, match=r"Caddy holds \d+ MiB.* its 512 MiB.* Nothing was changed"):
        delivering(sites=[{"names": ["more.localhost"], "snippet": "respond more"}])
    assert relay.get("fits.localhost").endswith("fits")


def test_sessions_on_an_earlier_configuration_end_after_the_delay(
    relay: RunningRelay, delivering: Callable[..., Delivered], tmp_path: Path
) -> None:
    caddy = {**relay.settings["caddy"], "streamCloseDelay": "5s"}
    delivering(caddy=caddy)
    with relay.sessions(tmp_path, pairs=PAIRS, interval=INTERVAL) as running:
        before = time.monotonic()
        delivering(caddy=caddy, sites=sites(3))
        taken = time.monotonic() - before
        time.sleep(8)
        report = running.end()
    assert {drop.client for drop in report.session_drops} == set(range(2 * PAIRS))
    since = min(drop.at for drop in report.session_drops)
    assert 5 <= since <= 5 + taken + 1
    assert all(outage.ended for outage in report.outages)


@pytest.mark.parametrize(
    "site",
    [
        {"upstream": f"{DERPER}:80"},
        {"folder": "www"},
        {"redirect": "https://elsewhere.example.com"},
        {"snippet": "respond hello"},
    ],
    ids=["upstream", "folder", "redirect", "snippet"],
)
def test_http3_works_for_every_kind_of_site(
    relay: RunningRelay, delivering: Callable[..., Delivered], site: dict[str, str]
) -> None:
    given = {**site, "folder": str(relay.checkout.folder / "www")} if "folder" in site else site
    delivering(sites=[{"names": ["three.localhost"], **given, "headers": {"X-Kind": "three"}}])
    for address in (relay.outside.here_ipv4, f"[{relay.outside.here_ipv6}]"):
        done = relay.outside.run(
            [program("http3"), "-ca", str(relay.ca), "-connect", f"{address}:443", "https://three.localhost/"]
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("HTTP/3.0 "), done.stdout
        assert "x-kind: three" in done.stdout.lower()


@pytest.mark.parametrize("name", [DERPER, CADDY])
def test_a_new_image_ends_sessions_once_and_clients_come_back_by_themselves(
    relay: RunningRelay, tmp_path: Path, name: str
) -> None:
    client, key = relay.host.client(), relay.server_key()
    current = client.containers.get(name).image.id
    tag = f"test/{name}:new"
    client.images.build(fileobj=io.BytesIO(f"FROM {current}\nLABEL new=1\n".encode()), tag=tag, rm=True)
    group = "derper" if name == DERPER else "caddy"
    changed = {group: {**relay.settings[group], "image": tag, "allowUnpinned": True, "healthcheck": []}}
    with relay.sessions(tmp_path, pairs=PAIRS, interval=INTERVAL) as running:
        assert "Relay sessions will end" in relay.up(**changed)
        report = running.end()
    assert len(report.outages) == 2 * PAIRS
    assert all(outage.ended for outage in report.outages)
    assert max(outage.seconds for outage in report.outages) < 30
    assert relay.server_key() == key
    relay.up()


def test_a_new_image_that_does_not_stay_up_gives_way_to_the_old_one(relay: RunningRelay) -> None:
    """One that is another user by now: beside the relay it runs, and it cannot read the relay's key."""
    client, key = relay.host.client(), relay.server_key()
    current = client.containers.get(DERPER).image
    dockerfile = f"FROM {current.id}\nCOPY --chown=1000 Dockerfile /app/data/\nUSER 1000\n".encode()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        header = tarfile.TarInfo("Dockerfile")
        header.size = len(dockerfile)
        tar.addfile(header, io.BytesIO(dockerfile))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag="test/derper:user", rm=True)
    relay.checkout.write_stack(
        {
            **relay.settings,
            "derper": {
                **relay.settings["derper"],
                "image": "test/derper:user",
                "allowUnpinned": True,
                "healthcheck": [],
            },
        }
    )
    done = relay.checkout.relayctl("up", STACK, timeout=300)
    assert done.returncode == 1
    assert "permission denied" in done.stdout
    assert f"The relay is back on {current.tags[0]}" in done.stdout
    assert client.containers.get(DERPER).image.id == current.id
    assert relay.server_key() == key
    # The edit is taken back, which replaces nothing.
    relay.checkout.write_stack(relay.settings)
    done = relay.checkout.relayctl("up", STACK, "--keep-sessions", timeout=300)
    assert done.returncode == 0, done.stdout


def test_without_a_delay_the_same_change_ends_every_session(
    relay: RunningRelay, delivering: Callable[..., Delivered], tmp_path: Path
) -> None:
    """What the first test proves is up to `stream_close_delay`: the last test here, as it takes it away."""
    caddy = {**relay.settings["caddy"], "streamCloseDelay": "0"}
    delivering(caddy=caddy)
    with relay.sessions(tmp_path, pairs=PAIRS, interval=INTERVAL) as running:
        delivering(caddy=caddy, sites=sites(3))
        report = running.end()
    assert {drop.client for drop in report.session_drops} == set(range(2 * PAIRS))
