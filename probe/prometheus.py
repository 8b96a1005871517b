"""Reports in Prometheus's text format, for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from probe.finding import Finding, Status
from probe.report import Report

_RELAY = ("stack", "region", "domain")
_ADDRESS = (*_RELAY, "address", "family")


def prometheus(reports: Sequence[Report], *, at: float, seconds: float) -> str:
    """Return the reports as gauges; ``at`` is when the run ended (Unix time), ``seconds`` how long it took.

    What could not be judged is left out, so that an alert on a value means that it
    was seen, and one on its absence that it was not.
    """
    registry = CollectorRegistry()

    def gauge(name: str, told: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"derp_probe_{name}", told, labels, registry=registry)

    up = gauge("up", "Whether the relay works as clients use it.", _RELAY)
    check = gauge("check", "Whether a check passed; a warning passes.", (*_ADDRESS, "check"))
    warning = gauge("warning", "Whether a check passed with a warning.", (*_ADDRESS, "check"))
    latency = gauge("latency_seconds", "What a check took that measures it.", (*_ADDRESS, "check"))
    ends = gauge("certificate_not_after_seconds", "When the certificate ends, in Unix time.", _ADDRESS)
    loss = gauge("packet_loss_ratio", "Share of STUN requests that got no answer.", _ADDRESS)
    gauge("last_run_seconds", "When the probe last ran to its end, in Unix time.").set(at)
    gauge("duration_seconds", "How long that run took.").set(seconds)

    # Nodes of a DERP map may share name and region: what is broken is told last, and so holds.
    for report in sorted(reports, key=lambda each: each.status is Status.FAILED):
        relay = (report.stack, report.region, report.domain)
        if report.judged:
            up.labels(*relay).set(report.up)
        for finding in report.findings:
            if finding.status is Status.SKIPPED:
                continue
            address = (*relay, finding.address, finding.family)
            check.labels(*address, finding.check.value).set(finding.status is not Status.FAILED)
            warning.labels(*address, finding.check.value).set(finding.status is Status.WARNING)
            if finding.latency is not None:
                latency.labels(*address, finding.check.value).set(finding.latency)
            if (not_after := _number(finding, "certificate_not_after")) is not None:
                ends.labels(*address).set(not_after)
            if (lost := _number(finding, "packet_loss_ratio")) is not None:
                loss.labels(*address).set(lost)
    return generate_latest(registry).decode()


def _number(finding: Finding, fact: str) -> float | None:
    value = finding.facts.get(fact)
    return None if value is None or isinstance(value, str) else float(value)
