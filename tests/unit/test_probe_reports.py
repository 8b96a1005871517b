"""Reports of the probe, read back as the programs that they are for read them."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from prometheus_client.parser import text_string_to_metric_families

from probe import Check, Finding, Status
from probe.finding import failed, ok, skipped, warning
from probe.junit import junit
from probe.prometheus import prometheus
from probe.report import Report

GOOD = ok(Check.STUN, "203.0.113.7", "answered", latency=0.0123)
SOON = warning(
    Check.TLS,
    "203.0.113.7",
    "6 days left",
    meaning="It ends soon.",
    mend="Renew it.",
    facts={"certificate_days_left": 6.0, "certificate_not_after": 1_800_500_000.0},
)
BAD = failed(Check.UPGRADE, "2001:db8::7", "said \x00 <&> \ud800", latency=0.5)
UNKNOWN = skipped(Check.ROUTE, "2001:db8::7", "no route")
WHOLE = ok(Check.DNS, "", "leads there")


def report(*findings: Finding, stack: str = "nuremberg") -> Report:
    return Report(stack, "nbg", "derp.example.com", findings)


@pytest.mark.parametrize(
    ("findings", "status", "up", "judged"),
    [
        ([GOOD, WHOLE], Status.OK, True, True),
        ([GOOD, UNKNOWN], Status.OK, True, True),
        ([GOOD, SOON], Status.WARNING, True, True),
        ([GOOD, SOON, BAD], Status.FAILED, False, True),
        ([UNKNOWN], Status.SKIPPED, False, False),
    ],
)
def test_a_report_is_as_bad_as_its_worst_finding(
    findings: list[Finding], status: Status, *, up: bool, judged: bool
) -> None:
    made = report(*findings)
    assert (made.status, made.up, made.judged) == (status, up, judged)


def test_a_report_tells_the_least_latency_of_its_addresses() -> None:
    slower = ok(Check.STUN, "2001:db8::7", "answered", latency=0.2)
    assert report(slower, GOOD).latency(Check.STUN) == 0.0123
    assert report(UNKNOWN).latency(Check.STUN) is None


@pytest.mark.parametrize(("strict", "failures"), [(False, 1), (True, 2)])
def test_junit_has_a_test_a_finding(*, strict: bool, failures: int) -> None:
    text = junit([report(GOOD, SOON, BAD, UNKNOWN, WHOLE), report(GOOD, stack="")], strict=strict)
    root = ET.fromstring(text.encode())  # noqa: S314 - our own
    assert root.attrib["tests"] == "6"
    assert (root.attrib["failures"], root.attrib["skipped"]) == (str(failures), "1")
    first, second = root
    assert (first.attrib["name"], second.attrib["name"]) == (
        "nuremberg derp.example.com",
        "nbg derp.example.com",
    )
    tests = {test.attrib["name"]: test for test in first}
    assert list(tests) == [
        "stun 203.0.113.7",
        "tls 203.0.113.7",
        "derp-upgrade 2001:db8::7",
        "route 2001:db8::7",
        "dns",
    ]
    assert tests["stun 203.0.113.7"].attrib["time"] == "0.012300"
    broken = tests["derp-upgrade 2001:db8::7"].find("failure")
    assert broken is not None
    assert broken.attrib["message"] == "said \ufffd <&> \ufffd"
    assert BAD.meaning in (broken.text or "")
    assert BAD.mend in (broken.text or "")
    assert tests["route 2001:db8::7"].find("skipped") is not None
    soon = tests["tls 203.0.113.7"].find("failure" if strict else "system-out")
    assert soon is not None
    assert "Renew it." in (soon.text or "")


def samples(*reports: Report) -> dict[tuple[str, str, str, str], float]:
    """Return values by metric, stack, address and check."""
    found = {}
    for family in text_string_to_metric_families(prometheus(reports, at=1_800_000_000.5, seconds=2.5)):
        assert family.type == "gauge"
        for sample in family.samples:
            labels = sample.labels
            key = (sample.name, labels.get("stack", ""), labels.get("address", ""), labels.get("check", ""))
            found[key] = sample.value
    return found


def test_prometheus_has_what_was_judged_and_nothing_else() -> None:
    lossy = ok(Check.NETWORK, "203.0.113.7", "10 of 10", facts={"packet_loss_ratio": 0.25})
    found = samples(report(GOOD, SOON, BAD, UNKNOWN, WHOLE, lossy), report(UNKNOWN, stack="away"))
    relay, v4, v6 = "nuremberg", "203.0.113.7", "2001:db8::7"
    assert found == {
        ("derp_probe_up", relay, "", ""): 0,
        ("derp_probe_check", relay, v4, "stun"): 1,
        ("derp_probe_check", relay, v4, "tls"): 1,
        ("derp_probe_check", relay, v4, "network"): 1,
        ("derp_probe_check", relay, v6, "derp-upgrade"): 0,
        ("derp_probe_check", relay, "", "dns"): 1,
        ("derp_probe_warning", relay, v4, "stun"): 0,
        ("derp_probe_warning", relay, v4, "tls"): 1,
        ("derp_probe_warning", relay, v4, "network"): 0,
        ("derp_probe_warning", relay, v6, "derp-upgrade"): 0,
        ("derp_probe_warning", relay, "", "dns"): 0,
        ("derp_probe_latency_seconds", relay, v4, "stun"): 0.0123,
        ("derp_probe_latency_seconds", relay, v6, "derp-upgrade"): 0.5,
        ("derp_probe_certificate_not_after_seconds", relay, v4, ""): 1_800_500_000.0,
        ("derp_probe_packet_loss_ratio", relay, v4, ""): 0.25,
        ("derp_probe_last_run_seconds", "", "", ""): 1_800_000_000.5,
        ("derp_probe_duration_seconds", "", "", ""): 2.5,
    }


def test_prometheus_labels_tell_a_relay_whatever_is_in_them() -> None:
    odd = Report('a"b\\c\nd', "nbg", "derp.example.com", [GOOD])
    (up,) = [
        sample
        for family in text_string_to_metric_families(prometheus([odd], at=1.0, seconds=1.0))
        for sample in family.samples
        if sample.name == "derp_probe_up"
    ]
    assert up.labels == {"stack": 'a"b\\c\nd', "region": "nbg", "domain": "derp.example.com"}


def test_of_two_nodes_of_one_name_the_broken_one_holds() -> None:
    for reports in ([report(BAD), report(GOOD)], [report(GOOD), report(BAD)]):
        assert samples(*reports)["derp_probe_up", "nuremberg", "", ""] == 0
