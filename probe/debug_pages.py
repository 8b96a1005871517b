"""Tries every door to derper's debug pages: all must be closed to the world.

The pages and who may see them: tailscale ``tsweb/debug.go`` and ``tsweb/tsweb.go``,
``AllowDebugAccess``. derper lets in who comes from loopback or a tailnet and has no
``X-Forwarded-For``, or who knows a key; behind a proxy that is for the proxy to keep
so. Nothing is asked that changes the relay or keeps it busy, such as /debug/gc and
/debug/pprof/profile: they stand behind the same lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx

from probe.fetch import Answer, Client, explain
from probe.finding import Check, Finding, failed, ok, skipped
from probe.relay import HTTP_PORT, HTTPS_PORT, Relay, in_url

PAGES = (
    *("/debug/", "/debug/vars", "/debug/varz", "/debug/check"),
    *("/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/heap?debug=1", "/debug/pprof/symbol"),
)

# Other ways to write /debug/varz, which a proxy's rule may miss while the server behind it, or the proxy when
# it passes the request on, takes them for the same.
_OTHER_FORMS = (
    *(
        "//debug/varz",
        "/debug//varz",
        "//debug//varz",
        "/./debug/varz",
        "/debug/./varz",
        "/debug/../debug/varz",
    ),
    *(
        "/derp/../debug/varz",
        "/derp/%2e%2e/debug/varz",
        "/generate_204/../debug/varz",
        "/derp/..%2fdebug/varz",
    ),
    *(
        "/%64ebug/varz",
        "/debug%2fvarz",
        "/%2fdebug/varz",
        "/debug/%76arz",
        "/%2564ebug/varz",
        "/debug/varz%00",
    ),
    *("/DEBUG/varz", "/debug/varz/", "/debug;x/varz", "/debug/varz;x", "/debug\\varz"),
)
_KEYS = (
    *("/debug/varz?debugkey=", "/debug/varz?debugkey=x", "/debug/varz?debugkey=%00", "/debug/varz?debugkey"),
    *("/debug/varz?debugkey=&debugkey=x", "/debug/varz?x;debugkey=x"),
)
_FORGED: tuple[Mapping[str, str], ...] = (
    {"X-Forwarded-For": ""},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "100.64.0.1"},  # an address as in tailnets
    {"X-Real-IP": "127.0.0.1", "True-Client-IP": "127.0.0.1", "CF-Connecting-IP": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    # A proxy that takes away what this names takes its own header away (RFC 9110, section 7.6.1).
    {"Connection": "X-Forwarded-For"},
    {"Connection": "close, X-Forwarded-For", "X-Forwarded-For": "127.0.0.1"},
    {"X-Original-URL": "/debug/varz", "X-Rewrite-URL": "/debug/varz"},
)

# What the pages are known by: the words are derper's and Go's own. A success alone says nothing: derper
# answers every unknown path with its page, and Caddy every unknown name with an empty one.
_MARKS = (
    b"debug</h1><ul>",
    b'"memstats":',
    b"# TYPE ",
    b"ConsistencyCheck",
    b"/debug/pprof/",
    b"goroutine profile:",
    b"heap profile:",
    b"num_symbols:",
    b"<a href='/debug/'>",
)

_AT_ONCE = 6  # as many connections as browsers make to one server
_TOLD = 3


@dataclass(frozen=True, slots=True)
class _Door:
    """A request for a debug page: ``target`` as it stands in the request's first line."""

    target: str
    host: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return what to send to get the same answer."""
        more = "".join(f", {name}: {value}" for name, value in self.headers.items())
        return f"{self.target} (Host {self.host}{more})"


def _doors(hosts: Iterable[str], others: Iterable[str]) -> Iterator[_Door]:
    """Yield every door of each of ``hosts``, and the plainest ones of ``others``."""
    for host in hosts:
        yield from (_Door(target, host) for target in ("/", *PAGES, *_OTHER_FORMS, *_KEYS))
        yield from (_Door("/debug/varz", host, headers) for headers in _FORGED)
        yield _Door("/", host, _FORGED[-1])
    for host in others:
        yield from (_Door(target, host) for target in ("/debug/", "/debug/varz", "//debug/varz"))


async def check_debug_https(relay: Relay, address: str, http: Client) -> Finding:
    """Ask over HTTPS by name, and by address and other names in ``Host``."""
    doors = _doors(
        [relay.host_header(relay.https_port, HTTPS_PORT)], [in_url(address), "localhost", "127.0.0.1"]
    )
    base = f"https://{in_url(address)}:{relay.https_port}"
    return await _closed(Check.DEBUG_HTTPS, address, http, base, doors, relay.domain)


async def check_debug_http(relay: Relay, address: str, port: int, http: Client) -> Finding:
    """Ask over plain HTTP by address and by name."""
    doors = _doors([in_url(address), relay.host_header(port, HTTP_PORT)], ["localhost", "127.0.0.1"])
    return await _closed(Check.DEBUG_HTTP, address, http, f"http://{in_url(address)}:{port}", doors, None)


async def _closed(  # noqa: PLR0913, PLR0917 -- where the doors are, and where to report
    check: Check, address: str, http: Client, base: str, doors: Iterable[_Door], server_name: str | None
) -> Finding:
    """Try all doors; an open one is a failure, whatever becomes of the others.

    Skipped if a door cannot be judged because nothing answered or derper is down.
    """
    opened: list[str] = []
    unknown: list[str] = []
    closed: set[int] = set()
    tried = 0
    waiting = iter(doors)

    async def some() -> None:
        nonlocal tried
        for door in waiting:
            tried += 1
            try:
                answer = await http.get(
                    base, target=door.target, host=door.host, server_name=server_name, headers=door.headers
                )
            except TimeoutError:
                unknown.append(f"{door}: no answer in time")
            except (httpx.HTTPError, OSError) as error:
                unknown.append(f"{door}: {explain(error)}")
            else:
                if _shows(answer):
                    opened.append(f"{door} with {answer.status}")
                elif httpx.codes.is_server_error(answer.status):
                    unknown.append(f"{door}: {answer.status}")
                else:
                    closed.add(answer.status)

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    if opened:
        return failed(check, address, f"answered: {_some(opened)}")
    if unknown:
        return skipped(check, address, f"not judged: {_some(unknown)}")
    return ok(check, address, f"not shown by any of {tried} requests: {', '.join(map(str, sorted(closed)))}")


def _shows(answer: Answer) -> bool:
    return httpx.codes.is_success(answer.status) and any(mark in answer.body for mark in _MARKS)


def _some(doors: list[str]) -> str:
    more = len(doors) - _TOLD
    return "; ".join(doors[:_TOLD]) + (f"; and {more} more" if more > 0 else "")
