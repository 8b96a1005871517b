"""What a relay answers on its HTTPS port: certificate, page, latency check, upgrade to DERP."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from cryptography import x509
from cryptography.x509.oid import NameOID

from probe import derp
from probe.fetch import Answer, Client, explain
from probe.finding import Check, Finding, failed, ok, warning
from probe.relay import HTTPS_PORT, Relay, in_url

# OpenSSL's include/openssl/x509_vfy.h, X509_V_ERR_*.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}
_WRONG_NAME = 62

_DAY = 86400.0

# A share, since lifetimes go from the 12 hours of Caddy's own authority to 90 days. Caddy renews when a third
# is left (certmagic maintain.go, DefaultRenewalWindowRatio): at a fifth it has tried in vain for long.
_LEAST_LEFT = 1 / 5

_NO_UPSTREAM = {502, 503, 504}
_DERPER_DOWN = "Caddy answers, derper behind it does not: start derper and look at its log."


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is reported of a server's certificate."""

    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime

    @property
    def days(self) -> float:
        """Days for which it is valid."""
        return (self.not_after - self.not_before).total_seconds() / _DAY

    @property
    def days_left(self) -> float:
        """Days until it expires; negative since then."""
        return (self.not_after - datetime.now(UTC)).total_seconds() / _DAY


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate in DER; raises ``ValueError`` if it is none."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(name.value) for name in alternatives]
    except x509.ExtensionNotFound:
        names = []
    issuer = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Certificate(
        tuple(names),
        str(issuer[0].value) if issuer else certificate.issuer.rfc4514_string(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


async def check_tls(relay: Relay, address: str, context: ssl.SSLContext) -> Finding:
    """Connect and verify chain and name; tell the days left.

    Raises ``OSError`` if there is no connection.
    """
    started = time.perf_counter()
    try:
        certificate, version = await _handshake(relay, address, context)
    except ssl.SSLCertVerificationError as error:
        return await _refused(relay, address, error)
    except ssl.SSLError as error:
        if "INTERNAL_ERROR" in (error.reason or "") or "UNRECOGNIZED_NAME" in (error.reason or ""):
            return failed(
                Check.TLS,
                address,
                f"the server has no certificate for {relay.domain}: {explain(error)}",
                mend="Right after the start wait a little. Else see that the domain is a site of the"
                " Caddyfile and look in Caddy's log why it gets no certificate (DNS, ports 80 and 443"
                " reachable, rate limits).",
            )
        return failed(Check.TLS, address, explain(error))
    latency = time.perf_counter() - started
    facts = {**_facts(certificate), "tls_version": version}
    seen = (
        f"{version}, certificate for {', '.join(certificate.names)} from {certificate.issuer},"
        f" {certificate.days_left:.1f} days left"
    )
    if not relay.verified:
        return ok(
            Check.TLS, address, f"{seen}; not verified, as clients are told", latency=latency, facts=facts
        )
    if certificate.days_left < certificate.days * _LEAST_LEFT:
        return warning(
            Check.TLS,
            address,
            f"{seen} of {certificate.days:.1f}",
            meaning="The certificate should have been renewed by now. Nobody can relay through it from"
            f" {certificate.not_after:%Y-%m-%d %H:%M} UTC on, although clients go on choosing it by STUN.",
            mend="Look in Caddy's log why it is not renewed: DNS and ports 80 and 443 must lead to it, and"
            " the authority's rate limits leave room. A certificate of your own you renew yourself.",
            latency=latency,
            facts=facts,
        )
    return ok(Check.TLS, address, seen, latency=latency, facts=facts)


async def _handshake(relay: Relay, address: str, context: ssl.SSLContext) -> tuple[Certificate, str]:
    _, writer = await asyncio.open_connection(
        address, relay.https_port, ssl=context, server_hostname=relay.domain
    )
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        if der is None:
            raise ssl.SSLError("the server showed no certificate")
        return read_certificate(der), tls.version() or "TLS"
    finally:
        writer.transport.abort()


async def _refused(relay: Relay, address: str, error: ssl.SSLCertVerificationError) -> Finding:
    """Look at the refused certificate without trusting it, to tell what is wrong with it."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        certificate, _ = await _handshake(relay, address, unverified)
    except (OSError, ValueError):
        return failed(Check.TLS, address, f"certificate refused: {error.verify_message}")

    code = error.verify_code
    days = certificate.days_left
    if code == _WRONG_NAME:
        seen = f"the certificate is for {', '.join(certificate.names) or 'no name'}, not for {relay.domain}"
        mend = "See that the domain is a site of the Caddyfile and that the address is the relay's."
    elif code == _EXPIRED and days < 0:
        seen = f"the certificate expired {-days:.1f} days ago, on {certificate.not_after:%Y-%m-%d %H:%M} UTC"
        mend = "Look in Caddy's log why it is not renewed (DNS, ports 80 and 443 reachable, rate limits)."
    elif code == _NOT_YET_VALID and certificate.not_before > datetime.now(UTC):
        seen = f"the certificate is valid only from {certificate.not_before:%Y-%m-%d %H:%M} UTC"
        mend = "Set the clocks of the relay's host and of this machine right."
    elif code in _UNKNOWN_CA:
        seen = f"the certificate is from {certificate.issuer}, which is not among the roots to trust"
        mend = (
            "With Caddy's internal CA give its root certificate; with ACME see that it is not a staging"
            " certificate. Clients trust public CAs only, unless the root is installed on them."
        )
    else:
        seen = f"certificate from {certificate.issuer} refused: {error.verify_message}"
        mend = "Let Caddy issue a new certificate, with its whole chain."
    return failed(Check.TLS, address, seen, mend=mend, facts=_facts(certificate))


def _facts(certificate: Certificate) -> Mapping[str, str | float | bool]:
    return {
        "certificate_days_left": certificate.days_left,
        "certificate_not_after": certificate.not_after.timestamp(),
        "certificate_issuer": certificate.issuer,
        "certificate_names": ", ".join(certificate.names),
    }


async def check_page(relay: Relay, address: str, http: Client) -> Finding:
    """Get the front page and see that it is derper's, in any of the forms that derper's ``-home`` allows."""
    answer = await _get(relay, address, http, "/")
    if answer.status in _NO_UPSTREAM:
        return failed(Check.PAGE, address, f"HTTP {answer.status}", mend=_DERPER_DOWN)
    text = answer.body.decode(errors="replace")
    # tailscale cmd/derper/derper.go, homePageTemplate and getHomeHandler; tsweb/tsweb.go, AddBrowserHeaders.
    headers_of_derper = answer.headers.get(
        "X-Frame-Options"
    ) == "DENY" and "frame-ancestors 'none'" in answer.headers.get("Content-Security-Policy", "")
    if answer.status == httpx.codes.OK and "<h1>DERP</h1>" in text and "Tailscale" in text:
        return ok(Check.PAGE, address, "derper's page", latency=answer.latency)
    if answer.status == httpx.codes.OK and not answer.body and headers_of_derper:
        return ok(Check.PAGE, address, "derper's blank page", latency=answer.latency)
    if answer.status == httpx.codes.FOUND and headers_of_derper:
        location = answer.headers.get("Location", "")
        return ok(Check.PAGE, address, f"derper's redirect to {location}", latency=answer.latency)
    kind = (
        "an empty page, as Caddy gives where no site matches"
        if not answer.body
        else "a page that is not derper's"
    )
    return failed(Check.PAGE, address, f"HTTP {answer.status} with {kind}")


async def check_latency(relay: Relay, address: str, http: Client) -> Finding:
    """Get what clients without UDP measure by.

    Source: tailscale ``net/netcheck/netcheck.go``, ``measureHTTPSLatency``.
    """
    answer = await _get(relay, address, http, "/derp/latency-check")
    if answer.status != httpx.codes.OK:
        mend = _DERPER_DOWN if answer.status in _NO_UPSTREAM else None
        return failed(Check.LATENCY_CHECK, address, f"HTTP {answer.status}", mend=mend)
    return ok(Check.LATENCY_CHECK, address, "HTTP 200", latency=answer.latency)


async def check_upgrade(relay: Relay, address: str, context: ssl.SSLContext) -> Finding:
    """Upgrade to DERP and compare the server key in the response with that in the first frame."""
    try:
        connection = await derp.connect(relay, address, context)
    except derp.UpgradeRefusedError as error:
        return failed(
            Check.UPGRADE, address, f"upgrade refused with {error}", mend=_mend_upgrade(error.status)
        )
    except derp.DerpError as error:
        return failed(Check.UPGRADE, address, str(error))
    try:
        key, header_key = connection.server_key.hex(), connection.header_key.hex()
    finally:
        await connection.close()
    if key != header_key:
        return failed(
            Check.UPGRADE,
            address,
            f"the server's key is {key} in its first frame, but {header_key} in the 101 response",
            mend="Something between Caddy and derper answers in its place: pass the path to one derper only.",
        )
    return ok(
        Check.UPGRADE,
        address,
        f"DERP version {connection.protocol_version}, server key {key}",
        latency=connection.latency,
        facts={"server_key": key, "protocol_version": connection.protocol_version},
    )


def _mend_upgrade(status: int) -> str | None:
    if status in _NO_UPSTREAM:
        return _DERPER_DOWN
    if status == httpx.codes.UPGRADE_REQUIRED:
        return (
            "A proxy drops the Upgrade header before derper sees it: pass HTTP/1.1 upgrades through, and put"
            " no CDN in front."
        )
    if status == httpx.codes.NOT_FOUND:
        return "See that the path goes to derper and that derper does not run with -derp=false."
    return None


async def _get(relay: Relay, address: str, http: Client, path: str) -> Answer:
    url = f"https://{in_url(address)}:{relay.https_port}{path}"
    return await http.get(url, host=relay.host_header(relay.https_port, HTTPS_PORT), server_name=relay.domain)
