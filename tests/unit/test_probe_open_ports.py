"""Ports that are open and should not be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator, Mapping

import pytest

import probe.open_ports
from probe import Check, Finding, Relay, Status
from probe.open_ports import check_ports


@contextlib.contextmanager
def listening(count: int, address: str = "127.0.0.1") -> Iterator[list[int]]:
    """Listen at free ports."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind((address, 0))
            listener.listen()
            ports.append(listener.getsockname()[1])
        yield ports


def finding_of(
    relay: Relay, *, all_ports: bool = False, same_machine: bool = False, within: float = 10.0
) -> Finding:
    work = check_ports(relay, "127.0.0.1", within=within, all_ports=all_ports, same_machine=same_machine)

    async def run() -> Finding:
        return await work

    finding = asyncio.run(run())
    assert (finding.check, finding.address) == (Check.PORTS, "127.0.0.1")
    return finding


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, int]]:
    """Listen at three ports, one of which must never be open, one is usual, and one free to be anything."""
    with listening(3) as (never, usual, other):
        monkeypatch.setattr(probe.open_ports, "NEVER_OPEN", {never: "Docker's API"})
        monkeypatch.setattr(probe.open_ports, "_MOST_OFTEN_OPEN", (usual, 1))
        monkeypatch.setattr(probe.open_ports, "_OFTEN_PUBLISHED", ())
        yield {"never": never, "usual": usual, "other": other}


def relay(other_ports: list[int] | None = None, https_port: int = 443) -> Relay:
    return Relay("relay.example.org", ["127.0.0.1"], https_port, other_ports=other_ports)


def test_what_must_never_be_open(only: Mapping[str, int]) -> None:
    finding = finding_of(relay())
    assert finding.status is Status.FAILED
    assert finding.seen == f"open: {only['never']} (Docker's API)"
    assert finding.meaning
    assert finding.mend
    # Nobody may name it as one that may be open.
    assert finding_of(relay([only["never"]])).status is Status.FAILED


def test_what_as_a_rule_asks_for_a_certificate_is_a_warning_where_the_host_has_other_uses(
    monkeypatch: pytest.MonkeyPatch, only: Mapping[str, int]
) -> None:
    monkeypatch.setattr(probe.open_ports, "_LOCKED_AS_A_RULE", {only["never"]})
    finding = finding_of(relay())
    assert finding.status is Status.WARNING
    assert finding.seen.startswith(f"open: {only['never']} (Docker's API)")
    assert finding.meaning
    assert finding.mend
    assert finding_of(relay([])).status is Status.FAILED
    # one that lets everybody in makes it a failure
    monkeypatch.setattr(probe.open_ports, "NEVER_OPEN", {only["never"]: "one", only["other"]: "other"})
    assert finding_of(relay()).status is Status.FAILED


def test_usual_ports_only_where_the_others_are_known(only: Mapping[str, int]) -> None:
    seen = finding_of(relay([])).seen
    assert (
        f"{only['never']} (Docker's API), {only['usual']}".split(", ").sort() == seen[6:].split(", ").sort()
    )
    assert str(only["usual"]) in seen
    assert str(only["usual"]) not in finding_of(relay([only["usual"]])).seen
    assert str(only["other"]) not in seen


def test_the_relays_own_port_is_none_of_them(only: Mapping[str, int]) -> None:
    assert finding_of(relay(https_port=only["never"])).status is Status.OK


def test_from_the_same_machine_it_is_not_judged(only: Mapping[str, int]) -> None:
    finding = finding_of(relay(), same_machine=True)
    assert finding.status is Status.SKIPPED
    assert str(only["never"]) in finding.seen
    assert "another machine" in finding.mend


def test_a_network_that_answers_for_everybody(
    monkeypatch: pytest.MonkeyPatch, only: Mapping[str, int]
) -> None:
    with listening(3) as answering:
        monkeypatch.setattr(probe.open_ports, "_DYNAMIC", answering)
        finding = finding_of(relay())
    assert only
    assert finding.status is Status.SKIPPED
    assert "answers for every port" in finding.seen


def test_silence_is_as_good_as_closed(monkeypatch: pytest.MonkeyPatch, only: Mapping[str, int]) -> None:
    """A full queue of a listener answers no further connection, like a firewall that drops."""
    monkeypatch.setattr(probe.open_ports, "_ANSWER_WITHIN", 0.2)
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(("127.0.0.1", port))
        monkeypatch.setattr(probe.open_ports, "NEVER_OPEN", {port: "Docker's API"})
        assert finding_of(relay()).status is Status.OK
    assert only


def test_all_ports(monkeypatch: pytest.MonkeyPatch, only: Mapping[str, int]) -> None:
    # All of those near: the whole range takes seconds.
    monkeypatch.setattr(
        probe.open_ports, "_ALL", sorted({port + way for port in only.values() for way in range(-200, 200)})
    )
    finding = finding_of(relay([only["usual"]]), all_ports=True, within=60.0)
    assert finding.status is Status.FAILED
    told = str(finding.facts["open_ports"]).split(", ")
    assert {str(only["never"]), str(only["other"])} <= set(told)
    assert str(only["usual"]) not in told


def test_all_ports_in_too_little_time(only: Mapping[str, int]) -> None:
    finding = finding_of(relay(list(only.values())), all_ports=True, within=0.0)
    assert finding.status is Status.SKIPPED
    assert "there was no time" in finding.seen


def test_want_of_files_is_no_open_port() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def run() -> Finding:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        return await check_ports(relay(), "127.0.0.1", within=10.0)

    try:
        finding = asyncio.run(run())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert finding.status is Status.SKIPPED
    assert "files" in finding.seen
