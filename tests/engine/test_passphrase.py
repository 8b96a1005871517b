"""What a stack that is opened without its passphrase, or with another one, tells; no engine is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.checkout import Checkout

STACK = "guarded"
_SETTINGS: dict[str, Any] = {
    "domain": "guarded.invalid",
    "certificate": {"source": "internal"},
    "region": {"id": 950, "code": STACK},
    "host": {
        "kind": "ssh",
        "address": "203.0.113.7",
        "user": "root",
        "hostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDIhz2GK/XCUj4i6Q5yQJNL1MKMY0RxzPV2QrBqfHrDq",
        "ipv4": "203.0.113.7",
    },
}
# What commands do first and in between, without what they ask of a host.
_OPEN = (
    "from relayctl.prerequisites import pulumi_cli; from relayctl.prerequisites.progress import Progress\n"
)
_OPEN += "from relayctl.stack import PassphraseError, RelayStack\n"
_OPEN += f"opened = RelayStack({STACK!r}, pulumi_cli.bring(Progress()), {{}}, Progress())\n"
_UPDATE = (
    _OPEN + "try:\n    with opened.changes_noted():\n        opened.up()\nexcept PassphraseError as error:\n"
    "    print(error.mend, opened.unfinished_since())"
)
_EXPORT = "export PULUMI_CONFIG_PASSPHRASE=...   (that of the stack guarded;"
_OTHER = "the stack guarded was made with another passphrase than "


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Return a checkout with a stack that was made with the passphrase `first`."""
    made = Checkout.make(tmp_path_factory.mktemp("passphrase"), None)
    made.write_stack(_SETTINGS, STACK)
    python(made, _OPEN, "first")
    return made


def python(checkout: Checkout, program: str, passphrase: str | None) -> str:
    return with_passphrase(checkout, passphrase, [sys.executable, "-c", program])


def with_passphrase(checkout: Checkout, passphrase: str | None, command: list[str]) -> str:
    environment = {**os.environ, **checkout.environment}
    environment.pop("PULUMI_CONFIG_PASSPHRASE")
    if passphrase is not None:
        environment["PULUMI_CONFIG_PASSPHRASE"] = passphrase
    done = subprocess.run(
        command,
        cwd=checkout.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("passphrase", "told"),
    [
        (None, _EXPORT),
        ("second", f"{_OTHER}the one that is exported"),
        ("", f"{_OTHER}the empty one"),
    ],
)
def test_an_update_says_which_is_wanted_and_is_none_that_was_cut_short(
    checkout: Checkout, passphrase: str | None, told: str
) -> None:
    said = python(checkout, _UPDATE, passphrase)
    assert told in said
    assert said.strip().endswith("None")


def test_a_fleet_hands_on_what_is_to_be_done(checkout: Checkout) -> None:
    said = with_passphrase(checkout, None, [sys.executable, "-m", "relayctl", "fleet", "preview", STACK])
    assert f"{STACK}, failed:" in said
    assert f"to mend it: {_EXPORT}" in said
    assert "see to what is said above" not in said
