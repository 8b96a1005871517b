"""What is said while a relay is not up yet, how `up` ends, and which key it notes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from probe import Relay
from relayctl import cli, command, relay_check, stack
from relayctl.prerequisites.errors import PrerequisiteError
from render import derp_map_region
from settings import Settings, settings_from
from tests.unit.declared import MINIMAL
from tests.unit.loopback_relay import DOMAIN, SERVER_KEY, Behaviour, response, running


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([], "no address can be reached from here"),
        (["tls"], "tls not right yet"),
        (["tls", "stun"], "tls, stun not right yet"),
        (["tls", "stun", "redirect", "page"], "tls, stun and 2 more not right yet"),
    ],
)
def test_the_detail_of_an_attempt_fits_on_a_line(bad: list[str], told: str) -> None:
    assert relay_check._told(bad) == told


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (["203.0.113.7"], None),
        (["203.0.113.7", "2001:db8::7"], None),
        (["203.0.113.7", "198.51.100.1"], "derp.example.com leads to 198.51.100.1, 203.0.113.7"),
        ([], "derp.example.com has no address in DNS (Name or service not known)"),
    ],
)
def test_a_name_that_leads_elsewhere_is_told(
    monkeypatch: pytest.MonkeyPatch, answer: list[str], told: str | None
) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    settings = settings_from(MINIMAL, "stacks/Pulumi.test.yaml")
    found = relay_check.records_that_lead_elsewhere(settings, ["203.0.113.7", "2001:db8::7"])
    assert found == told


def test_a_name_is_not_looked_up_for_an_authority_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    settings = settings_from({**MINIMAL, "certificate": {"source": "internal"}}, "x")
    assert relay_check.records_that_lead_elsewhere(settings, []) is None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder that runs leave their notes in; signals are handled as before at the end."""
    monkeypatch.setattr(stack, "PROJECT_FOLDER", tmp_path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.dict(os.environ, COLUMNS="200"):
        yield tmp_path
    for number, handler in kept.items():
        signal.signal(number, handler)


def settings_of(relay: Relay) -> Settings:
    return settings_from(
        {
            **MINIMAL,
            "domain": DOMAIN,
            "certificate": {"source": "internal"},
            "caddy": {"httpsPort": relay.https_port, "httpPort": relay.http_port},
            "derper": {"stunPort": relay.stun_port},
        },
        "stacks/Pulumi.test.yaml",
    )


def checked(relay: Relay, folder: Path) -> int:
    """Check the relay as the end of `up` does, and return what the command would exit with."""
    root = folder / "root.pem"
    root.write_text(relay.ca_roots or "")
    settings = settings_of(relay)
    outputs = {"derpMapRegion": derp_map_region(settings, "127.0.0.1", None), "url": f"https://{DOMAIN}"}
    try:
        with command.errors_for_people() as progress:
            cli._check_and_tell("test", settings, cli._Running(outputs, ["127.0.0.1"], root), progress)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_up_notes_the_key_that_it_saw_and_tells_if_it_is_another(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    another = "The relay has another key than at the last `make up STACK=test`"
    with running(Behaviour()) as relay:
        assert checked(relay, checkout) == 0
        assert another not in capsys.readouterr().out
        assert relay_check.noted_key("test") == SERVER_KEY.hex()

        (noted,) = (checkout / ".relayctl").glob("*.server-key")
        noted.write_text("ab" * 32)
        assert checked(relay, checkout) == 0
    said = capsys.readouterr().out
    assert another in said
    assert "The relay is up" in said
    assert relay_check.noted_key("test") == SERVER_KEY.hex()


def test_a_relay_that_runs_and_fails_its_check_is_told_from_an_update_that_failed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relay_check, "_PATIENCE", 0.1)
    with running(Behaviour(https=lambda _path, _headers: response("502 Bad Gateway"))) as relay:
        assert checked(relay, checkout) == command.RELAY_NOT_RIGHT
    assert "the relay runs, but not all is right" in capsys.readouterr().out
    assert relay_check.noted_key("test") is None

    with pytest.raises(SystemExit) as end, command.errors_for_people():
        raise PrerequisiteError("the update failed", "mend it")
    assert end.value.code == command.FAILED
