"""The DERP map, read strictly by Tailscale's own types and as headscale reads it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from relayctl.prerequisites import go_programs
from relayctl.prerequisites.progress import Progress
from render.derp_map import MapRegion, derp_map, derp_map_region, headscale_text, hujson_text, json_text
from settings import settings_from


@pytest.fixture(scope="module")
def program() -> Path:
    return go_programs.build("derp-map-types", Progress())


def read(program: Path, form: str, text: str) -> dict[str, Any]:
    done = subprocess.run([str(program), form], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def map_region(number: int, **values: Any) -> MapRegion:
    settings = settings_from(
        {
            "domain": f"derp-{number}.example.com",
            **values,
            "region": {"id": number, "code": f"r{number}", **values.get("region", {})},
        },
        f"stacks/Pulumi.r{number}.yaml",
    )
    told = derp_map_region(settings, "203.0.113.7", "2001:db8::7")
    return MapRegion(f"stacks/Pulumi.r{number}.yaml", told, settings.region.score, "port 80 was proved")


# Every field that the project writes is in one of them.
REGIONS = [
    map_region(
        900,
        region={"name": 'Nürnberg: "no" #1', "latitude": 49.45, "longitude": -0.00001, "score": 0.5},
        caddy={"httpsPort": 8443},
        derper={"stunPort": 3479},
        certificate={"source": "internal"},
    ),
    map_region(901, region={"noMeasure": True}),
    # texts that YAML could take for other things
    map_region(902, region={"code": "no", "name": "1e3"}),
]


def expected(*, of_all: bool) -> dict[str, Any]:
    """Return the map as Go prints it: by the names of its fields, of which one has another in its tag."""
    whole = derp_map(REGIONS, omit_default_regions=True)
    if not of_all:
        return {"Regions": whole["Regions"]}
    whole["omitDefaultRegions"] = whole.pop("OmitDefaultRegions")
    return whole


def test_tailscale_reads_what_was_meant(program: Path) -> None:
    whole = derp_map(REGIONS, omit_default_regions=True)
    assert read(program, "json", json_text(whole)) == expected(of_all=True)
    assert read(program, "policy", json_text({"derpMap": whole})) == expected(of_all=True)
    assert read(program, "policy", hujson_text(REGIONS, omit_default_regions=True)) == expected(of_all=True)


def test_headscale_reads_the_regions(program: Path) -> None:
    assert read(program, "headscale", headscale_text(REGIONS)) == expected(of_all=False)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", '{"Regions": {"900": {"RegionID": 900, "Region": "a misnamed field"}}}'),
        ("headscale", "regions: {900: {regionid: 900, derpMapRegion: 1}}"),
        ("policy", '{"Regions": {}}'),
        ("json", '{"Regions": {"900": {"RegionID": 901}}}'),
    ],
)
def test_the_program_refuses_what_tailscale_would_leave_out(program: Path, form: str, text: str) -> None:
    done = subprocess.run([str(program), form], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr
