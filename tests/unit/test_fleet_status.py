"""What Pulumi's states say of regions, and what of it is told where something is missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from relayctl import command, fleet_status, relays
from relayctl.fleet import Member
from relayctl.prerequisites import cache
from relayctl.prerequisites.progress import Progress
from relayctl.stack import StackMissingError, UpdateFailedError, state_copy
from settings import settings_from
from tests.unit.declared import MINIMAL

CONTAINER = "docker:index/container:Container"
VOLUME = "docker:index/volume:Volume"
PROGRESS = Progress(Console(file=io.StringIO()))
Read = Callable[[str], Mapping[str, Any]]


def state(*types: str, **more: Any) -> dict[str, Any]:
    resources = [{"type": type_, "id": str(n), "urn": str(n)} for n, type_ in enumerate(types)]
    return {"manifest": {"time": "2026-11-24T12:06:01Z"}, "resources": resources, **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what runs leave to each other."""
    monkeypatch.setattr("relayctl.stack.run_folder", lambda: tmp_path)
    monkeypatch.setattr("relayctl.command.run_folder", lambda: tmp_path)
    return tmp_path


def status_of(answer: Mapping[str, Any] | Exception, monkeypatch: pytest.MonkeyPatch) -> fleet_status.Status:
    def read(_: str) -> Mapping[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reader(_: Progress) -> Read:
        return read

    monkeypatch.setattr(relays, "state_reader", reader)
    member = Member("nbg", settings_from(MINIMAL, "stacks/Pulumi.nbg.yaml"))
    (found,) = fleet_status.of([member], PROGRESS, parallel=1)
    return found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (StackMissingError("there is none", "make it"), fleet_status.NEVER_UP),
        (UpdateFailedError("no backend", "mend it"), fleet_status.UNKNOWN),
        (state(VOLUME), fleet_status.DOWN),
        (state(), fleet_status.NEVER_UP),
        ({"manifest": {}}, fleet_status.NEVER_UP),
        (state("pulumi:pulumi:Stack", "pulumi:providers:docker"), fleet_status.NEVER_UP),
        (state("pulumi:pulumi:Stack", VOLUME), fleet_status.DOWN),
        (state(CONTAINER, VOLUME), fleet_status.UP),
        (state(CONTAINER, pending_operations=[{"type": "creating"}]), fleet_status.INTERRUPTED),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_state_says_how_a_region_is(
    answer: Mapping[str, Any] | Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status_of(answer, monkeypatch).state == expected


def test_an_update_that_did_not_end_is_told_and_one_under_way_is_no_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_copy("nbg").with_suffix(".unfinished").touch()
    missing = StackMissingError("there is none", "make it")
    for answer in (missing, state(CONTAINER)):
        assert status_of(answer, monkeypatch).state == fleet_status.INTERRUPTED
        with cache.locked(command.lock_file("nbg"), PROGRESS):
            assert status_of(answer, monkeypatch).state == fleet_status.AT_WORK
    assert command.lock_file("nbg").parent == folder


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_asked_is_told_and_the_rest_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state with containers and without outputs is of an update that never got to its end."""
    found = status_of(state(CONTAINER, VOLUME), monkeypatch)
    assert (found.resources, found.last_update) == (2, "2026-11-24T12:06:01Z")
    assert found.relay is None
    assert "is not up" in found.error
    assert not found.is_well
    with cache.locked(command.lock_file("nbg"), PROGRESS):
        found = status_of(state(CONTAINER, VOLUME), monkeypatch)
    assert (found.state, found.error) == (fleet_status.AT_WORK, "")
    assert found.is_well
