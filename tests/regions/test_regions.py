"""Two regions in one cloud: made, left alone, changed in place, and taken down one after the other.

The tests are in the order of what they do to the regions: each goes on from the one before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relayctl.hetzner import server_urn
from sandbox.machines.network import NAMESPACES
from ssh.keys import new_private_key, public_key
from tests.regions.cloud import Cloud
from tests.regions.region import ZONE, Region, changes_asked_for, cloud_with_zone, processes_with, records

REGIONS = {"nbg": (901, "nbg1"), "ash": (902, "ash")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud_with_zone(tmp_path_factory.mktemp("regions")) as one:
        yield one


@pytest.fixture(scope="module")
def regions(made: Cloud) -> Mapping[str, Region]:
    """Bring up all regions at once, each with a record for its relay and for a site."""
    found = {stack: Region(made, stack) for stack in REGIONS}
    for stack, (number, location) in REGIONS.items():
        found[stack].write_settings(number, location)
    with ThreadPoolExecutor() as pool:
        for region, said in zip(found.values(), pool.map(Region.up, found.values()), strict=True):
            assert f"The relay is up: https://{region.domain}" in said
    return found


@pytest.fixture
def nbg(regions: Mapping[str, Region]) -> Region:
    return regions["nbg"]


@pytest.fixture
def ash(regions: Mapping[str, Region]) -> Region:
    return regions["ash"]


def test_two_regions_have_a_server_addresses_and_names_each(nbg: Region, ash: Region) -> None:
    assert len(nbg.cloud.client.servers.get_all()) == len(REGIONS)
    assert {region.stack: region.server.location.name for region in (nbg, ash)} == {
        "nbg": "nbg1",
        "ash": "ash",
    }
    expected: dict[str, list[str]] = {}
    for region in (nbg, ash):
        ipv4, ipv6 = region.addresses["ipv4"], region.addresses["ipv6"].replace("/64", "1")
        for name in (f"derp-{region.stack}", f"blog-{region.stack}"):
            expected |= {f"{name} A": [ipv4], f"{name} AAAA": [ipv6]}
        assert region.server.public_net.ipv4.dns_ptr == region.domain
    assert records(nbg.cloud) == expected
    assert nbg.key(nbg.root()) != ash.key(ash.root())


def test_up_again_changes_nothing(nbg: Region) -> None:
    state, containers, asked = nbg.state(), nbg.containers(), changes_asked_for(nbg.cloud)
    nbg.up()
    assert nbg.state() == state
    assert nbg.containers() == containers
    assert changes_asked_for(nbg.cloud) == asked


def test_a_plain_refresh_finds_nothing_to_change(ash: Region) -> None:
    for arguments in (
        ("refresh", "--yes", "--skip-preview", "--expect-no-changes"),
        ("preview", "--diff", "--expect-no-changes"),
    ):
        done = ash.pulumi(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_records_of_before_all_sites_had_one_resource_are_taken_over(ash: Region, tmp_path: Path) -> None:
    """Pulumi would remove them after the update, and the site would have none."""
    exported = json.loads(ash.pulumi("stack", "export").stdout)
    resources = exported["deployment"]["resources"]
    kept = [each for each in resources if not each["urn"].endswith("::sites")]
    assert len(kept) == len(resources) - 2, "the records of sites, and their provider"
    of_relay = [each for each in kept if each["type"].endswith(":ZoneRrset")]
    of_site = json.loads(json.dumps(of_relay).replace("derp-ash.example.com ", "blog-ash.example.com "))
    for each in of_site:
        each["id"] = each["outputs"]["id"] = each["id"].replace("derp-", "blog-")
        each["inputs"]["name"] = each["outputs"]["name"] = "blog-ash"
    exported["deployment"]["resources"] = [*kept, *of_site]
    (tmp_path / "state.json").write_text(json.dumps(exported))
    done = ash.pulumi("stack", "import", "--file", str(tmp_path / "state.json"))
    assert done.returncode == 0, done.stderr
    zone = ash.cloud.client.zones.get(ZONE)
    stack_label = {"derp-relays.stack": "derp-ash"}
    for type_ in ("A", "AAAA"):
        zone.get_rrset("blog-ash", type_).update_rrset(labels=stack_label)
    before, asked = records(ash.cloud), len(changes_asked_for(ash.cloud))
    ash.up()
    assert records(ash.cloud) == before
    assert {line.partition(" ")[0] for line in changes_asked_for(ash.cloud)[asked:]} == {"PUT"}
    assert len([urn for urn in ash.state() if ":ZoneRrset::" in urn]) == len(of_relay)
    assert [urn for urn in ash.state() if urn.endswith(":SiteRecords::sites")]


def test_another_image_and_another_key_are_for_the_next_server(nbg: Region, tmp_path: Path) -> None:
    """Both are in the user data, and a server is made anew when it is asked for by name alone."""
    key = new_private_key("a person's own")
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(key)
    (tmp_path / "key.pub").write_text(public_key(key))
    nbg.edit_host(image="ubuntu-24.04", deployKey=str(tmp_path / "key"))
    state, containers, asked = nbg.state(), nbg.containers(), changes_asked_for(nbg.cloud)
    nbg.up()
    assert nbg.state() == state
    assert nbg.containers() == containers
    assert changes_asked_for(nbg.cloud) == asked


def test_another_server_type_keeps_server_and_containers(nbg: Region) -> None:
    root, containers, server = nbg.root(), nbg.containers(), nbg.server
    key = nbg.key(root)
    assert server.server_type.name == "cx23"
    nbg.edit_host(serverType="cx33")
    nbg.up()
    assert (nbg.server.id, nbg.server.server_type.name, nbg.server.status) == (server.id, "cx33", "running")
    assert nbg.containers() == containers
    assert nbg.key(root) == key


def test_a_replacement_that_would_lose_volumes_is_refused(nbg: Region) -> None:
    root, containers, server, state = nbg.root(), nbg.containers(), nbg.server.id, nbg.state()
    key, asked = nbg.key(root), changes_asked_for(nbg.cloud)
    done = nbg.pulumi("up", "--yes", "--skip-preview", "--replace", server_urn("nbg"))
    assert done.returncode != 0, done.stdout
    assert "protect" in done.stdout + done.stderr
    assert (nbg.server.id, nbg.state(), nbg.containers()) == (server, state, containers)
    assert changes_asked_for(nbg.cloud) == asked
    assert nbg.key(root) == key


def test_down_without_the_server_leaves_the_other_region_alone(nbg: Region, ash: Region) -> None:
    key, containers = ash.key(ash.root()), ash.containers()
    nbg.vanish()
    nbg.relayctl("down", "nbg", "--volumes")
    made = nbg.cloud
    assert [server.name for server in made.client.servers.get_all()] == ["derp-ash"]
    assert nbg.addresses == {}
    assert [each.name for each in made.client.firewalls.get_all()] == ["derp-ash"]
    assert [each.name for each in made.client.ssh_keys.get_all()] == ["derp-ash"]
    assert not [name for name in records(made) if "nbg" in name]
    assert (ash.containers(), ash.key(ash.root())) == (containers, key)


def test_down_leaves_nothing(ash: Region) -> None:
    """The last test: nothing of a region is left in the cloud, nor on this machine but its files."""
    namespaces = f"*-{ash.server.id}"
    assert list(NAMESPACES.glob(namespaces))
    ash.relayctl("down", "ash", "--volumes")
    client = ash.cloud.client
    kinds = (client.servers, client.primary_ips, client.firewalls, client.ssh_keys, client.placement_groups)
    assert [one for kind in kinds for one in kind.get_all()] == []
    assert records(ash.cloud) == {}
    assert not list(NAMESPACES.glob(namespaces))
    assert processes_with(str(ash.cloud.checkout.folder)) == {}
    with ash.cloud.checkout.pulumi() as pulumi:
        assert json.loads(pulumi("stack", "ls", "--json").stdout) == []
