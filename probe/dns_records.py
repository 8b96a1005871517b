"""Compares what DNS says of a relay's name with the relay's addresses."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from dns.nameserver import Do53Nameserver, Nameserver

from probe.finding import Check, Finding, Status, failed, ok, skipped, warning
from probe.relay import Relay

_DNS_PORT = 53
_MOST_ALIASES = 8  # a server that is not recursive leaves them to us; more than this is a loop
_MOST_NAME_SERVERS = 4
_ANSWER_WITHIN = 5.0  # seconds for all servers together; resolv.conf(5) has 5 for each

# Names that no DNS server may give out, or that nobody can have: RFC 6761, RFC 8375, RFC 6762, and
# for .internal ICANN's resolution of 2024-07-29.
_NOT_IN_DNS = (
    *("localhost", "test", "invalid", "example", "internal", "local", "home.arpa"),
    *("example.com", "example.net", "example.org"),
)

_UNKNOWN_ADDRESS = (
    "Clients whose DERP map has no literal addresses go there as well, and nothing is known of it: if it is"
    " not the relay, they lose their peers at random."
)
_OLD_ANSWER = "The records were changed not long ago; who asks the same resolver has the old answer still."
_MEND_RESOLVER = "Ask again, or name other DNS servers."
_MISSING = (
    "Clients whose DERP map has the relay's literal addresses do not mind; those without, browsers and who"
    " issues certificates do not reach the relay there."
)


@dataclass(frozen=True, slots=True)
class Told:
    """What DNS told: addresses in their short form, or in ``problem`` why there are none."""

    addresses: tuple[str, ...] = ()
    alias: str = ""
    problem: str = ""
    no_such_name: bool = False


def nameservers(texts: Iterable[str]) -> list[Nameserver]:
    """Return the DNS servers that literal addresses with or without a port name.

    Raises ``ValueError`` for anything else.
    """
    return [_nameserver(text) for text in texts]


def _nameserver(text: str) -> Nameserver:
    literal, port = text, str(_DNS_PORT)
    if text.startswith("["):
        literal, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        literal, _, port = text.partition(":")
    try:
        return Do53Nameserver(str(ipaddress.ip_address(literal)), _port(port))
    except ValueError as error:
        raise ValueError(
            f"DNS server {text!r} is not a literal address; give one such as 192.0.2.1, 192.0.2.1:5353 or"
            " [2001:db8::1]:5353"
        ) from error


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 1 << 16:
        raise ValueError(text)
    return port


async def check_dns(relay: Relay, servers: Sequence[Nameserver], *, within: float) -> Finding:
    """Ask for A and AAAA records; ``within`` is the limit for all together, in seconds.

    With no ``servers`` the system's are asked.
    """
    if not servers and _is_never_in_dns(relay.domain):
        return skipped(Check.DNS, "", f"not asked: {relay.domain} is a name that DNS does not have")
    if not servers and all(ipaddress.ip_address(address).is_loopback for address in relay.addresses):
        return skipped(
            Check.DNS,
            "",
            "not compared: the relay was asked at loopback addresses",
            mend="Give the relay's public addresses.",
        )
    try:
        asking = dns.asyncresolver.Resolver(configure=not servers)
    except dns.resolver.NoResolverConfiguration:
        return skipped(Check.DNS, "", "not asked: this machine has no DNS server", mend="Name one.")
    if servers:
        asking.nameservers = servers
    # Half, so that what the root's servers say can still be asked for.
    asking.lifetime = min(within / 2, _ANSWER_WITHIN)
    try:
        async with asyncio.timeout(within):
            return await _compared(relay, asking, certain=bool(servers))
    except TimeoutError:
        return skipped(Check.DNS, "", f"not judged: no answer within {within:.1f} s", mend=_MEND_RESOLVER)


async def _compared(relay: Relay, asking: dns.asyncresolver.Resolver, *, certain: bool) -> Finding:
    domain = dns.name.from_text(relay.domain)
    ipv4, ipv6 = await asyncio.gather(
        _ask(asking, domain, dns.rdatatype.A), _ask(asking, domain, dns.rdatatype.AAAA)
    )
    problem = ipv4.problem or ipv6.problem
    if problem:
        # A resolver that tells nothing of the root either is broken itself, or has no way to the Internet.
        root = await _ask(asking, dns.name.root, dns.rdatatype.NS)
        if root.problem:
            return skipped(Check.DNS, "", f"not judged: {problem}", mend=_MEND_RESOLVER)
        return failed(
            Check.DNS,
            "",
            f"{relay.domain}: {problem}",
            mend="See that the domain is registered and paid for, that its name servers answer, and that"
            " DNSSEC records, if it has any, are right.",
        )
    finding = judge(relay, ipv4, ipv6, certain=certain)
    if finding.status in (Status.FAILED, Status.WARNING):
        try:
            async with asyncio.timeout(asking.lifetime / 2):
                if await _right_at_its_source(relay, asking, domain):
                    return warning(
                        Check.DNS,
                        "",
                        f"{finding.seen}; but the domain's own name servers say what is right",
                        meaning=_OLD_ANSWER,
                        mend="Wait until the old answer's time is over: an hour as a rule, a day at most.",
                        facts=finding.facts,
                    )
        except TimeoutError:
            return finding
    return finding


async def _right_at_its_source(
    relay: Relay, asking: dns.asyncresolver.Resolver, domain: dns.name.Name
) -> bool:
    """Ask the name servers of the domain's zone themselves, which have no old answers."""
    try:
        zone = await dns.asyncresolver.zone_for_name(domain, resolver=asking)
        names = [record.target for record in await asking.resolve(zone, dns.rdatatype.NS, search=False)]
    except (dns.exception.DNSException, OSError):
        return False
    kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
    hosts = await asyncio.gather(
        *(_ask(asking, name, kind) for kind in kinds for name in names[:_MOST_NAME_SERVERS])
    )
    addresses = [address for host in hosts for address in host.addresses]
    if not addresses:
        return False
    source = dns.asyncresolver.Resolver(configure=False)
    source.nameservers = [Do53Nameserver(address, _DNS_PORT) for address in addresses]
    source.lifetime = asking.lifetime
    ipv4, ipv6 = await asyncio.gather(*(_ask(source, domain, kind) for kind in kinds))
    return not (ipv4.problem or ipv6.problem) and judge(relay, ipv4, ipv6, certain=True).status is Status.OK


