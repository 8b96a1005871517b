"""What is said while a relay is not up yet."""

from __future__ import annotations

import pytest

from relayctl import relay_check


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
