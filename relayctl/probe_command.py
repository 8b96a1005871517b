"""``relayctl probe``: the relays of all regions, checked as Tailscale's clients use them."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import probe
from probe.__main__ import STYLES, dns_server, expect_address, findings_table
from probe.junit import junit
from probe.prometheus import prometheus
from probe.report import Report
from relayctl import relay_check, relays
from relayctl.command import errors_for_people
from relayctl.derp_map_file import MapNode, read_derp_map
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.probing import PARALLEL, TIME_LIMIT, TIMEOUT, Ask, AskRelay, ask_all, ask_node
from relayctl.whole_file import write_whole
from settings import SettingsError

BROKEN = 1
"""Exit code where a relay is broken; with ``--strict`` also where one has a warning."""
WRONG_ASKED = 2
"""Exit code for wrong options and settings, as click has it."""
NOT_JUDGED = 3
"""Exit code where no relay is known to be broken, and of one nothing at all could be found out."""


@dataclass(frozen=True)
class _Asked:
    """A relay to be asked, by the names that it has; ``ask`` is what asks it."""

    stack: str
    region: str
    domain: str
    ask: Ask


@click.command("probe")
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option(
    "--derp-map",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Ask the relays of a DERP map instead: JSON, HuJSON, headscale's YAML, or a policy file.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Root certificates to trust, in PEM, for --derp-map; else the system's.",
)
@click.option(
    "--server-keys",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keys that the relays of --derp-map are known to have: a JSON file of keys by host name.",
)
@click.option(
    "--accept-key", is_flag=True, help="Take the keys that are seen for those to be known from now on."
)
@expect_address
@dns_server
@click.option("--all-ports", is_flag=True, help="Ask every TCP port instead of well-known ones.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=PARALLEL,
    show_default=True,
    help="How many relays are asked at once. More of them disturb each other's latency.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=TIMEOUT,
    show_default=True,
    help="Seconds for each relay.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=TIME_LIMIT,
    show_default=True,
    help="Seconds for all. What is not done by then is told as such.",
)
@click.option("--strict", is_flag=True, help="Count a warning as a failure.")
@click.option("--verbose", is_flag=True, help="Show what is right, too.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON, and nothing else.")
@click.option(
    "--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML."
)
@click.option(
    "--prometheus",
    "prometheus_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write Prometheus's text format, for node_exporter's textfile collector.",
)
def probe_command(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    derp_map: Path | None,
    ca: Path | None,
    server_keys: Path | None,
    accept_key: bool,
    expected_addresses: tuple[str, ...],
    dns_servers: tuple[str, ...],
    all_ports: bool,
    parallel: int,
    timeout: float,
    time_limit: float,
    strict: bool,
    verbose: bool,
    as_json: bool,
    junit_file: Path | None,
    prometheus_file: Path | None,
) -> None:
    """Check relays as Tailscale's clients use them: those of the stacks named, else of all that are up.

    \b
    The exit code is 0 if all work (warnings are told), 1 if one is broken (with
    --strict also for a warning), 2 for wrong options or settings, 3 if none is
    broken and of one nothing could be found out.
    """  # noqa: D301 - click's mark for lines that stay as they are
    if derp_map and stacks:
        raise click.UsageError("--derp-map says which relays are asked: name no stacks beside it")
    if not derp_map and (ca or server_keys):
        raise click.UsageError("--ca and --server-keys are for --derp-map: of stacks both are known")
    if derp_map and accept_key and not server_keys:
        raise click.UsageError("--accept-key needs --server-keys FILE to keep the keys of --derp-map in")
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with errors_for_people(WRONG_ASKED, console, interrupted="Interrupted.") as progress:
        ask = functools.partial(
            probe.check_relay_async,
            timeout=timeout,
            expected_addresses=expected_addresses,
            dns_servers=dns_servers,
            all_ports=all_ports,
        )
        started = time.monotonic()
        known_keys = _keys_in(server_keys) if server_keys else {}
        unknown: list[relays.UnknownRelay] = []
        if derp_map:
            root = ca.read_text() if ca else None
            asked = [_of_node(node, ask, root, known_keys) for node in read_derp_map(derp_map)]
        else:
            found, unknown = relays.of_stacks(stacks, progress, parallel=parallel)
            asked = [_of_stack(each, ask) for each in found]
        reports = [*_asked(asked, progress, parallel, time_limit), *map(_not_known, unknown)]
        if not reports:
            raise PrerequisiteError(
                "no stack of stacks/ is up, so there is nothing to ask",
                "make up STACK=name   brings one up; --derp-map FILE asks relays of a DERP map",
            )
        seconds = time.monotonic() - started
        if accept_key:
            _accept(reports, server_keys, known_keys, progress)
        code = exit_code(reports, strict=strict, settings_are_bad=_any_bad_settings(unknown))
        if as_json:
            told = {"exit_code": code, "seconds": round(seconds, 3), "relays": [r.as_dict() for r in reports]}
            click.echo(json.dumps(told, indent=2))
        else:
            tell(reports, console, verbose=verbose, seconds=seconds)
        # after what was found is told, which a full disk is not to keep from people
        if junit_file:
            write_whole(junit_file, junit(reports, strict=strict))
        if prometheus_file:
            write_whole(prometheus_file, prometheus(reports, at=time.time(), seconds=seconds))
    sys.exit(code)


def exit_code(reports: Sequence[Report], *, strict: bool, settings_are_bad: bool = False) -> int:
    """Return the exit code for what was found, as the command's help has it."""
    statuses = {report.status for report in reports}
    if probe.Status.FAILED in statuses or (strict and probe.Status.WARNING in statuses):
        return BROKEN
    if settings_are_bad:
        return WRONG_ASKED
    return NOT_JUDGED if probe.Status.SKIPPED in statuses else 0


