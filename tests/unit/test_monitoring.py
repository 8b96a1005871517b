"""What is there to copy for monitoring: alert rules, the dashboard and the workflow, as far as text tells."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from probe.finding import Check, failed, ok, skipped
from probe.report import Report
from tests.metric_names import MONITORING, Told, alerts, not_told, panels, selectors

TESTS = yaml.safe_load((MONITORING / "prometheus-rules-test.yaml").read_text())["tests"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_what_it_means_and_how_to_mend_it(rule: dict[str, Any]) -> None:
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(rule["annotations"]) == {"summary", "description", "mend"}
    assert not rule["annotations"]["summary"].endswith(".")


def test_stun_without_https_is_of_the_highest_severity_and_without_delay() -> None:
    rule = next(rule for rule in alerts() if rule["alert"] == "DerpRelayBlackHole")
    assert rule["labels"] == {"severity": "critical"}
    assert "for" not in rule


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_rules_tell_relays_by_region_since_a_derp_map_has_no_stacks(rule: dict[str, Any]) -> None:
    joined = re.findall(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)", rule["expr"])
    assert "stack" not in re.findall(r"\w+", " ".join(joined))
    for annotation in rule["annotations"].values():
        for before in annotation.split("{{ $labels.stack }}")[:-1]:
            assert before.rpartition("{{ else }}")[2].count("{{ if $labels.stack }}") == 1


def test_the_scrape_example_gives_derper_and_caddy_the_label_that_the_probe_has_of_any_relay() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    given = {
        job["job_name"]: [set(config.get("labels", ())) for config in job["static_configs"]] for job in jobs
    }
    assert given["derper"] == given["caddy"] == [{"region"}]


def test_checks_that_rules_name_are_the_probes() -> None:
    named = {
        each
        for rule in alerts()
        for _, matchers in selectors(rule["expr"])
        for label, _, value in matchers
        for each in value.split("|")
        if label == "check"
    }
    assert named <= {check.value for check in Check}
    assert {"tls", "stun", "server-key", "dns", "debug-https", "debug-http", "open-ports"} <= named


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_fires_in_a_test_and_is_silent_in_one_that_has_its_series(rule: dict[str, Any]) -> None:
    """That it does is for promtool (tests/engine/test_monitoring.py); here, that it is asked for."""
    name = rule["alert"]
    fires = [
        expected
        for test in TESTS
        for asked in [*test.get("alert_rule_test", ()), *test.get("promql_expr_test", ())]
        for expected in asked.get("exp_alerts") or asked.get("exp_samples") or ()
        if asked.get("alertname") == name or f'alertname="{name}"' in expected.get("labels", "")
    ]
    assert fires
    healthy = TESTS[0]
    assert healthy["promql_expr_test"][0]["exp_samples"] == []
    there = {each["series"].partition("{")[0] for each in healthy["input_series"]}
    assert {metric for metric, _ in selectors(rule["expr"])} <= there


def test_metrics_that_nobody_tells_are_found_in_expressions() -> None:
    told = Told()
    told.add('a_total{code="502",kind="x"} 1\nb_bytes 2\n')
    expression = """
        sum by (kind) (rate(a_total{code=~"5..|x", kind="x"}[5m] offset 10m)) / on (kind) 1e3 > b_bytes
          and absent(c_seconds{job="j"}) or a_total{kind="y"}  # d_total
    """
    assert not_told(expression, told) == ["a_total{code=x}", "c_seconds", "a_total{kind=y}"]


def test_panels_have_data_and_do_not_cover_each_other() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in found], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in found) == 24


def test_the_workflow_tells_a_finding_in_sentences(tmp_path: Path) -> None:
    seen = "the certificate is from X,\nnot from 100% of the roots"
    findings = [
        failed(Check.TLS, "2001:db8::1", seen, meaning="Nobody can relay.", mend="Give the root"),
        failed(Check.PORTS, "", "2375 is open.", meaning="", mend=""),
        skipped(Check.DNS, "", "not asked", mend="Name a | server."),
        ok(Check.STUN, "192.0.2.1", "answered"),
    ]
    report = Report("", "nbg", "derp.example.com", findings)
    (tmp_path / "derp-relays.json").write_text(json.dumps({"relays": [report.as_dict()]}))
    (script,) = (
        step["run"]
        for step in yaml.safe_load((MONITORING / "github-actions.yaml").read_text())["jobs"]["probe"]["steps"]
        if step.get("shell") == "python"
    )
    summary = tmp_path / "summary.md"
    environment = {"RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    told = "the certificate is from X, not from 100% of the roots. Nobody can relay. Give the root."
    assert done.stdout.splitlines() == [
        f"::error title=nbg derp.example.com tls 2001%3Adb8%3A%3A1::{told.replace('%', '%25')}",
        "::error title=nbg derp.example.com open-ports::2375 is open.",
    ]
    assert f"| nbg derp.example.com | tls | 2001:db8::1 | failed | {told} |" in (rows := summary.read_text())
    assert "| dns | | skipped | not asked. Name a \\| server. |" in re.sub(r" +", " ", rows)
    assert "stun" not in rows


def test_the_workflow_may_read_and_nothing_else_and_its_actions_are_pinned() -> None:
    text = (MONITORING / "github-actions.yaml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(job.get("permissions") is None for job in workflow["jobs"].values())
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), step
            assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+$", text, re.MULTILINE)
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # What an event carries never becomes part of a script.
        assert "${{" not in step.get("run", "")
    assert [step["run"] for step in steps if step.get("name", "").startswith("Install")] == ["./setup.sh"]