def _is_never_in_dns(domain: str) -> bool:
    labels = domain.lower().split(".")
    return any(".".join(labels[-len(end.split(".")) :]) == end for end in _NOT_IN_DNS)


async def _ask(
    asking: dns.asyncresolver.Resolver, name: dns.name.Name, kind: dns.rdatatype.RdataType
) -> Told:
    """Ask for records of one kind, following aliases that the server leaves to us."""
    alias = ""
    for _ in range(_MOST_ALIASES):
        try:
            answer = await asking.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            return Told(alias=alias, no_such_name=True)
        except dns.exception.Timeout:
            return Told(problem="no DNS server answered in time")
        except dns.resolver.NoNameservers as error:
            codes = sorted({str(each[4]) for each in error.kwargs.get("errors", ()) if each[4]})
            return Told(problem=f"the DNS servers answer {', '.join(codes) or 'nothing of use'}")
        except (dns.exception.DNSException, OSError) as error:
            return Told(problem=f"DNS failed: {error}")
        if answer.canonical_name != name:
            alias = answer.canonical_name.to_text(omit_final_dot=True)
        if answer.rrset is not None or answer.canonical_name == name:
            return Told(tuple(sorted(_addresses(answer))), alias)
        name = answer.canonical_name
    return Told(problem="the name is an alias of an alias, and so on without end")


def _addresses(answer: dns.resolver.Answer) -> Sequence[str]:
    if answer.rrset is None:
        return ()
    kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
    return [str(ipaddress.ip_address(each.address)) for each in answer.rrset if each.rdtype in kinds]


def judge(relay: Relay, ipv4: Told, ipv6: Told, *, certain: bool) -> Finding:
    """Compare what was told with the relay's addresses.

    A name may lead elsewhere in private networks than it does outside; unless it
    is ``certain`` that the right servers were asked, that is not judged.
    """
    told = (*ipv4.addresses, *ipv6.addresses)
    alias = ipv4.alias or ipv6.alias
    name = f"{relay.domain} (alias of {alias})" if alias else relay.domain
    facts = {"dns_addresses": ", ".join(told)}
    if not told:
        missing = "does not exist in DNS" if ipv4.no_such_name else "has neither A nor AAAA record"
        return _without_records(relay, f"{name} {missing}", facts)

    families = {":" in address for address in relay.addresses}
    extra = [address for address in told if address not in relay.addresses]
    elsewhere = [address for address in extra if (":" in address) in families]
    missing_ones = [address for address in relay.addresses if address not in told]
    seen = f"{name} leads to {', '.join(told)}"
    if not extra and not missing_ones:
        return ok(Check.DNS, "", f"{seen}, as it should", facts=facts)
    if not certain and not all(ipaddress.ip_address(address).is_global for address in relay.addresses):
        return skipped(
            Check.DNS,
            "",
            f"{seen}; not compared: the relay was asked at addresses that are not public",
            mend="Give the relay's public addresses.",
            facts=facts,
        )
    if elsewhere or len(missing_ones) == len(relay.addresses):
        wrong = elsewhere or extra
        return failed(
            Check.DNS,
            "",
            f"{seen}; {', '.join(wrong)} is not the relay's, which has {', '.join(relay.addresses)}",
            facts=facts,
        )
    if missing_ones:
        return warning(
            Check.DNS,
            "",
            f"{seen}, but not to {', '.join(missing_ones)}",
            meaning=_MISSING,
            mend=f"Make {' and '.join(_kinds(missing_ones))} record for it as well.",
            facts=facts,
        )
    return warning(
        Check.DNS,
        "",
        f"{seen}; the relay is not said to have {', '.join(extra)}, and nothing was asked there",
        meaning=_UNKNOWN_ADDRESS,
        mend="Check the relay there as well, and name the address in the DERP map; or remove the record.",
        facts=facts,
    )


def _without_records(relay: Relay, seen: str, facts: Mapping[str, str]) -> Finding:
    if relay.ca_roots is None:
        return failed(Check.DNS, "", seen, facts=facts)
    # An authority of one's own needs no DNS, and neither do clients that are given literal addresses.
    mend = f"Make {' and '.join(_kinds(relay.addresses))} record, or keep literal addresses in the DERP map."
    return warning(Check.DNS, "", seen, meaning=_MISSING, mend=mend, facts=facts)


def _kinds(addresses: Sequence[str]) -> list[str]:
    return list(dict.fromkeys("an AAAA" if ":" in address else "an A" for address in addresses))
