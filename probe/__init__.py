"""Checks a DERP relay as a Tailscale client would use it."""

from probe.check import check_relay, check_relay_async, wait_until_up
from probe.finding import Check, Finding, Status, is_up
from probe.relay import Relay

__all__ = [
    "Check",
    "Finding",
    "Relay",
    "Status",
    "check_relay",
    "check_relay_async",
    "is_up",
    "wait_until_up",
]
