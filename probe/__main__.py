"""``python -m probe``: check one relay from this machine's network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from probe.check import TIMEOUT, check_relay, wait_until_up
from probe.finding import Finding, Status, is_up
from probe.relay import HTTP_PORT, HTTPS_PORT, STUN_PORT, Relay

STYLES = {
    Status.OK: "green",
    Status.WARNING: "bold yellow",
    Status.FAILED: "bold red",
    Status.SKIPPED: "yellow",
}


expect_address = click.option(
    "--expect-address",
    "expected_addresses",
    multiple=True,
    help="Address that STUN may return besides this machine's own, such as its NAT's; repeatable.",
)
dns_server = click.option(
    "--dns-server",
    "dns_servers",
    multiple=True,
    help="Literal address of a DNS server to ask instead of the system's, with a port if it is not 53;"
    " repeatable.",
)


@click.command(name="python -m probe")
@click.option("--domain", required=True, help="Name of the relay, as in its certificate.")
@click.option(
    "--address", "addresses", multiple=True, required=True, help="Literal IPv4 or IPv6 address; repeatable."
)
@click.option("--https-port", default=HTTPS_PORT, show_default=True)
@click.option("--http-port", default=HTTP_PORT, show_default=True, help="0: the relay serves no plain HTTP.")
@click.option("--stun-port", default=STUN_PORT, show_default=True)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Root certificates to trust, in PEM; else the system's.",
)
@expect_address
@dns_server
@click.option("--server-key", help="Public key that the relay is known to have, in 64 hexadecimal digits.")
@click.option(
    "--other-port",
    "other_ports",
    multiple=True,
    type=int,
    help="TCP port besides the relay's own that may be open, such as 22; repeatable. With it usual ports that"
    " are open and not named are a failure; without it only those that must never be open.",
)
@click.option(
    "--all-ports", is_flag=True, help="Ask every TCP port; takes longer, so that --timeout has to be more."
)
@click.option("--timeout", default=TIMEOUT, show_default=True, help="Seconds for one check of everything.")
@click.option("--wait", default=0.0, help="Seconds to go on trying until the relay is up.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def main(  # noqa: PLR0913 -- one parameter an option
    *,
    domain: str,
    addresses: tuple[str, ...],
    https_port: int,
    http_port: int,
    stun_port: int,
    ca: Path | None,
    expected_addresses: tuple[str, ...],
    dns_servers: tuple[str, ...],
    server_key: str | None,
    other_ports: tuple[int, ...],
    all_ports: bool,
    timeout: float,
    wait: float,
    as_json: bool,
) -> None:
    """Check a DERP relay as a Tailscale client would use it.

    The exit code is 0 if it works, 1 if not, 2 if an option is wrong.
    """
    try:
        relay = Relay(
            domain=domain,
            addresses=addresses,
            https_port=https_port,
            http_port=http_port or None,
            stun_port=stun_port,
            ca_roots=ca.read_text() if ca else None,
            server_key=server_key,
            other_ports=other_ports or None,
        )
        if wait:
            findings = wait_until_up(
                relay,
                timeout=wait,
                each=timeout,
                expected_addresses=expected_addresses,
                dns_servers=dns_servers,
                all_ports=all_ports,
            )
        else:
            findings = check_relay(
                relay,
                timeout=timeout,
                expected_addresses=expected_addresses,
                dns_servers=dns_servers,
                all_ports=all_ports,
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps({"up": is_up(findings), "findings": [f.as_dict() for f in findings]}, indent=2))
    else:
        Console(emoji=False).print(findings_table(relay.domain, findings))
    sys.exit(0 if is_up(findings) else 1)


def findings_table(title: str, findings: list[Finding]) -> Table:
    """Return the findings as a table for people."""
    table = Table(title=title, show_lines=False)
    for heading in ("Check", "Address", "Result", "Time", "Seen"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("Check", "Result", "Time"))
    for finding in findings:
        seen = Text(finding.seen)
        if finding.meaning:
            seen.append(f"\n{finding.meaning}", style="dim")
        if finding.mend:
            seen.append(f"\n{finding.mend}", style="cyan")
        table.add_row(
            finding.check.value,
            finding.address or "all",
            Text(finding.status.value, style=STYLES[finding.status]),
            f"{finding.latency * 1000:.1f} ms" if finding.latency is not None else "",
            seen,
        )
    return table


if __name__ == "__main__":
    main()
