"""How the regions are: what Pulumi's state has of each, and what a client finds of its relay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import probe
from probe.report import Report
from relayctl import command, relays
from relayctl.fleet import Member
from relayctl.plan import Change
from relayctl.preflight import Known
from relayctl.prerequisites import cache
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.probing import PARALLEL, TIME_LIMIT, TIMEOUT, ask_all
from relayctl.stack import StackMissingError, state_copy
from settings import SettingsError

UP, DOWN, NEVER_UP, AT_WORK, INTERRUPTED, UNKNOWN = (
    "up",
    "down",
    "never up",
    "at work",
    "interrupted",
    "unknown",
)


@dataclass(frozen=True)
class Status:
    """A region as it is.

    ``state`` is of Pulumi's state: ``interrupted`` where an update did not end well
    and no other has since, ``at work`` while a command from here has the stack.
    ``last_update`` is ISO 8601, and ``resources`` counts what the state has.
    ``report`` is what the probe found, if it was asked, and ``drift`` what a refresh
    would change, if that was. ``error`` tells what could not be found out.
    """

    member: Member
    state: str
    last_update: str | None = None
    resources: int = 0
    relay: relays.StackRelay | None = None
    report: Report | None = None
    drift: tuple[Change, ...] | None = None
    error: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing is known to be wrong: what is not up is not."""
        broken = self.report is not None and self.report.judged and not self.report.up
        return not (self.error or broken or self.drift or self.state in (INTERRUPTED, UNKNOWN))

    def as_json(self) -> dict[str, Any]:
        """Return it with JSON types only."""
        return {
            **self.member.of_region(),
            "state": self.state,
            "lastUpdate": self.last_update,
            "resources": self.resources,
            "probe": None if self.report is None else self.report.as_dict(),
            "drift": None if self.drift is None else [change.as_json() for change in self.drift],
            "error": self.error,
        }


def of(found: Sequence[Member], progress: Progress, *, parallel: int) -> list[Status]:
    """Return the status of each of ``found``, as Pulumi's states have it; no passphrase is needed.

    What one cannot be read for is told in its own. Raises as `pulumi_cli.bring` does.
    """
    read = relays.state_reader(progress)
    with progress.step("Reading the regions' states"), ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda member: _of(member, read), found))


def _of(member: Member, read: Callable[[str], Mapping[str, Any]]) -> Status:
    unfinished = state_copy(member.stack).with_suffix(".unfinished").exists()
    at_work = cache.is_locked(command.lock_file(member.stack))
    error = "" if member.error is None else str(member.error)
    try:
        deployment = read(member.stack)
    except StackMissingError:
        state = AT_WORK if at_work else INTERRUPTED if unfinished else NEVER_UP
        return Status(member, state, error=error)
    except PrerequisiteError as problem:
        return Status(member, UNKNOWN, error=str(problem))
    up = bool(Known.from_deployment(deployment).containers)
    # A first update that failed before it made anything leaves a stack with nothing but itself, if that.
    made = any(not each["type"].startswith("pulumi:") for each in deployment.get("resources") or [])
    unfinished = unfinished or bool(deployment.get("pending_operations"))
    status = functools.partial(
        Status,
        member,
        AT_WORK if at_work else INTERRUPTED if unfinished else UP if up else DOWN if made else NEVER_UP,
        (deployment.get("manifest") or {}).get("time"),
        len(deployment.get("resources") or []),
    )
    if not up or error:
        return status(error=error)
    try:
        return status(relay=relays.of_state(member.stack, deployment))
    except StackMissingError as problem:
        # There are no outputs yet where its first update is under way.
        return status(error="" if at_work else str(problem))
    except (PrerequisiteError, SettingsError) as problem:
        return status(error=str(problem))


def probed(statuses: Sequence[Status], progress: Progress) -> list[Report | None]:
    """Return what clients find of the relays of ``statuses``, ``None`` for those that are not up."""
    up = [status.relay for status in statuses if status.relay is not None]
    if not up:
        return [None] * len(statuses)
    with progress.step(f"Asking {len(up)} relay{'s' if len(up) > 1 else ''} as clients would") as step:
        findings = ask_all(
            [functools.partial(probe.check_relay_async, each.relay, timeout=TIMEOUT) for each in up],
            parallel=PARALLEL,
            # what is the limit for a region alone, for each that has to wait for its turn
            time_limit=max(TIME_LIMIT, TIMEOUT * len(up) / PARALLEL),
            on_answer=lambda index: setattr(step, "detail", up[index].stack),
        )
    reports = {
        each.stack: Report(each.stack, each.settings.region.code, each.settings.domain, told)
        for each, told in zip(up, findings, strict=True)
    }
    return [reports.get(status.member.stack) for status in statuses]


def broken(reports: Sequence[Report | None]) -> dict[str, str]:
    """Return what is wrong with relays that are known to be broken, in a line, by stack."""
    return {
        report.stack: "; ".join(
            dict.fromkeys(
                f"{finding.check.value}: {finding.seen}"
                for finding in report.findings
                if finding.status is probe.Status.FAILED
            )
        )
        for report in reports
        if report is not None and report.status is probe.Status.FAILED
    }
