"""The relay of a stack, checked as a client would."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Sequence
from pathlib import Path

import docker
import docker.errors
from rich.table import Table

import probe
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.progress import Progress
from relayctl.probing import TIMEOUT
from relayctl.stack import state_copy
from relayctl.whole_file import write_whole
from settings import HetznerHost, Settings

# Where Caddy keeps its own authority's root (caddyserver.com/docs/conventions#data-directory).
_ROOT_CERTIFICATE = "/data/caddy/pki/authorities/local/root.crt"
# Seconds for a certificate to be issued and everything to answer; ACME takes some ten of them.
_PATIENCE = 60.0
_SSH_PORT = 22


def root_certificate(stack: str) -> Path:
    """Return the path of the copy of the root of Caddy's own authority, beside that of the stack's state."""
    return state_copy(stack).with_suffix(".pem")


def save_root_certificate(settings: Settings, stack: str, client: docker.DockerClient) -> Path | None:
    """Copy the root of Caddy's own authority out of its container; ``None`` for other certificates.

    The file is `root_certificate`. Raises ``PrerequisiteError`` if the container
    or the certificate is not there.
    """
    if settings.certificate.source != "internal":
        return None
    try:
        chunks, _ = client.containers.get(settings.caddy.container_name).get_archive(_ROOT_CERTIFICATE)
    except docker.errors.NotFound as error:
        raise PrerequisiteError(
            f"the container {settings.caddy.container_name} has no {_ROOT_CERTIFICATE}: {error.explanation}",
            f"see what Caddy says: docker logs {settings.caddy.container_name}",
        ) from error
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        assert member is not None  # noqa: S101 - the path names a file
        content = member.read()
    path = root_certificate(stack)
    write_whole(path, content.decode())
    return path


def noted_key(stack: str) -> str | None:
    """Return the server key, in hexadecimal, that the relay of ``stack`` is known to have; else ``None``."""
    try:
        return _key_file(stack).read_text().strip() or None
    except FileNotFoundError:
        return None


def note_key(stack: str, findings: Sequence[probe.Finding]) -> str | None:
    """Note the one server key that all connections saw, and return it; ``None`` if there is no such one."""
    key = seen_key(findings)
    if key is not None:
        write_whole(_key_file(stack), f"{key}\n")
    return key


def forget_key(stack: str) -> None:
    """Forget the key of a relay whose volumes are gone: the next one rightly has another."""
    _key_file(stack).unlink(missing_ok=True)


def seen_key(findings: Sequence[probe.Finding]) -> str | None:
    """Return the one server key that all connections saw; ``None`` if none or several were seen."""
    keys = {f.facts["server_key"] for f in findings if "server_key" in f.facts}
    return str(keys.pop()) if len(keys) == 1 else None


def _key_file(stack: str) -> Path:
    return state_copy(stack).with_suffix(".server-key")


def relay_of(settings: Settings, addresses: Sequence[str], root: str | None, key: str | None) -> probe.Relay:
    """Return the relay of ``settings`` as the probe asks it.

    ``root`` is what its certificates are verified with, in PEM, by default what
    this system trusts; ``key`` is the server key that it is known to have.
    """
    caddy = settings.caddy
    return probe.Relay(
        domain=settings.domain,
        addresses=addresses,
        https_port=caddy.https_port,
        http_port=caddy.http_port,
        stun_port=settings.derper.stun_port,
        ca_roots=root,
        server_key=key,
        other_ports=_other_ports(settings),
        can_port_80=caddy.answer_by_address,
    )


def _other_ports(settings: Settings) -> set[int] | None:
    """Return the TCP ports that a server's firewall opens beside the relay's; ``None`` for hosts of yours."""
    if not isinstance(settings.host, HetznerHost):
        return None
    ports = {_SSH_PORT, settings.caddy.http_port}
    for rule in settings.host.firewall_rules:
        if rule.protocol == "tcp" and rule.port is not None:
            first, _, last = rule.port.partition("-")
            ports |= set(range(int(first), int(last or first) + 1))
    return ports


def loopback_addresses(settings: Settings) -> list[str]:
    """Return this machine's own addresses, of the families that the relay is published over."""
    return ["127.0.0.1", "::1"] if settings.network.ipv6 and has_ipv6() else ["127.0.0.1"]


def records_that_lead_elsewhere(settings: Settings, addresses: Sequence[str]) -> str | None:
    """Return what DNS says of the relay's name, if a public authority would not find the relay by it.

    ``None`` where the certificate comes from elsewhere, or the name leads to ``addresses``.
    """
    if settings.certificate.source not in {"acme", "acme-staging"}:
        return None
    try:
        found = socket.getaddrinfo(settings.domain, None, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return f"{settings.domain} has no address in DNS ({error.strerror})"
    told = sorted({str(entry[4][0]) for entry in found})
    return None if set(told) <= set(addresses) else f"{settings.domain} leads to {', '.join(told)}"


def has_ipv6() -> bool:
    """Tell whether this machine's loopback has IPv6, which ``disable_ipv6`` takes away."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def check(
    settings: Settings, addresses: Sequence[str], root: Path | None, progress: Progress
) -> list[probe.Finding]:
    """Check the relay at ``addresses`` until it is up or a minute has passed, and return what was found last.

    All is skipped where this machine has no route to the relay's addresses.
    """
    # Whichever key it has is its own now: it is noted after this.
    relay = relay_of(settings, addresses, None if root is None else root.read_text(), None)
    with progress.step("Checking the relay as a client would") as step:

        def attempted(number: int, findings: list[probe.Finding]) -> None:
            bad = [f.check.value for f in findings if f.status is probe.Status.FAILED]
            step.detail = f"attempt {number + 1}: {_told(list(dict.fromkeys(bad)))}"

        first = probe.check_relay(relay, timeout=TIMEOUT)
        # Where there is no way from here to the relay's addresses, waiting makes none.
        if probe.is_up(first) or all(finding.status is probe.Status.SKIPPED for finding in first):
            return first
        attempted(0, first)
        return probe.wait_until_up(relay, timeout=_PATIENCE, each=TIMEOUT, on_attempt=attempted)


def _told(bad: list[str]) -> str:
    if not bad:
        return "no address can be reached from here"
    more = f" and {len(bad) - 2} more" if len(bad) > 2 else ""  # noqa: PLR2004 - what fits on a line
    return f"{', '.join(bad[:2])}{more} not right yet"


def summary(findings: list[probe.Finding], title: str) -> Table:
    """Return a line a check and a column an address, or one for the whole relay, for a relay that is up."""
    table = Table(title=title, title_justify="left")
    table.add_column("check")
    columns = list(dict.fromkeys(finding.address for finding in findings))
    for address in columns:
        table.add_column(address or "all")
    for check_ in dict.fromkeys(finding.check for finding in findings):
        by_address = {finding.address: finding for finding in findings if finding.check is check_}
        table.add_row(check_.value, *(_cell(by_address.get(address)) for address in columns))
    return table


def _cell(finding: probe.Finding | None) -> str:
    if finding is None:
        return ""
    if finding.latency is not None:
        return f"{finding.status.value} ({finding.latency * 1000:.0f} ms)"
    return finding.status.value