def _any_bad_settings(unknown: Sequence[relays.UnknownRelay]) -> bool:
    return any(isinstance(each.error, SettingsError) for each in unknown)


def _of_stack(found: relays.StackRelay, ask: AskRelay) -> _Asked:
    return _Asked(
        found.stack,
        found.settings.region.code,
        found.settings.domain,
        functools.partial(ask, found.relay),
    )


def _of_node(node: MapNode, ask: AskRelay, root: str | None, keys: dict[str, str]) -> _Asked:
    return _Asked(
        "",
        node.region,
        node.domain,
        functools.partial(ask_node, node, ask, root=root, key=keys.get(node.domain)),
    )


def _asked(asked: Sequence[_Asked], progress: Progress, parallel: int, time_limit: float) -> list[Report]:
    if not asked:
        return []
    many = f"{len(asked)} relays" if len(asked) > 1 else "the relay"
    with progress.step(f"Asking {many} as clients would") as step:
        done: list[int] = []

        def answered(index: int) -> None:
            done.append(index)
            step.detail = f"{len(done)} of {len(asked)}, last {asked[index].stack or asked[index].domain}"

        try:
            findings = ask_all(
                [each.ask for each in asked], parallel=parallel, time_limit=time_limit, on_answer=answered
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return [
        Report(each.stack, each.region, each.domain, found)
        for each, found in zip(asked, findings, strict=True)
    ]


def _not_known(unknown: relays.UnknownRelay) -> Report:
    error = unknown.error
    what, mend = (error.what, error.mend) if isinstance(error, PrerequisiteError) else (str(error), "")
    finding = probe.Finding(
        probe.Check.ROUTE,
        "",
        probe.Status.SKIPPED,
        what,
        meaning="Nothing is known about the relay.",
        mend=mend,
    )
    return Report(unknown.stack, "", "", [finding])


def _keys_in(path: Path) -> dict[str, str]:
    """Return the keys by host name that ``path`` has; none if it is not there yet."""
    try:
        keys = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PrerequisiteError(
            f"{path} cannot be read as JSON: {error}", "mend it, or delete it and give --accept-key"
        ) from error
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise PrerequisiteError(
            f"{path} has no keys by host names",
            'write it as {"derp.example.com": "64 hexadecimal digits"}, or delete it and give --accept-key',
        )
    return keys


def _accept(
    reports: Sequence[Report], server_keys: Path | None, known: dict[str, str], progress: Progress
) -> None:
    for report in reports:
        key = relay_check.seen_key(report.findings)
        if key is None:
            progress.warn(f"{report.title}: no key was seen, or several; the one known before stays")
            continue
        progress.say(f"{report.title}: the key {key} is the relay's from now on")
        if server_keys is None:
            relay_check.note_key(report.stack, report.findings)
        else:
            known[report.domain] = key
    if server_keys is not None:
        write_whole(server_keys, json.dumps(known, indent=2, sort_keys=True) + "\n")


def tell(reports: Sequence[Report], console: Console, *, verbose: bool, seconds: float) -> None:
    """Show a line a relay, and what is not right, with its meaning and how to mend it."""
    console.print(_overview(reports))
    for report in reports:
        shown = [f for f in report.findings if verbose or _is_worth_telling(f, report)]
        if shown:
            console.print()
            name = " ".join(part for part in (report.title, report.domain) if part)
            console.print(findings_table(name, list(shown)))
    broken = sum(report.status is probe.Status.FAILED for report in reports)
    warned = sum(report.status is probe.Status.WARNING for report in reports)
    unknown = sum(report.status is probe.Status.SKIPPED for report in reports)
    told = [f"{len(reports)} asked in {seconds:.1f} s"]
    told += [f"{broken} broken"] if broken else []
    told += [f"{warned} with warnings"] if warned else []
    told += [f"{unknown} not to be judged"] if unknown else []
    told += ["all work"] if broken + unknown == 0 else []
    console.print(f"\n{', '.join(told)}", soft_wrap=True)


def _is_worth_telling(finding: probe.Finding, report: Report) -> bool:
    """Leave out what is right, and what was skipped rightly, such as port 80 of a relay without."""
    if finding.status is probe.Status.SKIPPED:
        return bool(finding.mend) or not report.judged
    return finding.status is not probe.Status.OK


def _overview(reports: Sequence[Report]) -> Table:
    table = Table()
    for heading in ("Region", "Stack", "Relay", "Result", "STUN", "Relayed", "Certificate"):
        table.add_column(heading, overflow="fold")
    for report in reports:
        days = report.fact(probe.Check.TLS, "certificate_days_left")
        left = min((float(each) for each in days), default=None)
        table.add_row(
            report.region,
            report.stack,
            report.domain,
            Text(_result(report), style=STYLES[report.status]),
            _milliseconds(report.latency(probe.Check.STUN)),
            _milliseconds(report.latency(probe.Check.RELAY)),
            "" if left is None else f"{left:.1f} days left",
        )
    return table


def _result(report: Report) -> str:
    told = {
        probe.Status.OK: "works",
        probe.Status.WARNING: "works, but see",
        probe.Status.FAILED: "broken:",
        probe.Status.SKIPPED: "not judged",
    }[report.status]
    if report.status not in (probe.Status.FAILED, probe.Status.WARNING):
        return told
    checks = dict.fromkeys(f.check.value for f in report.findings if f.status is report.status)
    return f"{told} {', '.join(checks)}"


def _milliseconds(latency: float | None) -> str:
    return "" if latency is None else f"{latency * 1000:.1f} ms"
