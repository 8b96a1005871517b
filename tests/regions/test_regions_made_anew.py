"""A region whose server is made anew: by Pulumi's own means, by name, and because it was gone.

The tests are in the order of what they do to the region: each goes on from the one before.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayctl.hetzner import server_urn
from tests.regions.region import MAKING, Region, cloud_with_zone, records


@pytest.fixture(scope="module")
def nbg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    with cloud_with_zone(tmp_path_factory.mktemp("regions")) as made:
        region = Region(made, "nbg")
        region.write_settings(901, "nbg1")
        region.up()
        yield region


def test_without_protection_a_replacement_has_new_containers_and_the_same_addresses(nbg: Region) -> None:
    root, containers, server, addresses = nbg.root(), nbg.containers(), nbg.server.id, nbg.addresses
    key, named = nbg.key(root), records(nbg.cloud)
    done = nbg.pulumi("state", "unprotect", "--all", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    done = nbg.pulumi("up", "--yes", "--skip-preview", "--replace", server_urn("nbg"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert nbg.server.id != server
    assert (nbg.addresses, records(nbg.cloud)) == (addresses, named)
    assert not set(nbg.containers().values()) & set(containers.values())
    # The volumes were on the server: this is another relay, which is protected as the first one was.
    assert nbg.root() != root
    assert nbg.key(nbg.root()) != key
    assert nbg.volumes_are_protected()


def test_a_rebuild_keeps_addresses_key_and_authority(nbg: Region) -> None:
    root, containers, server, addresses = nbg.root(), nbg.containers(), nbg.server.id, nbg.addresses
    key = nbg.key(root)
    nbg.edit_host(image="ubuntu-24.04")
    nbg.relayctl("rebuild", "nbg")
    assert nbg.server.id != server
    assert nbg.addresses == addresses
    assert nbg.server.image.name == "ubuntu-24.04"
    assert nbg.root() == root
    assert nbg.key(root) == key
    assert not set(nbg.containers().values()) & set(containers.values())
    assert nbg.volumes_are_protected()


def test_a_server_that_lets_nobody_in_is_made_anew_without_its_volumes(nbg: Region) -> None:
    root, server, addresses = nbg.root(), nbg.server.id, nbg.addresses
    # with the connections that are open
    nbg.on_server("sh", "-c", "systemctl stop ssh; pkill -x sshd || true")
    done = nbg.cloud.checkout.relayctl("rebuild", "nbg", timeout=MAKING)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ARGS=--without-volumes" in done.stdout
    assert nbg.server.id == server
    nbg.relayctl("rebuild", "nbg", "--without-volumes")
    assert nbg.server.id != server
    assert nbg.addresses == addresses
    assert nbg.root() != root
    assert nbg.volumes_are_protected()


def test_a_server_that_is_gone_is_made_again(nbg: Region) -> None:
    server, addresses = nbg.server.id, nbg.addresses
    nbg.vanish()
    assert "is gone" in nbg.up()
    assert nbg.server.id != server
    assert nbg.addresses == addresses
    nbg.key(nbg.root())
