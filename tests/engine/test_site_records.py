"""The records of sites as a resource under the real engine, against a sandbox's Hetzner Cloud API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcloud
import pytest
from hcloud.zones import ZoneRecord

from images.recipe import ROOT
from relayctl.prerequisites import pulumi_cli
from relayctl.prerequisites.progress import Progress
from sandbox.hcloud_api import ServedApi, serve
from tests.engine.stand_in import Project
from tests.unit.served_api import asked, changes, fault, sandbox

ZONE = "example.org"
V4, V6 = "203.0.113.9", "2001:db8:9::1"
LABELS = {"derp-relays.stack": "derp-test"}
# Below Pulumi's own wrapping, the resource's error.
ERROR = "components.site_records.SiteRecordsError: "

PULUMI_PROGRAM = """
import json
import pulumi
from components.site_records import SiteRecords
with open("resources.json") as file:
    wanted = json.load(file)
if wanted:
    token = wanted.pop("token")
    provider = pulumi.ProviderResource("pulumi-python", "sites", {})
    SiteRecords(
        "sites",
        token=token and pulumi.Output.secret(token),
        **wanted,
        opts=pulumi.ResourceOptions(provider=provider, delete_before_replace=True),
    )
"""


@dataclass
class Stack(Project):
    """A project whose program declares records, and the API that it makes them at."""

    api: ServedApi

    @property
    def zone(self) -> Any:
        return hcloud.Client(self.api.token, api_endpoint=self.api.endpoint).zones.get(ZONE)

    def write(self, resources: Mapping[str, Any]) -> None:
        (self.folder / "resources.json").write_text(json.dumps(resources))

    def records(self, *names: str, **others: Any) -> dict[str, Any]:
        given = {"zone": ZONE, "names": names, "ipv4": V4, "ipv6": V6, "ttl": 300, "labels": LABELS}
        return {**given, "token": self.api.token, "endpoint": self.api.endpoint, **others}

    def there(self) -> dict[str, str]:
        found = self.zone.get_rrset_all(type=["A", "AAAA"])
        return {str(each.id): ",".join(record.value for record in each.records) for each in found}

    def killed_once(self, begun: Callable[[], object]) -> None:
        """Run an update, and kill it with its plugins once ``begun`` is true."""
        log = self.folder / "killed.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [str(self.cli), "up", "--yes", "--skip-preview", "--stack", "test", "--non-interactive"],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        while not begun():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.run("cancel", "--yes")
        # What was asked for last is still carried out.
        time.sleep(1)

    def exported(self) -> str:
        return self.run("stack", "export", json_only=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    project = tmp_path_factory.mktemp("records")
    cli = pulumi_cli.bring(Progress())
    (project / "state").mkdir()
    (project / "Pulumi.yaml").write_text("name: records-test\nruntime: python\n")
    (project / "__main__.py").write_text(PULUMI_PROGRAM)
    with serve(requests_per_hour=100_000) as api:
        environment = {
            **cli.environment,
            "PULUMI_BACKEND_URL": f"file://{project}/state",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PYTHONPATH": str(ROOT),
        }
        made = Stack(project, environment, Path(cli.command), api)
        hcloud.Client(api.token, api_endpoint=api.endpoint).zones.create(name=ZONE, mode="primary")
        made.run("stack", "init")
        yield made


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    """Yield the stack with nothing in it, and see that its removal removes all that it made."""
    yield shared
    sandbox(shared.api, "DELETE", "/faults")
    shared.up({})
    assert shared.there() == {}


def test_an_update_makes_changes_and_removes_what_differs(stack: Stack) -> None:
    stack.up(stack.records("blog", "@"))
    assert stack.there() == {"@/A": V4, "@/AAAA": V6, "blog/A": V4, "blog/AAAA": V6}
    stack.unchanged()
    before = len(changes(stack.api))
    stack.up(stack.records("@", "shop", ipv4="203.0.113.10"))
    assert len(changes(stack.api)) - before == 1 + 2 + 2, "one address, two records more, two records fewer"
    assert stack.there() == {"@/A": "203.0.113.10", "@/AAAA": V6, "shop/A": "203.0.113.10", "shop/AAAA": V6}
    before = len(asked(stack.api))
    stack.up(stack.records("@", "shop", ipv4="203.0.113.10"))
    assert len(asked(stack.api)) == before, "what is the same costs no question"


def test_a_thousand_names_are_as_many_resources_as_one(stack: Stack) -> None:
    told = {}
    for number in (1, 100, 1000):
        stack.up(stack.records(*(f"site{i}" for i in range(number)), ipv6=None))
        told[number] = len(json.loads(stack.exported())["deployment"]["resources"])
        assert len(stack.there()) == number
    assert len(set(told.values())) == 1, told


def test_the_token_is_no_text_in_the_state(stack: Stack) -> None:
    stack.up(stack.records("blog"))
    assert stack.api.token not in stack.exported()
    for kept in (stack.folder / "state").rglob("*"):
        assert not kept.is_file() or stack.api.token.encode() not in kept.read_bytes(), kept


def test_drift_is_found_by_a_refresh_and_mended_by_the_next_update(stack: Stack) -> None:
    stack.up(stack.records("blog", "shop"))
    stack.zone.get_rrset("blog", "A").set_rrset_records([ZoneRecord("192.0.2.1")])
    stack.zone.get_rrset("shop", "AAAA").delete_rrset()
    stack.refresh()
    assert list(stack.preview(stack.records("blog", "shop"))) == ["sites"]
    before = len(changes(stack.api))
    stack.up(stack.records("blog", "shop"))
    assert len(changes(stack.api)) - before == 2
    assert stack.there() == {"blog/A": V4, "blog/AAAA": V6, "shop/A": V4, "shop/AAAA": V6}
    stack.run("refresh", "--yes", "--skip-preview", "--expect-no-changes")


def test_a_replacement_that_is_asked_for_leaves_the_records(stack: Stack) -> None:
    stack.up(stack.records("blog"))
    urn = "urn:pulumi:test::records-test::pulumi-python:dynamic/hetzner:SiteRecords::sites"
    stack.up(stack.records("blog"), "--replace", urn)
    assert stack.there() == {"blog/A": V4, "blog/AAAA": V6}


def test_somebody_elses_record_fails_the_update_in_one_line(stack: Stack) -> None:
    stack.up(stack.records("blog"))
    stack.zone.create_rrset(name="shop", type="A", records=[ZoneRecord("192.0.2.1")])
    said = stack.up(stack.records("blog", "shop"), fails=True)
    told = said.partition("SiteRecords (sites):\n")[2].partition("\n\n")[0].strip()
    assert told.startswith(f"error: {ERROR}the zone example.org has records of sites' names that are not")
    assert "shop.example.org A. No record of theirs was changed." in told
    assert "\n" not in told
    assert stack.there() == {"blog/A": V4, "blog/AAAA": V6, "shop/A": "192.0.2.1"}
    stack.zone.get_rrset("shop", "A").delete_rrset()


def test_an_update_that_was_cut_short_is_gone_on_with(stack: Stack) -> None:
    """The state knows of nothing that was made."""
    names = [f"site{i}" for i in range(50)]
    fault(stack.api, method="POST", path="/zones/[^/]+/rrsets", times=0, delay=0.1)
    stack.write(stack.records(*names, ipv6=None))
    stack.killed_once(lambda: len(stack.there()) > 3)
    made = len(stack.there())
    assert 3 < made < 50
    sandbox(stack.api, "DELETE", "/faults")
    before = len(changes(stack.api))
    stack.up(stack.records(*names, ipv6=None))
    assert len(changes(stack.api)) - before == 50 - made
    assert len(stack.there()) == 50
