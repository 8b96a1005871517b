"""What is said while a relay is not up yet."""

from __future__ import annotations

import socket

import pytest

from relayctl import relay_check
from settings import settings_from
from tests.unit.declared import MINIMAL


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
