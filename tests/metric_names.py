"""What dashboards and alert rules name of metrics: names and values of labels, to be held to what is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from settings.base import PROJECT_FOLDER

MONITORING = PROJECT_FOLDER / "monitoring"
RULES = MONITORING / "prometheus-rules.yaml"
DASHBOARD = MONITORING / "grafana-dashboard.json"

# Labels that Prometheus, its configuration and Grafana give.
_GIVEN = {"job", "instance", "region", "stack"}
# What is no metric in an expression: https://prometheus.io/docs/prometheus/latest/querying/operators
_WORDS = {
    "and",
    "or",
    "unless",
    "on",
    "ignoring",
    "by",
    "without",
    "offset",
    "bool",
    "group_left",
    "group_right",
}
_SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(\s*\()?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")


@dataclass
class Told:
    """Metrics that programs tell: their names, and the values of their labels by name of both."""

    names: set[str] = field(default_factory=set)
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Add what ``text`` has, in Prometheus's text format."""
        for name, labels, _ in self.samples(text):
            self.names.add(name)
            for label, value in labels.items():
                self.values.setdefault((name, label), set()).add(value)

    @staticmethod
    def samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Yield name, labels and value of each sample in ``text``, named as Prometheus does."""
        # By types the library would call derper's counters what neither derper nor Prometheus calls them.
        lines = [line for line in text.splitlines() if not line.startswith("# TYPE")]
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value


def alerts() -> list[dict[str, Any]]:
    """Return the rules, each as it stands."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    return list(json.loads(DASHBOARD.read_text())["panels"])


def expressions() -> dict[str, str]:
    """Return all expressions, by what has them."""
    found = {f"alert {rule['alert']}": str(rule["expr"]) for rule in alerts()}
    for panel in panels():
        for target in panel.get("targets", ()):
            found[f"panel {panel['id']} {panel['title']} {target['refId']}"] = str(target["expr"])
    return found


def selectors(expression: str) -> Iterator[tuple[str, Sequence[tuple[str, str, str]]]]:
    """Yield each metric that ``expression`` names, with its matchers: label, operator, value."""
    lists_of_labels = r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    text = re.sub(lists_of_labels, " ", re.sub(r"#.*", "", expression))
    text = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", text)
    for name, matchers, call in _SELECTOR.findall(text):
        if not call and name not in _WORDS:
            yield name, _MATCHER.findall(matchers)


def not_told(expression: str, told: Told) -> list[str]:
    """Return what ``expression`` names of metrics and labels that nobody tells."""
    missing = []
    for name, matchers in selectors(expression):
        if name != "up" and name not in told.names:
            missing.append(name)
        for label, operator, value in matchers:
            if label in _GIVEN or operator in {"!=", "!~"}:
                continue
            there = told.values.get((name, label), set())
            wanted = value.split("|") if operator == "=~" else [value]
            absent = [each for each in wanted if not any(re.fullmatch(each, one) for one in there)]
            missing += [f"{name}{{{label}={each}}}" for each in absent]
    return missing
