"""The Caddyfile: the relay's site, port 80 by address, and any number of further sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from settings import Folder, Metrics, Redirect, Settings, Site, Upstream
from settings.site import SECRET, hash_algorithm
from settings.snippet import tokens

# Let's Encrypt's staging directory (letsencrypt.org/docs/staging-environment).
ACME_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"

# The port of Caddy's metrics when they were a plugin's (github.com/miekg/caddy-prometheus).
METRICS_PORT = 9180


@dataclass(frozen=True)
class Places:
    """Where in Caddy's container the data is that its configuration names.

    ``folders`` has a folder for the first name of each site whose files are on
    the operator's machine, such as ``/srv/.sites/blog.example.com/DIGEST``;
    ``secrets`` has a file for each name in the setting ``siteSecrets``;
    ``certificates`` is the folder with certificate and key of the certificate
    source ``files``, and None with any other source.
    """

    folders: Mapping[str, str]
    secrets: Mapping[str, str]
    certificates: str | None


def caddyfile(settings: Settings, places: Places) -> str:
    """Render the whole Caddyfile, indented as `caddy fmt` would.

    With ports 80 and 443, ACME and no further options it is the three lines
    that Caddy needs to put a relay on the net.
    """
    tls = _tls(settings, places)
    blocks = [_block("", _global_options(settings)), _relay(settings, tls)]
    if settings.caddy.answer_by_address:
        blocks.append(_port_80(settings))
    else:
        blocks.append(_redirect_to_port([settings.domain], settings))
    for site in settings.sites:
        blocks.append(_block(", ".join(site.names), [*tls, *_site(site, settings, places)]))
        blocks.append(_redirect_to_port(site.names, settings))
    if settings.metrics is not None:
        blocks.append(_metrics(settings.metrics))
    return "\n".join(block for block in blocks if block)


def _block(head: str, body: list[str]) -> str:
    return "\n".join(_nested(head, body)) + "\n" if body else ""


def _nested(head: str, body: Iterable[str]) -> list[str]:
    return [f"{head} {{".lstrip(), *(f"\t{line}" for line in body), "}"]


def _global_options(settings: Settings) -> list[str]:
    certificate = settings.certificate
    options = []
    if certificate.email:
        options.append(f"email {certificate.email}")
    if certificate.source == "acme-staging":
        options.append(f"acme_ca {ACME_STAGING}")
    if certificate.source == "internal":
        # The root goes to no trust store: the container's own would be the only one.
        options += ["local_certs", "skip_install_trust"]
    if settings.metrics is not None:
        options.append("metrics")
    return options


def _tls(settings: Settings, places: Places) -> list[str]:
    certificate, folder = settings.certificate, places.certificates
    return [f"tls {folder}/{certificate.certificate} {folder}/{certificate.key}"] if folder else []


def _port(settings: Settings) -> str:
    port = settings.caddy.https_port
    return "" if port == 443 else f":{port}"  # noqa: PLR2004 - the port that https implies


def _relay(settings: Settings, tls: list[str]) -> str:
    body = [*tls]
    if settings.caddy.close_debug:
        body.append("respond /debug* 404")
    body += _reverse_proxy(settings)
    return _block(settings.domain, body)


def _reverse_proxy(settings: Settings) -> list[str]:
    return _with_options(f"reverse_proxy {settings.derper.container_name}", _streams(settings))


def _streams(settings: Settings) -> list[str]:
    """Let what is no plain request, such as relay sessions and WebSockets, outlive a reload."""
    delay = settings.caddy.stream_close_delay
    return [] if delay == "0" else [f"stream_close_delay {delay}"]


def _with_options(directive: str, options: list[str]) -> list[str]:
    return _nested(directive, options) if options else [directive]


def _port_80(settings: Settings) -> str:
    """Answer Tailscale's check for captive portals by name and by address; redirect all else.

    Clients ask by literal address and follow no redirect
    (tailscale.com/net/captivedetection). The name has a block of its own: one
    that also stands for any host would come after Caddy's own redirect of the name.
    """

    def body(status: str) -> list[str]:
        return [
            "handle /generate_204 {",
            f"\treverse_proxy {settings.derper.container_name}",
            "}",
            "handle {",
            f"\tredir https://{settings.domain}{_port(settings)}{{uri}} {status}",
            "}",
        ]

    # Another name may be a site tomorrow, or was one yesterday: browsers keep a permanent redirect.
    named, any_host = body("permanent"), body("temporary")
    return _block(f"http://{settings.domain}", named) + "\n" + _block("http://", any_host)


def _redirect_to_port(names: list[str], settings: Settings) -> str:
    """Redirect to a port other than 443, which Caddy's own redirects leave out."""
    if not _port(settings):
        return ""
    heads = ", ".join(f"http://{name}" for name in names)
    return _block(heads, [f"redir https://{{host}}{_port(settings)}{{uri}} permanent"])


