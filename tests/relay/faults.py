"""Faults of a relay, made for real and taken back, and what should be found of each."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery import Content, content_of, deliver
from images import built_image
from images.recipe import host_goarch
from relayctl.probing import TIMEOUT
from settings import settings_from
from settings.base import PROJECT_FOLDER
from tests.checkout import STACK
from tests.docker_host import DockerHost
from tests.relay.programs import running
from tests.relay.running_relay import CADDY, DERPER, DOMAIN, RunningRelay, running_relay
from tests.relay.slow_wire import INTERFACE
from tests.requirements import require
from tests.unit.loopback_relay import Authority

OTHER_NAME = f"other.{DOMAIN}"
# Where the client's namespace has a name server of its own.
NAME_SERVER = "127.0.0.1"

_KEY_FOLDER, _KEY_FILE = "/app/data", "derper.key"  # components/derper.py
# Seconds for a container to serve again, on a machine that is busy with other things.
_PATIENCE = 30.0

# Longer than the week that derpprobe wants (tailscale prober/tls.go, expiresSoon), and shorter than the ten
# days that the authority has left.
_VALID_DAYS = 9.5

Findings = list[dict[str, Any]]


@dataclass(frozen=True)
class WatchedRelay:
    """A relay with a certificate, a name and a key that its clients know.

    ``roots`` is the file with the root that they trust, ``records`` the one from
    which their name server answers; ``key`` is the relay's server key.
    """

    relay: RunningRelay
    folder: Path
    authority: Authority
    key: str = ""

    @property
    def roots(self) -> Path:
        return self.folder / "roots.pem"

    @property
    def records(self) -> Path:
        return self.folder / "records.json"

    @property
    def host(self) -> DockerHost:
        return self.relay.host

    @property
    def addresses(self) -> list[str]:
        """The relay's literal addresses, IPv4 first."""
        return [self.relay.outside.here_ipv4, self.relay.outside.here_ipv6]

    def certificate(self, name: str, to_day: float) -> Path:
        """Return a folder with a certificate for ``name``, valid for ``to_day`` more days, and its key."""
        folder = self.folder / f"certificate-{name}-{to_day}"
        folder.mkdir(exist_ok=True)
        certificate, key = self.authority.certificate_and_key(name, from_day=-10, to_day=to_day)
        (folder / "fullchain.pem").write_text(certificate)
        (folder / "privkey.pem").write_text(key)
        return folder

    def serve(self, change: Callable[[str], str] = str, **changed: Any) -> None:
        """Deliver what the stack's settings, ``changed``, say; ``change`` edits the Caddyfile besides."""
        certificate = {"source": "files", "folder": str(self.certificate(DOMAIN, _VALID_DAYS))}
        settings = {**self.relay.settings, "certificate": certificate, **changed}
        content: Content = content_of(settings_from(settings, "the test's settings"), STACK)
        client = self.host.client()
        deliver(
            client,
            dataclasses.replace(content, caddyfile=change(content.caddyfile)),
            {},
            caddy=str(client.containers.get(CADDY).id),
            program=str(client.images.get(built_image("deliver", host_goarch()).name).id),
            stack=STACK,
        )

    def probe(self, runs: int = 1, at_once: int = 1) -> list[tuple[float, Findings]]:
        """Run our probe from outside of the host, in one process; return seconds and findings of each run."""
        asked = {
            "relay": {
                "domain": DOMAIN,
                "addresses": self.addresses,
                "ca_roots": self.roots.read_text(),
                "server_key": self.key or None,
                "other_ports": [],
            },
            "dns_servers": [NAME_SERVER],
            "timeout": TIMEOUT,
        }
        (self.folder / "asked.json").write_text(json.dumps(asked))
        command = [sys.executable, "-m", "tests.relay.asked_often", str(self.folder / "asked.json")]
        done = self.relay.outside.run(
            [*command, str(runs), str(at_once)],
            cwd=PROJECT_FOLDER,
            timeout=60 + 15 * runs,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [(line["seconds"], line["findings"]) for line in lines]

    def findings(self) -> Findings:
        """Run our probe once."""
        ((_, findings),) = self.probe()
        return findings

    def wait_until_well(self) -> None:
        """Probe until nothing is wrong; ``AssertionError`` if something still is after half a minute."""
        deadline = time.monotonic() + _PATIENCE
        while bad := [f for f in self.findings() if f["status"] in {"failed", "warning"}]:
            assert time.monotonic() < deadline, bad

    def restart(self, name: str) -> None:
        """Start a container that was stopped, and wait until the relay answers by way of Caddy."""
        self.host.client().containers.get(name).start()
        deadline = time.monotonic() + _PATIENCE
        while (status := self._status()) != "200":
            assert time.monotonic() < deadline, f"HTTP {status}"
            time.sleep(0.1)

    def _status(self) -> str:
        to = ["--connect-to", f"::{self.relay.outside.here_ipv4}:443", f"https://{DOMAIN}/derp/probe"]
        return self.relay.outside.run(
            ["curl", "--silent", "--insecure", "--max-time", "5", "--write-out", "%{http_code}", *to]
        ).stdout


@contextlib.contextmanager
def watched_relay(host: DockerHost, folder: Path, **settings: Any) -> Iterator[WatchedRelay]:
    """Bring up a relay on ``host`` that has nothing wrong, and a name server for its client outside."""
    with running_relay(host, folder / "checkout", **settings) as relay:
        watched = WatchedRelay(relay, folder, Authority())
        watched.roots.write_text(watched.authority.pem)
        watched.records.write_text(json.dumps({DOMAIN: watched.addresses}))
        command = [sys.executable, "-m", "tests.relay.name_server", NAME_SERVER, str(watched.records)]
        environment = {"PYTHONPATH": str(PROJECT_FOLDER)}
        with running(relay.outside.command(command), folder / "name_server.log", environment):
            watched.serve()
            watched.wait_until_well()
            (key,) = {f["facts"]["server_key"] for f in watched.findings() if f["check"] == "derp-upgrade"}
            yield dataclasses.replace(watched, key=key)


@dataclass(frozen=True)
class Fault:
    """A fault and what our probe should find of it.

    ``made`` makes it for as long as its context lasts. ``failed`` and ``warned``
    are the checks that should end so, each with a regular expression for what is
    seen; all others pass or are skipped. With ``family`` they do at its addresses alone.
    """

    name: str
    made: Callable[[WatchedRelay], AbstractContextManager[None]]
    failed: Mapping[str, str] = field(default_factory=dict)
    warned: Mapping[str, str] = field(default_factory=dict)
    family: str = ""

    def missed(self, findings: Findings) -> list[str]:
        """Return in what the findings differ from what should be found; empty if all is right."""
        wrong = []
        for status, expected in (("failed", self.failed), ("warning", self.warned)):
            found = [f for f in findings if f["status"] == status]
            for finding in found:
                where = f"{finding['check']} {finding['family']}".strip()
                if finding["check"] not in expected or (self.family and finding["family"] != self.family):
                    wrong.append(f"{where} is {status}: {finding['seen']}")
                elif not re.search(expected[finding["check"]], finding["seen"]):
                    wrong.append(f"{where} says: {finding['seen']}")
                elif not (finding["meaning"] and finding["mend"]):
                    wrong.append(f"{where} does not say what it means and how to mend it")
            wrong += [f"{check} is not {status}" for check in expected.keys() - {f["check"] for f in found}]
        return wrong


@contextlib.contextmanager
def _served(watched: WatchedRelay, change: Callable[[str], str] = str, **changed: Any) -> Iterator[None]:
    watched.serve(change, **changed)
    try:
        yield
    finally:
        watched.serve()


def _certificate_expired(watched: WatchedRelay) -> AbstractContextManager[None]:
    folder = watched.certificate(DOMAIN, to_day=-1)
    return _served(watched, certificate={"source": "files", "folder": str(folder)})


def _certificate_for_another_name(watched: WatchedRelay) -> AbstractContextManager[None]:
    """Serve the relay by another name than its clients know, and to those that ask for theirs too."""
    folder = watched.certificate(OTHER_NAME, _VALID_DAYS)
    return _served(
        watched,
        lambda caddyfile: f"{{\n\tfallback_sni {OTHER_NAME}\n}}\n{caddyfile}",
        domain=OTHER_NAME,
        certificate={"source": "files", "folder": str(folder)},
    )


@contextlib.contextmanager
def _ipv6_stun_masked(watched: WatchedRelay) -> Iterator[None]:
    """Leave IPv6 to Docker's userland proxy, as an engine does that has no ``ip6tables``."""
    listed = _done(watched.host.run(["ip6tables", "-w", "-t", "nat", "-S", "DOCKER"], timeout=20)).stdout
    rules = [line.split() for line in listed.splitlines() if "--dport 3478 " in line]
    assert rules, listed
    for rule in rules:
        _done(watched.host.run(["ip6tables", "-w", "-t", "nat", "-D", *rule[1:]], timeout=20))
    try:
        yield
    finally:
        for rule in rules:
            _done(watched.host.run(["ip6tables", "-w", "-t", "nat", "-A", *rule[1:]], timeout=20))


def _port_80_redirecting(watched: WatchedRelay) -> AbstractContextManager[None]:
    return _served(watched, caddy={**watched.relay.settings["caddy"], "answerByAddress": False})


def _stopped(name: str) -> Callable[[WatchedRelay], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def made(watched: WatchedRelay) -> Iterator[None]:
        watched.host.client().containers.get(name).stop(timeout=5)
        try:
            yield
        finally:
            watched.restart(name)

    return made


@contextlib.contextmanager
def _udp_blocked(watched: WatchedRelay) -> Iterator[None]:
    """Drop it before Docker's rules, as a provider's firewall does."""
    table = (
        "table inet blocked {\nchain prerouting {\n"
        "type filter hook prerouting priority -300;\nudp dport 3478 drop\n}\n}\n"
    )
    _done(watched.host.run(["nft", table], timeout=20))
    try:
        yield
    finally:
        _done(watched.host.run(["nft", "delete", "table", "inet", "blocked"], timeout=20))


@contextlib.contextmanager
def _key_changed(watched: WatchedRelay) -> Iterator[None]:
    """Start derper with another key, as where the volume with its key was lost."""
    container = watched.host.client().containers.get(DERPER)
    chunks, _ = container.get_archive(f"{_KEY_FOLDER}/{_KEY_FILE}")
    kept = b"".join(chunks)
    # tailscale types/key/node.go: 32 bytes of which Curve25519 takes any
    key = json.dumps({"PrivateKey": f"privkey:{os.urandom(32).hex()}"}).encode()
    new = io.BytesIO()
    with tarfile.open(fileobj=new, mode="w") as archive:
        member = tarfile.TarInfo(_KEY_FILE)
        member.size, member.mode = len(key), 0o600
        archive.addfile(member, io.BytesIO(key))

    def start_with(content: bytes) -> None:
        container.stop(timeout=5)
        assert container.put_archive(_KEY_FOLDER, content)
        watched.restart(DERPER)

    try:
        start_with(new.getvalue())
        yield
    finally:
        start_with(kept)


@contextlib.contextmanager
def _debug_opened(watched: WatchedRelay) -> Iterator[None]:
    """Show derper's metrics to the world, which were meant for a Prometheus on Docker's network."""
    client = watched.host.client()
    derper = client.containers.get(DERPER)
    network = watched.relay.settings["network"]["name"]
    metrics = client.containers.run(
        derper.image.id,
        [f"-hostname={DOMAIN}", "-a=:80", "-c=/tmp/derper.key", "-stun=false"],
        name="derper-with-metrics",
        # tailscale tsweb/tsweb.go: who is let in besides Tailscale's addresses
        environment={"TS_DEBUG_TRUSTED_CIDRS": "0.0.0.0/0,::/0"},
        tmpfs={"/tmp": ""},
        network=network,
        detach=True,
    )
    proxied = "handle /debug* {\n\treverse_proxy derper-with-metrics {\n\theader_up -X-Forwarded-For\n}\n}"
    try:
        with _served(watched, lambda caddyfile: caddyfile.replace("respond /debug* 404", proxied)):
            yield
    finally:
        metrics.remove(force=True)


@contextlib.contextmanager
def _dns_leads_elsewhere(watched: WatchedRelay) -> Iterator[None]:
    """Have records of an address that was the relay's once; none has it now."""
    right = watched.records.read_text()
    elsewhere = watched.addresses[0].rsplit(".", 1)[0] + ".99"
    watched.records.write_text(json.dumps({DOMAIN: [elsewhere, watched.addresses[1]]}))
    try:
        yield
    finally:
        watched.records.write_text(right)


def _slow(delay: float, every: int) -> Callable[[WatchedRelay], AbstractContextManager[None]]:
    """Put the relay at the end of a wire of ``delay`` seconds one way that loses each ``every``th packet."""

    @contextlib.contextmanager
    def made(watched: WatchedRelay) -> Iterator[None]:
        require(Path("/dev/net/tun").exists(), "there is no /dev/net/tun", "modprobe tun")
        end, host = watched.relay.outside, watched.host
        command = [sys.executable, "-m", "tests.relay.slow_wire", end.namespace, host.namespace]
        process = subprocess.Popen(
            [*command, str(delay), str(every)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=PROJECT_FOLDER,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for here, there in ((end.here_ipv4, end.there_ipv4), (end.here_ipv6, end.there_ipv6)):
                _done(end.run(["ip", "route", "add", here, "dev", INTERFACE, "src", there]))
                _done(host.run(["ip", "route", "add", there, "dev", INTERFACE, "src", here], timeout=20))
            yield
        finally:
            # the interfaces go with the process, and the routes with them
            process.terminate()
            process.wait()

    return made


FAULTS: Sequence[Fault] = (
    Fault("certificate expired", _certificate_expired, {"tls": "expired"}),
    Fault(
        "certificate for another name",
        _certificate_for_another_name,
        {"tls": f"is for {OTHER_NAME}, not for {DOMAIN}", "redirect": f"to 'https://{OTHER_NAME}/"},
    ),
    Fault("IPv6 STUN masked", _ipv6_stun_masked, {"stun-address": "a private address"}, family="IPv6"),
    Fault("port 80 redirecting", _port_80_redirecting, {"captive-portal": "redirects with 30"}),
    Fault(
        "derper stopped",
        _stopped(DERPER),
        {
            **dict.fromkeys(("page", "latency-check", "derp-upgrade", "captive-portal"), "502"),
            "stun": "refused",
        },
    ),
    Fault(
        "Caddy stopped",
        _stopped(CADDY),
        dict.fromkeys(("tls", "captive-portal", "redirect"), "connection refused"),
    ),
    Fault("UDP blocked", _udp_blocked, {"stun": "no answer from UDP port 3478"}),
    Fault("key changed", _key_changed, {"server-key": "known is"}),
    Fault("/debug opened", _debug_opened, {"debug-https": "^answered: /debug/"}),
    Fault("DNS leads elsewhere", _dns_leads_elsewhere, {"dns": "is not the relay's"}),
    # one in ten each way: of questions that want an answer, 19 % get none
    Fault("high loss", _slow(0.02, 10), warned={"network": r"^[1-9]\d? of 50 STUN requests lost"}),
    Fault("high latency", _slow(0.25, 0), warned={"network": r"^0 of 50 .* median latency 5\d\d"}),
)


def _done(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}"
    return done
