"""Loss and latency of the way to a relay, by a series of STUN requests."""

from __future__ import annotations

import statistics

from probe import stun
from probe.finding import Check, Finding, ok, skipped, warning

REQUESTS = 50
_INTERVAL = 0.02  # seconds; a second for all, with the pace of speech in packets (RFC 3551, section 4.2)

MOST_LOST = 4
"""Of ``REQUESTS``; a warning is for more.

Where 1 % of the packets are lost, as may happen on any long way, more are lost
once in 7000 series; where 30 % are, it is fewer once in 5800 (binomial
distribution). A relay's traffic is TCP, whose rate falls with the root of the
loss: at a tenth and 100 ms, one connection carries 0.45 Mbit/s (Mathis et al.,
The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm, 1997).
"""

LONGEST_LATENCY = 0.4
"""Seconds there and back; a warning is for more.

By way of a relay that is as far from both, a packet takes this long to the other
side, and 400 ms is what one way of a conversation must not exceed (ITU-T G.114).
The farthest relays over land and sea lie below it.
"""

_LAST_ANSWER_WITHIN = 1.5  # seconds after the last request; almost four times the latency that warns
_LAST_ANSWER_AT_LEAST = 0.75  # less time would make loss of latency

_LOSSY = (
    "Connections by way of the relay are slow and stall, since each lost packet is sent again and all behind"
    " it waits; clients may measure the relay wrongly and choose another."
)
_FAR = "Whatever goes by way of the relay takes this long, there and back again twice: calls and shells drag."
_MEND = (
    "Compare from another network. If it is the same there, look at the load of the relay's host and at its"
    " provider's network, and that nothing limits the rate of UDP; else use a relay that is nearer."
)


async def check_network(address: str, port: int, *, within: float) -> Finding:
    """Send STUN requests for a second; ``within`` is the time for all, in seconds.

    To be asked where STUN answers. Raises ``OSError`` if the network refuses.
    """
    sending = REQUESTS * _INTERVAL
    if within < sending + _LAST_ANSWER_AT_LEAST:
        return skipped(Check.NETWORK, address, f"not measured: {within:.1f} s are too few for a series")
    latencies = await stun.ask_often(
        address,
        port,
        requests=REQUESTS,
        interval=_INTERVAL,
        last_within=min(_LAST_ANSWER_WITHIN, within - sending),
    )
    return judge(address, latencies)


def judge(address: str, latencies: list[float]) -> Finding:
    """Judge by the latencies, in seconds, of those of ``REQUESTS`` requests that were answered."""
    lost = REQUESTS - len(latencies)
    median = statistics.median(latencies) if latencies else None
    facts: dict[str, str | float | bool] = {
        "packet_loss_ratio": lost / REQUESTS,
        "stun_requests": REQUESTS,
        "stun_answers": len(latencies),
    }
    seen = f"{lost} of {REQUESTS} STUN requests lost"
    if median is not None:
        seen += f", median latency {median * 1000:.1f} ms"
    bad = []
    if lost > MOST_LOST:
        bad.append(_LOSSY)
    if median is not None and median > LONGEST_LATENCY:
        bad.append(_FAR)
    if bad:
        return warning(
            Check.NETWORK, address, seen, meaning=" ".join(bad), mend=_MEND, latency=median, facts=facts
        )
    return ok(Check.NETWORK, address, seen, latency=median, facts=facts)