def _metrics(metrics: Metrics) -> str:
    """Tell metrics to peers on their network alone: the port is open on the shared one as well.

    Not by ``bind``: a Caddy that is no longer on that network has to start with this, to be given another.
    """
    body = [f"@others not remote_ip {' '.join(metrics.readers)}", "abort @others", "metrics"]
    return _block(f"http://:{METRICS_PORT}", body)


def _site(site: Site, settings: Settings, places: Places) -> Iterator[str]:
    # Pulumi hands them over by their names, whatever their order in the stack file.
    for name, value in sorted(site.headers.items()):
        if value is None:
            yield f"header -{name}"
        else:
            # Once before what answers, which is all that Caddy's own errors have; and once after an
            # upstream, whose header of that name would be beside it.
            yield f"header {name} {_quoted(value, places)}"
            yield f"header >{name} {_quoted(value, places)}"
    serves = site.serves
    if site.compress or (site.compress is None and isinstance(serves, Folder)):
        yield "encode"
    asks = _basic_auth(site)
    match serves:
        case Redirect(url=url, status=status):
            redirect = f"redir {url}{{uri}} {'permanent' if status == 301 else status}"  # noqa: PLR2004
            # Caddy redirects before it asks for a password, unless it is told the order.
            yield from _nested("route", [*asks, redirect]) if asks else [redirect]
        case Folder() as folder:
            yield from [*asks, *_files(folder, folder.path or places.folders[site.names[0]])]
        case Upstream() as upstream:
            yield from [
                *asks,
                *_with_options(
                    f"reverse_proxy {upstream.address}", [*_streams(settings), *_proxy(upstream, places)]
                ),
            ]
        case None:
            yield from asks
    if site.snippet is not None:
        yield from _directives(_with_secrets(site.snippet, places))


def _basic_auth(site: Site) -> list[str]:
    if not site.basic_auth:
        return []
    algorithm = {hash_algorithm(each) for each in site.basic_auth.values()}.pop()
    head = "basic_auth" if algorithm == "bcrypt" else f"basic_auth {algorithm}"
    return _nested(head, (f"{user} {hash_}" for user, hash_ in sorted(site.basic_auth.items())))


def _files(folder: Folder, root: str) -> Iterator[str]:
    yield f"root {root}"
    if folder.fallback is not None:
        yield f"try_files {{path}} {folder.fallback}"
    yield "file_server browse" if folder.listing else "file_server"


def _proxy(upstream: Upstream, places: Places) -> Iterator[str]:
    if (health := upstream.health) is not None:
        yield f"health_uri {health.path}"
        yield f"health_interval {health.interval}"
        yield f"health_timeout {health.timeout}"
        yield f"health_status {health.status}"
    for name, value in sorted(upstream.request_headers.items()):
        yield f"header_up -{name}" if value is None else f"header_up {name} {_quoted(value, places)}"
    if (tls := upstream.tls) is not None:
        options = [f"tls_server_name {tls.server_name}"] if tls.server_name else []
        if tls.trust:
            options += _nested("tls_trust_pool inline", (f"trust_der {der}" for der in tls.trust))
        if not tls.verify:
            options.append("tls_insecure_skip_verify")
        if options:
            yield from _nested("transport http", options)


def _with_secrets(text: str, places: Places) -> str:
    """Put Caddy's own placeholder for a file in the place of each secret's: Caddy reads it as it answers."""
    return SECRET.sub(lambda found: f"{{file.{places.secrets[found[1]]}}}", text)


def _quoted(value: str, places: Places) -> str:
    """Quote a header's value, which settings/site.py has seen to that it can be."""
    text = _with_secrets(value, places)
    quote = "`" if '"' in text or "\\" in text else '"'
    return f"{quote}{text}{quote}"


def _directives(snippet: str) -> Iterator[str]:
    """Yield the lines of ``snippet`` as `caddy fmt` indents them; text of several lines stays as it is."""
    within: set[int] = set()
    braces: dict[int, str] = {}
    for token in tokens(snippet):
        within.update(range(token.first_line + 1, token.last_line + 1))
        if token.text in {"{", "}"}:
            braces[token.first_line] = braces.get(token.first_line, "") + token.text
    depth, directive = 0, ""
    for number, line in enumerate(snippet.rstrip().split("\n"), start=1):
        text = line if number in within else line.lstrip()
        text = text if number + 1 in within else text.rstrip()
        here = braces.get(number, "")
        if number in within:
            directive += f"\n{text}"
        elif directive.endswith("\\"):
            # a line break that is escaped
            directive += f"\n {text}"
        elif text:
            yield from [directive] if directive else []
            directive = "\t" * (depth - here.startswith("}")) + text
        depth += here.count("{") - here.count("}")
    yield directive
