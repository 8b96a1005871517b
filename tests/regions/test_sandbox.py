"""What `make sandbox-up` and `make sandbox-down` do, as a user without an account has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.checkout import Checkout
from tests.regions.cloud import require_machines


def test_a_region_of_the_project_comes_up_and_goes(tmp_path: Path) -> None:
    require_machines()
    (tmp_path / "checkout").mkdir()
    checkout = Checkout.make(tmp_path / "checkout", None)

    def sandbox(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sandbox", *arguments],
            cwd=checkout.folder,
            # Its state is its own, whatever this user's is.
            env={**os.environ, "PYTHONPATH": str(checkout.folder), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    stack = checkout.folder / "stacks" / "Pulumi.sandbox-us-ashburn.yaml"
    try:
        for _ in range(2):
            done = sandbox("up", "us-ashburn")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "The relay is up: https://derp-ash.example.com" in done.stdout
            assert "This is no real region" in done.stdout
            assert "What next:" not in done.stdout, "with commands that are for real regions"
        # as it is told to
        backend = re.search(r"PULUMI_BACKEND_URL=(\S+) make probe STACK=sandbox-us-ashburn", done.stdout)
        assert backend is not None, done.stdout
        probed = checkout.relayctl("probe", "sandbox-us-ashburn")
        assert probed.returncode != 0, "in another backend there is no such stack"
        checkout.environment["PULUMI_BACKEND_URL"] = backend[1]
        del checkout.environment["PULUMI_CONFIG_PASSPHRASE"]
        probed = checkout.relayctl("probe", "sandbox-us-ashburn")
        assert probed.returncode == 0, probed.stdout + probed.stderr
        # the second run asked for nothing new
        assert "38 unchanged" in done.stdout, done.stdout
        host = yaml.safe_load(stack.read_text())["config"]["derp-relays:host"]
        assert (host["location"], host["serverType"]) == ("ash", "cpx11")
    finally:
        done = sandbox("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is kept" not in done.stdout
    assert not stack.exists()
    assert not (checkout.folder / ".relayctl" / "sandbox").exists()
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "hcloud" not in left
    refused = sandbox("up", "existing-server")
    assert refused.returncode == 1
    assert "has host.kind ssh" in refused.stdout
