"""What is dialled for a site; that it is dialled from Caddy's container is for the relay lane."""

from __future__ import annotations

import pytest

from relayctl.upstreams import address_of
from settings import Upstream, settings_from
from tests.unit.declared import MINIMAL


@pytest.mark.parametrize(
    ("upstream", "address"),
    [
        ("blog", "blog:80"),
        ("blog:8080", "blog:8080"),
        ("https://10.0.0.5", "10.0.0.5:443"),
        ("https://10.0.0.5:8443", "10.0.0.5:8443"),
        ("http://[fd00::5]:80", "[fd00::5]:80"),
        ("https://[fd00::5]", "[fd00::5]:443"),
    ],
)
def test_an_upstream_is_an_address_to_connect_to(upstream: str, address: str) -> None:
    given = {**MINIMAL, "sites": [{"names": ["a.example.com"], "upstream": upstream}]}
    serves = settings_from(given, "a test").sites[0].serves
    assert isinstance(serves, Upstream)
    assert address_of(serves.address) == address
