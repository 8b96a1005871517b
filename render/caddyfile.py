"""The Caddyfile: the relay's site, port 80 by address, and any number of further sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from settings import Folder, Redirect, Settings, Site, Upstream

# Let's Encrypt's staging directory (letsencrypt.org/docs/staging-environment).
ACME_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"

# Where the certificate source `files` has the host's folder in the container.
CERTIFICATE_FOLDER = "/certificates"


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
    blocks = [_block("", _global_options(settings)), _relay(settings, places)]
    if settings.caddy.answer_by_address:
        blocks.append(_port_80(settings))
    else:
        blocks.append(_redirect_to_port([settings.domain], settings))
    for site in settings.sites:
        blocks.append(_block(", ".join(site.names), [*_tls(settings, places), *_serves(site, places)]))
        blocks.append(_redirect_to_port(site.names, settings))
    return "\n".join(block for block in blocks if block)


def _block(head: str, body: list[str]) -> str:
    if not body:
        return ""
    lines = [f"{head} {{" if head else "{", *(f"\t{line}" for line in body), "}"]
    return "\n".join(lines) + "\n"


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
    return options


def _tls(settings: Settings, places: Places) -> list[str]:
    certificate, folder = settings.certificate, places.certificates
    return [f"tls {folder}/{certificate.certificate} {folder}/{certificate.key}"] if folder else []


def _port(settings: Settings) -> str:
    port = settings.caddy.https_port
    return "" if port == 443 else f":{port}"  # noqa: PLR2004 - the port that https implies


def _relay(settings: Settings, places: Places) -> str:
    body = _tls(settings, places)
    if settings.caddy.close_debug:
        body.append("respond /debug* 404")
    body += _reverse_proxy(settings)
    return _block(settings.domain, body)


def _reverse_proxy(settings: Settings) -> list[str]:
    proxy = f"reverse_proxy {settings.derper.container_name}"
    delay = settings.caddy.stream_close_delay
    if delay == "0":
        return [proxy]
    return [f"{proxy} {{", f"\tstream_close_delay {delay}", "}"]


def _port_80(settings: Settings) -> str:
    """Answer Tailscale's check for captive portals by name and by address; redirect all else.

    Clients ask by literal address and follow no redirect
    (tailscale.com/net/captivedetection). The name has a block of its own: one
    that also stands for any host would come after Caddy's own redirect of the name.
    """
    body = [
        "handle /generate_204 {",
        f"\treverse_proxy {settings.derper.container_name}",
        "}",
        "handle {",
        f"\tredir https://{settings.domain}{_port(settings)}{{uri}} permanent",
        "}",
    ]
    return _block(f"http://{settings.domain}", body) + "\n" + _block("http://", body)


def _redirect_to_port(names: list[str], settings: Settings) -> str:
    """Redirect to a port other than 443, which Caddy's own redirects leave out."""
    if not _port(settings):
        return ""
    heads = ", ".join(f"http://{name}" for name in names)
    return _block(heads, [f"redir https://{{host}}{_port(settings)}{{uri}} permanent"])


def _serves(site: Site, places: Places) -> Iterator[str]:
    match site.serves:
        case Upstream(address=address):
            yield f"reverse_proxy {address}"
        case Folder(source=source, path=path):
            yield "encode"
            yield f"root {path if source is None else places.folders[site.names[0]]}"
            yield "file_server"
        case Redirect(url=url):
            yield f"redir {url}{{uri}} permanent"
