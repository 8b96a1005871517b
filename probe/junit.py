"""Reports as JUnit XML, which continuous integration shows: one suite a relay, one test a finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from probe.finding import Finding, Status
from probe.report import Report

# XML 1.0, production Char: no other character can stand in a document, escaped or not.
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(reports: Sequence[Report], *, strict: bool = False) -> str:
    """Return the reports as one JUnit document.

    Skipped findings are skipped tests. Warnings are tests that passed, with the
    warning as their output; with ``strict`` they are failures.
    """
    root = ET.Element("testsuites", name="relayctl probe")
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for report in reports:
        suite = ET.SubElement(root, "testsuite", name=_text(f"{report.title} {report.domain}".strip()))
        bad = {Status.FAILED, Status.WARNING} if strict else {Status.FAILED}
        statuses = [finding.status for finding in report.findings]
        counts = {
            "tests": len(statuses),
            "failures": sum(status in bad for status in statuses),
            "skipped": statuses.count(Status.SKIPPED),
        }
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
        suite.set("errors", "0")
        for finding in report.findings:
            _add_test(suite, report, finding, failure=finding.status in bad)
    for name, count in totals.items():
        root.set(name, str(count))
    root.set("errors", "0")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_test(suite: ET.Element, report: Report, finding: Finding, *, failure: bool) -> None:
    name = " ".join(part for part in (finding.check.value, finding.address) if part)
    test = ET.SubElement(suite, "testcase", name=_text(name), classname=_text(report.title))
    if finding.latency is not None:
        test.set("time", f"{finding.latency:.6f}")
    told = _text("\n".join(part for part in (finding.seen, finding.meaning, finding.mend) if part))
    if failure:
        ET.SubElement(test, "failure", message=_text(finding.seen), type=finding.status.value).text = told
    elif finding.status is Status.SKIPPED:
        ET.SubElement(test, "skipped", message=_text(finding.seen))
    elif finding.status is Status.WARNING:
        ET.SubElement(test, "system-out").text = told


def _text(text: str) -> str:
    """Return the text without what a relay may have said and XML cannot hold."""
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
