"""Alert rules and the dashboard by Prometheus's own code, and the units by systemd's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from relayctl.prerequisites import go_programs
from relayctl.prerequisites.progress import Progress
from settings.base import PROJECT_FOLDER
from tests.metric_names import DASHBOARD, MONITORING, alerts, expressions
from tests.requirements import require

UNIT = MONITORING / "systemd" / "derp-relays-probe.service"


@pytest.fixture(scope="module")
def promtool() -> str:
    return str(go_programs.build("promtool", Progress()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    return tmp_path / "monitoring"


def run(promtool: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_rules_and_the_scrape_example_are_as_prometheus_takes_them(promtool: str, folder: Path) -> None:
    for arguments in (("check", "rules", "prometheus-rules.yaml"), ("check", "config", "prometheus.yaml")):
        done = run(promtool, folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"{len(alerts())} rules found"
        in run(promtool, folder, "check", "rules", "prometheus-rules.yaml").stdout
    )


def test_each_alert_fires_on_its_fault_and_none_on_healthy_relays(promtool: str, folder: Path) -> None:
    done = run(promtool, folder, "test", "rules", "prometheus-rules-test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("expression", "told"), [("vector(1) > 2", "exp:"), ("vector(1)", "got:")])
def test_those_tests_fail_for_rules_that_never_or_always_fire(
    promtool: str, folder: Path, expression: str, told: str
) -> None:
    path = folder / "prometheus-rules.yaml"
    rules = yaml.safe_load(path.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = expression
            rule.pop("for", None)
    path.write_text(yaml.safe_dump(rules))
    done = run(promtool, folder, "test", "rules", "prometheus-rules-test.yaml")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    # after "exp:" stands what a test wants, after "got:" what it found
    parts = re.findall(rf"{told}(.*?)(?=exp:|got:|\Z)", said, re.DOTALL)
    missed = {rule["alert"] for rule in alerts()} - set(
        re.findall(r"Derp\w+|Derper\w+|Caddy\w+", "".join(parts))
    )
    assert not missed


def test_every_expression_of_the_dashboard_is_one(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": _filled_in(expression)}
        for number, (where, expression) in enumerate(expressions().items())
        if where.startswith("panel")
    ]
    assert len(rules) > 20
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run(promtool, tmp_path, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def _filled_in(expression: str) -> str:
    """Return ``expression`` with values for Grafana's variables, which are declared or its own."""
    named = set(re.findall(r"\$(\w+)", expression))
    declared = {each["name"] for each in json.loads(DASHBOARD.read_text())["templating"]["list"]}
    assert named <= {*declared, "__rate_interval"}
    return expression.replace("$__rate_interval", "5m").replace("$region", ".*")


def _service(text: str) -> dict[str, list[str]]:
    """Return the values of each key of a unit's ``[Service]``, in their order."""
    values: dict[str, list[str]] = {}
    section = text.partition("\n[Service]\n")[2].partition("\n[")[0]
    for line in section.splitlines():
        key, given, value = line.partition("=")
        if given and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    return values


def test_what_the_service_leaves_can_be_read_by_another_user() -> None:
    """systemd.exec(5): what is preserved of a dynamic user is below /run/private, which is root's."""
    service = _service(UNIT.read_text())
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert "DynamicUser" not in service
    (user,) = service["User"]
    guide = (PROJECT_FOLDER / "docs" / "monitoring.md").read_text()
    assert re.search(rf"^useradd --system .*{user}$", guide, re.MULTILINE)
    assert int(service["RuntimeDirectoryMode"][0], 8) & 0o005 == 0o005
    assert int(service["UMask"][0], 8) & 0o004 == 0
    assert f"--prometheus /run/{service['RuntimeDirectory'][0]}/" in service["ExecStart"][0]


def test_the_units_are_as_systemd_takes_them_and_the_service_is_closed_in(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    require(analyze, "systemd-analyze is missing", "apt-get install systemd")
    for unit in UNIT.parent.iterdir():
        # the program is where a user puts it
        text = unit.read_text().replace("/opt/derp-relays/.venv/bin/python", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in sorted(UNIT.parent.iterdir())]
    done = subprocess.run([str(analyze), "verify", *units], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line], done.stderr
    # what DynamicUser=yes brings, and systemd's threshold would let go one at a time
    service = _service(UNIT.read_text())
    assert service["ProtectSystem"] == ["strict"]
    for key in ("PrivateTmp", "RemoveIPC", "NoNewPrivileges", "RestrictSUIDSGID", "ProtectHome"):
        assert service[key] == ["yes"], key
    # tenths: 20 is 2.0 of 10; a service as it comes has 9.6
    done = subprocess.run(
        [str(analyze), "security", "--no-pager", "--offline=true", "--threshold=20", units[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
