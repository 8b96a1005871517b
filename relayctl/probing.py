"""Asks many relays at once, within a limit of relays and one of time."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence

import httpx

import probe
from probe import fetch, port80
from probe.finding import failed, skipped
from probe.relay import HTTP_PORT
from relayctl.derp_map_file import MapNode

Ask = Callable[[], Awaitable[list[probe.Finding]]]
AskRelay = Callable[[probe.Relay], Awaitable[list[probe.Finding]]]

PARALLEL = 4
"""Relays that are asked at once. Their TLS handshakes and packets would disturb each other's latency if more
were, on the two cores that most machines have that run such checks."""
TIMEOUT = 20.0
"""Seconds for one relay: twice what a client has for connecting, since all of a relay's doors are asked."""
TIME_LIMIT = 120.0
"""Seconds for all relays."""

# More than 64 relays have open at once, each at two addresses with 256 ports and its other connections.
_FILES = 1 << 16
# What getaddrinfo(3) says where DNS has answered: there is no such name, or it has no address of the family.
_NO_ADDRESS = {socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY}


def ask_all(
    asked: Sequence[Ask], *, parallel: int, time_limit: float, on_answer: Callable[[int], None]
) -> list[list[probe.Finding]]:
    """Return what each of ``asked`` finds, in their order.

    Not more than ``parallel`` run at once. What is not done when ``time_limit``
    seconds have passed is ended, and has one finding that says so. ``on_answer``
    is called with the index of each that is done. Raises what one of them raises.
    """
    _allow_many_files()
    return asyncio.run(_ask_all(asked, parallel, time_limit, on_answer))


def _allow_many_files() -> None:
    """Let this process open as many files as it may: ten relays need more than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _ask_all(
    asked: Sequence[Ask], parallel: int, time_limit: float, on_answer: Callable[[int], None]
) -> list[list[probe.Finding]]:
    turns = asyncio.Semaphore(parallel)
    begun: set[int] = set()

    async def ask(index: int) -> list[probe.Finding]:
        async with turns:
            begun.add(index)
            findings = await asked[index]()
        on_answer(index)
        return findings

    tasks = [asyncio.create_task(ask(index)) for index in range(len(asked))]
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=time_limit)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
    return [
        [_not_done(time_limit, begun=index in begun)] if task in late else task.result()
        for index, task in enumerate(tasks)
    ]


def _not_done(time_limit: float, *, begun: bool) -> probe.Finding:
    return probe.Finding(
        probe.Check.ROUTE,
        "",
        probe.Status.SKIPPED,
        f"not asked{' to the end' if begun else ''} when the time limit of {time_limit:g} s was over",
        meaning="Nothing is known about the relay.",
        mend="Give more time (--time-limit), ask more relays at once (--parallel), or fewer of them.",
    )


async def ask_node(
    node: MapNode,
    ask: AskRelay,
    *,
    root: str | None,
    key: str | None,
) -> list[probe.Finding]:
    """Return what ``ask`` finds of a DERP map's node, at the addresses that clients would use.

    Where the map gives no literal address of a family, that is what this system
    says of the name. Raises ``ValueError`` for what no relay can have.
    """
    addresses: list[str] = []
    problem = ""
    for literal, family in ((node.ipv4, socket.AF_INET), (node.ipv6, socket.AF_INET6)):
        if literal:
            addresses.append(literal)
        elif literal is not None:
            try:
                addresses += await _looked_up(node.domain, family)
            except OSError as error:
                problem = str(error.strerror)
    if not addresses and problem:
        return [
            skipped(
                probe.Check.DNS,
                "",
                f"not judged: {node.domain} could not be looked up from here ({problem})",
                mend="Ask again, see to this machine's DNS, or give IPv4 and IPv6 in the DERP map.",
            )
        ]
    if not addresses:
        return [
            failed(
                probe.Check.DNS,
                "",
                f"{node.domain} has no address in DNS, and {node.name} has none in the DERP map",
                meaning="No client finds the relay.",
                mend="Give IPv4 and IPv6 in the DERP map, or make A and AAAA records.",
            )
        ]
    return await ask(
        probe.Relay(
            domain=node.domain,
            addresses=addresses,
            https_port=node.https_port,
            http_port=HTTP_PORT if node.can_port_80 else None,
            stun_port=node.stun_port,
            ca_roots=root,
            server_key=key,
            verified=node.verified,
        )
    )


async def ask_port_80(relay: probe.Relay, *, seconds: float) -> list[probe.Finding]:
    """Return what the captive portal check finds at each address of a relay.

    Nothing for one that is not to answer there. ``seconds`` is the limit for all together.
    """
    port = relay.http_port
    if port is None or not relay.can_port_80:
        return []
    deadline = asyncio.get_running_loop().time() + seconds

    async def asked(address: str) -> probe.Finding:
        try:
            return await port80.check_captive_portal(address, port, http)
        except TimeoutError:
            return failed(probe.Check.CAPTIVE_PORTAL, address, f"no complete answer within {seconds:g} s")
        except (OSError, httpx.HTTPError) as error:
            return failed(probe.Check.CAPTIVE_PORTAL, address, fetch.explain(error))

    async with fetch.Client(relay.tls_context(), deadline) as http:
        return list(await asyncio.gather(*map(asked, relay.addresses)))


async def _looked_up(name: str, family: socket.AddressFamily) -> list[str]:
    """Return what this system says of a name; raises ``OSError`` where it could not find out."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def tell(found: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look_up() -> None:
        found: list[str] | OSError
        try:
            entries = socket.getaddrinfo(name, None, family=family, proto=socket.IPPROTO_TCP)
            found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except OSError as error:
            found = [] if error.errno in _NO_ADDRESS else error
        # The loop has ended where the answer comes after the time limit.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, found)

    # Not the loop's own getaddrinfo: its end waits for its threads, and a dead resolver takes half a minute.
    threading.Thread(target=look_up, daemon=True).start()
    return await answer
