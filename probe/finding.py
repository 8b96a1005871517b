"""What a check found out about a relay: one finding for each check and address, or for the whole relay."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Check(enum.StrEnum):
    """The checks, in the order in which they are reported."""

    ROUTE = "route"
    TLS = "tls"
    PAGE = "page"
    LATENCY_CHECK = "latency-check"
    UPGRADE = "derp-upgrade"
    RELAY = "relay"
    DEBUG_HTTPS = "debug-https"
    STUN = "stun"
    STUN_ADDRESS = "stun-address"
    NETWORK = "network"
    CAPTIVE_PORTAL = "captive-portal"
    REDIRECT = "redirect"
    DEBUG_HTTP = "debug-http"
    PORTS = "open-ports"
    DNS = "dns"
    SERVER_KEY = "server-key"


class Status(enum.StrEnum):
    """How a check ended.

    ``WARNING`` means that it works, but somebody must see to it soon;
    ``SKIPPED`` that it could not be judged. The finding says why.
    """

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check at one address.

    ``address`` is the literal address that was asked, empty for a finding about
    the whole relay. ``seen`` says what was observed; ``meaning`` what that means
    for the relay's users and ``mend`` how to mend it (both empty unless there is
    something to say). ``latency`` is in seconds, ``None`` where nothing was
    measured. ``facts`` holds the same observations for programs: strings, numbers
    and truth values by name.
    """

    check: Check
    address: str
    status: Status
    seen: str
    meaning: str = ""
    mend: str = ""
    latency: float | None = None
    facts: Mapping[str, str | float | bool] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """``IPv4`` or ``IPv6``; empty for a finding about the whole relay."""
        return f"IPv{ipaddress.ip_address(self.address).version}" if self.address else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding with JSON types only."""
        return {
            "check": self.check.value,
            "family": self.family,
            "address": self.address,
            "status": self.status.value,
            "seen": self.seen,
            "meaning": self.meaning,
            "mend": self.mend,
            "latency_seconds": self.latency,
            "facts": dict(self.facts),
        }


def is_up(findings: Iterable[Finding]) -> bool:
    """Tell whether the relay works: nothing failed, and not everything was skipped."""
    statuses = {finding.status for finding in findings}
    return Status.FAILED not in statuses and not statuses.isdisjoint({Status.OK, Status.WARNING})


_UNUSABLE = (
    "Nobody can relay through it, yet clients choose their relay by STUN alone: those that chose this one"
    " lose their peers (tailscale/tailscale#15216)."
)
_DOOR_443 = (
    "See that Caddy runs, that the port is published and that the firewall lets TCP through to it; look at"
    " Caddy's log."
)
_DOOR_80 = (
    "See that Caddy runs, that port 80 is published and that the firewall lets TCP through to it; or leave"
    " CanPort80 out of the DERP map."
)
_STUN = (
    "See that derper runs, that the UDP port is published for this address family and that the firewall lets"
    " UDP through to it."
)
_INTERNALS = "Anybody can read the relay's internals and profile it."
_DERPER = "See that derper runs and that the domain's site in the Caddyfile passes this path to it."
_ASTRAY = (
    "Clients whose DERP map has the relay's literal addresses still work; those without go where DNS says,"
    " and so does who issues certificates: the next renewal fails."
)

CONSEQUENCES: Mapping[Check, tuple[str, str]] = {
    Check.ROUTE: (
        "Nothing is known about the relay at this address.",
        "Ask from a machine that has an address and a route of this family.",
    ),
    Check.TLS: (_UNUSABLE, _DOOR_443),
    Check.PAGE: ("Browsers do not see the relay's page; the name leads somewhere else or nowhere.", _DERPER),
    Check.LATENCY_CHECK: (
        "Clients on networks without UDP measure relays by this and cannot choose this one.",
        _DERPER,
    ),
    Check.UPGRADE: (_UNUSABLE, _DERPER),
    Check.RELAY: (
        _UNUSABLE,
        "Look at derper's log, and see that Caddy passes the upgraded connection on as it is.",
    ),
    Check.DEBUG_HTTPS: (
        _INTERNALS,
        "Refuse /debug* in the Caddyfile and keep the X-Forwarded-For header that Caddy sends to derper.",
    ),
    Check.STUN: (
        "Clients never choose this relay, as they measure by STUN, and do not learn their address from it.",
        _STUN,
    ),
    Check.STUN_ADDRESS: ("", "Mend STUN first."),
    Check.NETWORK: (
        "How much gets lost on the way to the relay, and how long it takes, is not known.",
        "Look at the load of the relay's host and at its provider's network.",
    ),
    Check.CAPTIVE_PORTAL: (
        "Where the DERP map says CanPort80, clients take the answer for a captive portal.",
        _DOOR_80,
    ),
    Check.REDIRECT: (
        "Who types the name without https:// does not get to the page.",
        "See that Caddy runs, that port 80 is published and that the firewall lets TCP through to it.",
    ),
    Check.DEBUG_HTTP: (
        _INTERNALS,
        "Refuse /debug* in the port 80 sites of the Caddyfile; pass only /generate_204 to derper there.",
    ),
    Check.PORTS: (
        "Whatever listens there can be attacked by everybody, and the relay's host with it.",
        "Bind it to 127.0.0.1, or publish it from no container, or close the port in the firewall.",
    ),
    Check.DNS: (
        _ASTRAY,
        "Make A and AAAA records for the relay's name with the relay's addresses, and no others.",
    ),
    Check.SERVER_KEY: (
        "Clients that reach different derpers under one name cannot reach each other through them.",
        "Let the name and all its addresses lead to one derper.",
    ),
}
"""For each check, what its failure means for users and how to mend it, where nothing more exact is known."""


def ok(
    check: Check,
    address: str,
    seen: str,
    *,
    latency: float | None = None,
    facts: Mapping[str, str | float | bool] | None = None,
) -> Finding:
    """Return the finding of a passed check."""
    return Finding(check, address, Status.OK, seen, latency=latency, facts=facts or {})


def warning(  # noqa: PLR0913 -- the fields of a finding
    check: Check,
    address: str,
    seen: str,
    *,
    meaning: str,
    mend: str,
    latency: float | None = None,
    facts: Mapping[str, str | float | bool] | None = None,
) -> Finding:
    """Return the finding of a check that passed, but will not for long or not for everybody."""
    return Finding(check, address, Status.WARNING, seen, meaning, mend, latency, facts or {})


def failed(  # noqa: PLR0913 -- the fields of a finding
    check: Check,
    address: str,
    seen: str,
    *,
    meaning: str | None = None,
    mend: str | None = None,
    latency: float | None = None,
    facts: Mapping[str, str | float | bool] | None = None,
) -> Finding:
    """Return the finding of a failed check; the check's consequences are the defaults."""
    usual_meaning, usual_mend = CONSEQUENCES[check]
    return Finding(
        check,
        address,
        Status.FAILED,
        seen,
        meaning=usual_meaning if meaning is None else meaning,
        mend=usual_mend if mend is None else mend,
        latency=latency,
        facts=facts or {},
    )


def skipped(
    check: Check,
    address: str,
    seen: str,
    *,
    mend: str = "",
    facts: Mapping[str, str | float | bool] | None = None,
) -> Finding:
    """Return the finding of a check that could not be judged; ``seen`` says why."""
    return Finding(check, address, Status.SKIPPED, seen, mend=mend, facts=facts or {})
