"""``relayctl map``: the DERP map of stacks that are up, for a policy file, for headscale, or to be served."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
from rich.console import Console

import probe
from probe.relay import HTTP_PORT
from relayctl import relays
from relayctl.command import errors_for_people, make_command, where
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.probing import PARALLEL, ask_all, ask_port_80
from relayctl.whole_file import write_whole
from render.derp_map import (
    MapRegion,
    clashes,
    derp_map,
    derp_map_region,
    headscale_text,
    hujson_text,
    json_text,
    without_port_80,
)

# Seconds for one relay, twice what clients wait for such an answer (tailscale net/captivedetection, 3 s).
_TIMEOUT = 6.0
_TIME_LIMIT = 60.0

_FORMATS: Mapping[str, Callable[[Sequence[MapRegion], bool], str]] = {
    "policy": lambda regions, omit: json_text({"derpMap": derp_map(regions, omit_default_regions=omit)}),
    "hujson": lambda regions, omit: hujson_text(regions, omit_default_regions=omit),
    "json": lambda regions, omit: json_text(derp_map(regions, omit_default_regions=omit)),
    "headscale": lambda regions, _: headscale_text(regions),
}


@click.command("map")
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_FORMATS)),
    default="policy",
    show_default=True,
    help="policy: derpMap of a tailnet's policy file; hujson: the same with comments; json: the map alone, as"
    " --derp-map of derpprobe and headscale's derp.urls take it; headscale: a file for its derp.paths.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, whole or not at all, instead of printing it.",
)
@click.option("--no-probe", is_flag=True, help="Ask no relay, and so claim port 80 of none.")
@click.option(
    "--omit-default-regions",
    is_flag=True,
    help="Have clients use these relays alone, and none of Tailscale's own.",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="CODE=NUMBER",
    help="Multiply the latency of the region CODE when a home is chosen, instead of by its region.score.",
)
@click.option(
    "--no-measure",
    "not_measured",
    multiple=True,
    metavar="CODE",
    help="Have no client measure the region CODE or make it its home, as region.noMeasure does.",
)
def map_command(  # noqa: PLR0913 - one parameter an option
    stacks: tuple[str, ...],
    *,
    kind: str,
    output: Path | None,
    no_probe: bool,
    omit_default_regions: bool,
    scores: tuple[str, ...],
    not_measured: tuple[str, ...],
) -> None:
    """Print the DERP map of the stacks named, else of all that are up, merged.

    Port 80 is claimed only of relays that answer the captive portal check there
    now, at all their addresses. A tailnet's policy file is never written: take
    what is printed into it.
    """
    given = _given_scores(scores)
    console = Console(stderr=True, highlight=False, emoji=False)
    with errors_for_people(console=console, interrupted="Interrupted.") as progress:
        found, unknown = relays.of_stacks(stacks, progress, parallel=PARALLEL, with_roots=False)
        if unknown:
            # A map without a region would take it from all clients.
            errors = [str(each.error) for each in unknown]
            raise PrerequisiteError(
                "\n".join(["there would be regions missing in the map:", *errors]),
                "mend these, or name the stacks that the map is to have",
            )
        if not found:
            raise PrerequisiteError(
                "no stack of stacks/ is up, so there is nothing to map", "make up STACK=name   brings one up"
            )
        regions = [_region(each, given, not_measured) for each in found]
        check(regions, [*given, *not_measured])
        for each in found:
            _warn_of_addresses(each, progress)
        regions = _with_port_80_proved(regions, found, progress, ask=not no_probe)
        if kind == "headscale":
            _warn_of_what_headscale_drops(regions, progress, omitted=omit_default_regions)
        text = _FORMATS[kind](regions, omit_default_regions)
        if output is None:
            click.echo(text, nl=False)
        else:
            write_whole(output, text)
            progress.say(f"Wrote {output}: {', '.join(each.region['RegionCode'] for each in regions)}")


def check(regions: Sequence[MapRegion], codes: Sequence[str] = ()) -> None:
    """Raise ``PrerequisiteError`` if two regions clash, or one of ``codes`` is none of theirs."""
    if clashing := clashes(regions):
        raise PrerequisiteError(
            "\n  ".join(["clients tell regions and nodes by what has to be unique:", *clashing]),
            "change it in one of the two files and bring that stack up, or name the stacks to map",
        )
    there = [each.region["RegionCode"] for each in regions]
    if missing := [code for code in codes if code not in there]:
        raise PrerequisiteError(
            f"there is no region with the code {', '.join(missing)}", f"name one of {', '.join(there)}"
        )


def _given_scores(scores: Sequence[str]) -> dict[str, float]:
    """Return scores by region codes; raises ``click.UsageError`` for what is none."""
    given: dict[str, float] = {}
    for each in scores:
        code, _, number = each.partition("=")
        try:
            score = float(number)
        except ValueError:
            score = 0.0
        if not 0 < score <= 1000:  # noqa: PLR2004 - as region.score
            raise click.UsageError(f"--score {each}: give CODE=NUMBER, more than 0 and up to 1000")
        given[code] = score
    return given


def _region(found: relays.StackRelay, scores: Mapping[str, float], not_measured: Sequence[str]) -> MapRegion:
    """Return the region of a stack, without a claim that was not proved yet.

    Raises ``PrerequisiteError`` if the stack's file says what is not up.
    """
    settings, outputs = found.settings, found.outputs
    region = without_port_80(derp_map_region(settings, outputs.get("ipv4"), outputs.get("ipv6")))
    if region["Nodes"] != without_port_80(outputs["derpMapRegion"])["Nodes"]:
        raise PrerequisiteError(
            f"{where(found.stack)} says another name, port or region.id of the relay than what is up",
            make_command("up", found.stack),
        )
    score = scores.get(settings.region.code, settings.region.score)
    if settings.region.code in not_measured:
        region["NoMeasureNoHome"] = True
    if region.get("NoMeasureNoHome") and score is not None:
        raise PrerequisiteError(
            f"the region {settings.region.code} has a score, and is not measured", "leave one of them out"
        )
    return MapRegion(where(found.stack), region, score)


def _warn_of_addresses(found: relays.StackRelay, progress: Progress) -> None:
    for key in ("ipv4", "ipv6"):
        address = found.outputs.get(key)
        if address is None and (key == "ipv4" or found.settings.network.ipv6):
            progress.warn(
                f"{where(found.stack)} has no host.{key}: clients ask DNS for it, and lose the relay with DNS"
            )
        elif address is not None and ipaddress.ip_address(address).is_loopback:
            progress.warn(f"{where(found.stack)}: host.{key} {address} is a relay for this machine alone")


def _with_port_80_proved(
    regions: Sequence[MapRegion], found: Sequence[relays.StackRelay], progress: Progress, *, ask: bool
) -> list[MapRegion]:
    """Return the regions with ``CanPort80`` where it was just proved, and comments that say so."""
    if not ask:
        return [dataclasses.replace(each, note="port 80 was not asked") for each in regions]
    now = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    with progress.step("Asking whether port 80 answers clients"):
        answers = ask_all(
            [partial(ask_port_80, each.relay, seconds=_TIMEOUT) for each in found],
            parallel=PARALLEL,
            time_limit=_TIME_LIMIT,
            on_answer=lambda _: None,
        )
    proved = []
    for region, of_stack, findings in zip(regions, found, answers, strict=True):
        bad = [finding for finding in findings if finding.status is not probe.Status.OK]
        if of_stack.relay.http_port != HTTP_PORT or not of_stack.relay.can_port_80:
            proved.append(dataclasses.replace(region, note="it does not serve port 80"))
        elif bad:
            for finding in bad:
                progress.warn(f"{of_stack.stack}: no CanPort80, as of {finding.address}: {finding.seen}")
            proved.append(dataclasses.replace(region, note=f"port 80 was not proved on {now}"))
        elif all(ipaddress.ip_address(finding.address).is_loopback for finding in findings):
            proved.append(dataclasses.replace(region, note="port 80 was proved for this machine alone"))
        else:
            addresses = " and ".join(finding.address for finding in findings)
            nodes = [{**node, "CanPort80": True} for node in region.region["Nodes"]]
            proved.append(
                dataclasses.replace(
                    region,
                    region={**region.region, "Nodes": nodes},
                    note=f"port 80 was proved at {addresses} on {now}",
                )
            )
    return proved


def _warn_of_what_headscale_drops(regions: Sequence[MapRegion], progress: Progress, *, omitted: bool) -> None:
    """Tell what headscale takes from its own configuration, or not at all (hscontrol/derp/derp.go)."""
    if omitted:
        progress.warn("headscale serves Tailscale's regions if its derp.urls names them: leave that empty")
    if scored := [str(each.region["RegionCode"]) for each in regions if each.score is not None]:
        progress.warn(f"headscale has no scores of regions: those of {', '.join(scored)} are left out")
