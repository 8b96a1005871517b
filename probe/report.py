"""What one run of the probe found of each relay, as reports for people and machines have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.finding import Check, Finding, Status, is_up


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of one relay, and the names that it has.

    ``stack`` is empty for a relay that a DERP map names. ``region`` is the
    region's code. ``findings`` is never empty: a relay that nothing could be
    asked of has one that is skipped.
    """

    stack: str
    region: str
    domain: str
    findings: Sequence[Finding]

    @property
    def title(self) -> str:
        """How people call it: by its stack, else by its region."""
        return self.stack or self.region

    @property
    def up(self) -> bool:
        """Whether the relay works; warnings aside."""
        return is_up(self.findings)

    @property
    def judged(self) -> bool:
        """Whether anything at all could be found out."""
        return any(finding.status is not Status.SKIPPED for finding in self.findings)

    @property
    def status(self) -> Status:
        """The worst that was found; ``SKIPPED`` only where nothing was judged."""
        found = {finding.status for finding in self.findings}
        for status in (Status.FAILED, Status.WARNING, Status.OK):
            if status in found:
                return status
        return Status.SKIPPED

    def latency(self, check: Check) -> float | None:
        """Return the least latency of a check over the relay's addresses in seconds, ``None`` without one."""
        found = [f.latency for f in self.findings if f.check is check and f.latency is not None]
        return min(found, default=None)

    def fact(self, check: Check, name: str) -> list[str | float | bool]:
        """Return what the findings of a check say of a fact, address by address."""
        return [f.facts[name] for f in self.findings if f.check is check and name in f.facts]

    def as_dict(self) -> dict[str, Any]:
        """Return the report with JSON types only."""
        return {
            "stack": self.stack,
            "region": self.region,
            "domain": self.domain,
            "status": self.status.value,
            "up": self.up,
            "findings": [finding.as_dict() for finding in self.findings],
        }
