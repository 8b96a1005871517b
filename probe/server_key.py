"""Judges the public keys that a relay shows: clients seal their login to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probe.finding import Check, Finding, failed, ok, skipped

_SEVERAL = (
    "Two or more derpers answer behind one name, such as by a load balancer or a record that leads to another"
    " host. Clients that reach one do not find those that reach another: they lose their peers at random."
)
_MEND_SEVERAL = (
    "Let name, addresses and proxy lead to one derper only; for a second one make a region of its own in the"
    " DERP map."
)
_OTHER = (
    "Either the relay has lost the volume with its key and made a new one, which clients bear, or somebody"
    " else answers in its place."
)
_MEND_OTHER = (
    "If the volume with derper's key was made anew, note the new key as the known one, and keep the volume"
    " from now on. Else see where the name and addresses lead, and who terminates TLS there."
)


def judge(keys: Mapping[str, Sequence[str]], known: str | None) -> Finding:
    """Compare the keys seen by address, each 64 hexadecimal digits, with each other and with a known one."""
    by_key: dict[str, list[str]] = {}
    for address, seen in keys.items():
        for key in dict.fromkeys(seen):
            by_key.setdefault(key, []).append(address)
    if not by_key:
        return skipped(
            Check.SERVER_KEY, "", "not seen: no connection was upgraded", mend="Mend derp-upgrade first."
        )
    if len(by_key) > 1:
        told = "; ".join(f"{key} at {', '.join(at)}" for key, at in by_key.items())
        return failed(
            Check.SERVER_KEY,
            "",
            f"{len(by_key)} different keys: {told}",
            meaning=_SEVERAL,
            mend=_MEND_SEVERAL,
        )
    (key,) = by_key
    facts = {"server_key": key}
    if known is not None and key != known:
        return failed(
            Check.SERVER_KEY,
            "",
            f"the key is {key}, known is {known}",
            meaning=_OTHER,
            mend=_MEND_OTHER,
            facts=facts,
        )
    count = sum(map(len, keys.values()))
    compared = "the known one" if known is not None else "none was known to compare with"
    return ok(
        Check.SERVER_KEY, "", f"the same {key} each of {count} times it was shown; {compared}", facts=facts
    )
