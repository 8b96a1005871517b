"""The probe against a real derper behind a real Caddy, whole and broken for real."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from probe import Check, Finding, Relay, Status, check_relay, is_up, wait_until_up
from tests.relay.outside import Outside, outside
from tests.relay.programs import Process, program, running
from tests.requirements import require

DOMAIN = "relay.localhost"
ROOT = Path(__file__).resolve().parents[2]

# Two sites for plain HTTP: in one of both addresses Caddy's automatic redirect would come before it.
CADDYFILE = """{{
    admin localhost:{admin}
    http_port {http}
    https_port {https}
    storage file_system {folder}/caddy
    skip_install_trust
}}
{domain} {{
    tls internal
    {debug}
    reverse_proxy 127.0.0.1:{derper}
}}
(plain) {{
    {generate_204}
    handle {{
        redir https://{domain}:{https}{{uri}} 308
    }}
}}
http://{domain} {{
    import plain
}}
http:// {{
    import plain
}}
"""

GENERATE_204 = "handle /generate_204 {{\n reverse_proxy 127.0.0.1:{derper}\n }}\n"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET6, kind) as one:
        one.bind(("::", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass
class Site:
    """A derper and a Caddy that run as processes on free ports of all addresses."""

    folder: Path
    relay: Relay
    derper: Process
    caddy: Process
    ports: dict[str, int]

    def configure(
        self,
        *,
        generate_204: str = GENERATE_204,
        debug: str = "respond /debug* 404",
    ) -> None:
        """Write the Caddyfile and, where Caddy runs, load it."""
        proxied = generate_204.format(**self.ports)
        text = CADDYFILE.format(
            **self.ports,
            folder=self.folder,
            domain=DOMAIN,
            generate_204=proxied,
            debug=debug.format(**self.ports),
        )
        caddyfile = self.folder / "Caddyfile"
        caddyfile.write_text(text)
        if self.caddy.process:
            address = f"localhost:{self.ports['admin']}"
            command = [self.caddy.command[0], "reload", "--config", str(caddyfile), "--address", address]
            subprocess.run(command, check=True, capture_output=True, env=self.caddy.env, timeout=20)

    def findings(self, timeout: float = 5.0) -> dict[tuple[Check, str], Finding]:
        found = check_relay(self.relay, timeout=timeout)
        return {(finding.check, finding.family): finding for finding in found}

    def failed(self, timeout: float = 5.0) -> set[Check]:
        return {check for (check, _), f in self.findings(timeout).items() if f.status is Status.FAILED}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    caddy, derper = program("caddy"), program("derper")
    ports = {name: free_port() for name in ("admin", "http", "https", "derper")}
    ports["stun"] = free_port(socket.SOCK_DGRAM)
    home = {"XDG_DATA_HOME": str(folder / "data"), "XDG_CONFIG_HOME": str(folder / "config")}
    derper_command = [
        derper,
        f"-a=:{ports['derper']}",
        f"-c={folder / 'derper.key'}",
        f"-hostname={DOMAIN}",
        f"-stun-port={ports['stun']}",
    ]
    caddy_command = [caddy, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    placeholder = Relay(DOMAIN, ["127.0.0.1", "::1"])
    made = Site(
        folder,
        placeholder,
        Process(derper_command, folder / "derper.log", dict(os.environ)),
        Process(caddy_command, folder / "caddy.log", {**os.environ, **home}),
        ports,
    )
    made.configure()
    try:
        made.derper.start()
        made.caddy.start()
        made.relay = Relay(
            DOMAIN, ["127.0.0.1", "::1"], ports["https"], ports["http"], ports["stun"], internal_root(folder)
        )
        findings = wait_until_up(made.relay, timeout=5, pause=0.2)
        assert is_up(findings), [(f.check, f.seen) for f in findings if f.status is Status.FAILED]
        yield made
    finally:
        made.caddy.stop()
        made.derper.stop()


def internal_root(folder: Path) -> str:
    """Wait for Caddy to make its certificate authority and return its root in PEM."""
    path = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    for _ in range(200):
        if path.exists() and path.read_text().rstrip().endswith("-----END CERTIFICATE-----"):
            return path.read_text()
        time.sleep(0.05)
    raise TimeoutError(f"Caddy made no {path} within 10 s: {(folder / 'caddy.log').read_text()}")


@pytest.fixture(autouse=True)
def whole_again(site: Site) -> Iterator[None]:
    """Mend after each test what it broke."""
    yield
    if site.derper.process is None:
        site.derper.start()
    if site.caddy.process is None:
        site.caddy.start()
        wait_until_up(site.relay, timeout=5, pause=0.2)
    site.configure()
    findings = wait_until_up(site.relay, timeout=5, pause=0.2)
    assert is_up(findings), findings


def test_all_is_well_over_both_families(site: Site) -> None:
    findings = site.findings()
    others = {check for (check, _), f in findings.items() if f.status is not Status.OK}
    assert others == {Check.DNS}, findings
    assert {family for _, family in findings} == {"IPv4", "IPv6", ""}
    # From one client at each address to another there, and from one over IPv4 to one over IPv6.
    assert {family for check, family in findings if check is Check.RELAY} == {"IPv4", "IPv6", ""}
    keys = {f.facts["server_key"] for (check, _), f in findings.items() if check is Check.UPGRADE}
    assert len(keys) == 1
    assert 0 < float(findings[Check.TLS, "IPv4"].facts["certificate_days_left"]) <= 0.5


def test_a_good_relay_is_never_called_broken(site: Site) -> None:
    """Several at once, so that the machine is busy; tests/relay/test_faults.py has a hundred runs."""
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: site.findings(10.0), range(20)))
    bad = (Status.FAILED, Status.WARNING)
    assert not [finding for findings in runs for finding in findings.values() if finding.status in bad]
    assert all(is_up(findings.values()) for findings in runs)


def test_derper_stopped(site: Site) -> None:
    site.derper.stop()
    findings = site.findings()
    failed = {check for (check, _), f in findings.items() if f.status is Status.FAILED}
    assert failed == {Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE, Check.STUN, Check.CAPTIVE_PORTAL}
    assert "502" in findings[Check.UPGRADE, "IPv4"].seen
    assert "start derper" in findings[Check.UPGRADE, "IPv4"].mend
    assert "connection refused" in findings[Check.STUN, "IPv6"].seen


def test_derper_frozen(site: Site) -> None:
    assert site.derper.process is not None
    site.derper.process.send_signal(19)  # SIGSTOP: the kernel still accepts connections for it
    try:
        failed = site.failed(timeout=5.0)
    finally:
        site.derper.process.send_signal(18)  # SIGCONT
    assert failed == {Check.PAGE, Check.LATENCY_CHECK, Check.UPGRADE, Check.STUN, Check.CAPTIVE_PORTAL}


def test_caddy_stopped(site: Site) -> None:
    site.caddy.stop()
    findings = site.findings()
    failed = {check for (check, _), f in findings.items() if f.status is Status.FAILED}
    assert failed == {Check.TLS, Check.CAPTIVE_PORTAL, Check.REDIRECT}
    assert "connection refused" in findings[Check.TLS, "IPv4"].seen
    assert "STUN alone" in findings[Check.TLS, "IPv4"].meaning


def test_port_80_redirecting(site: Site) -> None:
    site.configure(generate_204="")
    findings = site.findings()
    failed = {check for (check, _), f in findings.items() if f.status is Status.FAILED}
    assert failed == {Check.CAPTIVE_PORTAL}
    assert "redirects with 308" in findings[Check.CAPTIVE_PORTAL, "IPv4"].seen


def test_stun_alone_stopped(site: Site) -> None:
    site.derper.stop()
    without_stun = Process([*site.derper.command, "-stun=false"], site.derper.log, site.derper.env)
    without_stun.start()
    try:
        wait_until_up(site.relay, timeout=1, pause=0.2)
        assert site.failed() == {Check.STUN}
    finally:
        without_stun.stop()


def test_derp_disabled(site: Site) -> None:
    site.derper.stop()
    without_derp = Process([*site.derper.command, "-derp=false"], site.derper.log, site.derper.env)
    without_derp.start()
    try:
        wait_until_up(site.relay, timeout=1, pause=0.2)
        findings = site.findings()
        assert {c for (c, _), f in findings.items() if f.status is Status.FAILED} == {Check.UPGRADE}
        assert "derp server disabled" in findings[Check.UPGRADE, "IPv4"].seen
    finally:
        without_derp.stop()


class _Refusing(BaseHTTPRequestHandler):
    """An admission controller that knows nobody, as headscale's /verify of another tailnet."""

    def do_POST(self) -> None:
        body = b'{"Allow":false}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_relay_that_lets_no_strangers_in(site: Site) -> None:
    known = site.findings()[Check.SERVER_KEY, ""].facts["server_key"]
    site.derper.stop()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as controller:
        threading.Thread(target=controller.serve_forever).start()
        url = f"http://127.0.0.1:{controller.server_port}/verify"
        verifying = Process(
            [*site.derper.command, f"-verify-client-url={url}"], site.derper.log, site.derper.env
        )
        verifying.start()
        try:
            findings = wait_until_up(site.relay, timeout=5, pause=0.2)
        finally:
            verifying.stop()
            controller.shutdown()
    assert is_up(findings), [(f.check, f.seen) for f in findings if f.status is Status.FAILED]
    relaying = [finding for finding in findings if finding.check is Check.RELAY]
    assert [finding.address for finding in relaying] == ["127.0.0.1", "::1", ""]
    assert {finding.status for finding in relaying} == {Status.SKIPPED}
    for finding in relaying[:2]:
        assert "only lets in clients of its tailnet" in finding.seen
        assert finding.facts == {"verifies_clients": True}
    # The key is shown to strangers as well.
    (key,) = (finding for finding in findings if finding.check is Check.SERVER_KEY)
    assert (key.status, key.facts["server_key"]) == (Status.OK, known)


def test_the_key_lost(site: Site) -> None:
    known = str(site.findings()[Check.SERVER_KEY, ""].facts["server_key"])
    site.derper.stop()
    key_file = site.folder / "derper.key"
    key_file.rename(site.folder / "derper.key.kept")
    site.derper.start()
    try:
        wait_until_up(site.relay, timeout=5, pause=0.2)
        findings = check_relay(dataclasses.replace(site.relay, server_key=known))
    finally:
        site.derper.stop()
        (site.folder / "derper.key.kept").rename(key_file)
        site.derper.start()
    assert [finding.check for finding in findings if finding.status is Status.FAILED] == [Check.SERVER_KEY]


def test_two_derpers_behind_one_name(site: Site) -> None:
    port = free_port()
    other = Process(
        [
            *(site.derper.command[0], f"-a=:{port}", f"-c={site.folder / 'other.key'}"),
            *(f"-hostname={DOMAIN}", "-stun=false"),
        ],
        site.folder / "other.log",
        site.derper.env,
    )
    other.start()
    try:
        balanced = f"reverse_proxy 127.0.0.1:{{derper}} 127.0.0.1:{port} {{{{\n lb_policy round_robin\n }}}}"
        site.configure(debug=f"respond /debug* 404\n handle /derp {{{{\n {balanced}\n }}}}")
        findings = site.findings()
    finally:
        other.stop()
    assert {check for (check, _), f in findings.items() if f.status is Status.FAILED} == {Check.SERVER_KEY}
    assert "2 different keys" in findings[Check.SERVER_KEY, ""].seen
    assert "two or more derpers" in findings[Check.SERVER_KEY, ""].meaning.lower()
    assert {f.mend for (check, _), f in findings.items() if check is Check.RELAY} == {
        "Mend server-key first."
    }


def test_debug_pages_opened(site: Site) -> None:
    proxied = "reverse_proxy 127.0.0.1:{derper} {{\n header_up -X-Forwarded-For\n }}"
    opened = f"handle /debug* {{{{\n {proxied}\n }}}}"
    site.configure(debug=opened)
    assert site.failed() == {Check.DEBUG_HTTPS}
    site.configure(generate_204=GENERATE_204 + opened)
    assert site.failed() == {Check.DEBUG_HTTP}


def test_another_name_and_another_authority(site: Site) -> None:
    ports = site.ports
    other = Relay("other.localhost", ["127.0.0.1"], ports["https"], None, ports["stun"], site.relay.ca_roots)
    (tls,) = (f for f in check_relay(other) if f.check is Check.TLS)
    assert tls.status is Status.FAILED
    assert "no certificate for other.localhost" in tls.seen
    system = Relay(DOMAIN, ["127.0.0.1"], ports["https"], None, ports["stun"])
    (tls,) = (f for f in check_relay(system) if f.check is Check.TLS)
    assert tls.status is Status.FAILED
    assert "not among the roots" in tls.seen


def ask_from(away: Outside, site: Site, stun_port: int) -> dict[tuple[str, str], dict[str, str]]:
    """Run the probe outside and return its findings by check and family."""
    roots = site.folder / "root.crt"
    roots.write_text(site.relay.ca_roots or "")
    command = [sys.executable, "-m", "probe", "--json", "--domain", DOMAIN, "--ca", str(roots)]
    command += ["--address", away.here_ipv4, "--address", away.here_ipv6]
    command += ["--https-port", str(site.ports["https"]), "--http-port", str(site.ports["http"])]
    done = away.run([*command, "--stun-port", str(stun_port)], cwd=ROOT)
    assert done.returncode in (0, 1), done
    result = json.loads(done.stdout)
    assert result["up"] is (done.returncode == 0)
    return {(finding["check"], finding["family"]): finding for finding in result["findings"]}


def test_from_outside_the_own_address_comes_back(site: Site) -> None:
    with outside() as away:
        findings = ask_from(away, site, site.ports["stun"])
        assert {check for (check, _), f in findings.items() if f["status"] != "ok"} == {"dns"}, findings
        assert away.there_ipv4 in findings["stun-address", "IPv4"]["seen"]
        assert away.there_ipv6 in findings["stun-address", "IPv6"]["seen"]
    assert not Path("/var/run/netns", away.namespace).exists()
    assert not Path("/sys/class/net", away.link).exists()


@pytest.mark.parametrize("listen", ["0.0.0.0", "::"])
def test_dockers_userland_proxy_masks_the_address(site: Site, listen: str) -> None:
    """What a bridge network without IPv6 does to STUN, with Docker's own proxy in its place."""
    proxy = shutil.which("docker-proxy")
    require(proxy, "docker-proxy is not on PATH", "apt-get install docker.io")
    port = free_port(socket.SOCK_DGRAM)
    family, loopback = ("IPv6", "::1") if ":" in listen else ("IPv4", "127.0.0.1")
    with outside() as away:
        bridge = "172.31.213.1"
        subprocess.run(["ip", "address", "add", f"{bridge}/24", "dev", away.link], check=True)
        # It tells its parent over descriptor 3 that it is ready, and closes whatever that is.
        command = [
            "sh",
            "-c",
            'exec "$@" 3>/dev/null',
            "sh",
            str(proxy),
            "-proto",
            "udp",
            "-host-ip",
            listen,
            "-host-port",
            str(port),
        ]
        command += ["-container-ip", bridge, "-container-port", str(site.ports["stun"])]
        with running(command, site.folder / "docker-proxy.log"):
            ports = site.ports
            near = Relay(DOMAIN, [loopback], ports["https"], ports["http"], port, site.relay.ca_roots)
            from_here = wait_until_up(near, timeout=5, pause=0.1)
            findings = ask_from(away, site, port)
    assert is_up(from_here), from_here
    assert [f.check for f in from_here if "same machine" in f.seen] == [Check.STUN_ADDRESS]
    masked = findings["stun-address", family]
    assert findings["stun", family]["status"] == "ok"
    assert masked["status"] == "failed"
    assert (
        "172.31.213.1 (a private address; it looks like the gateway of a Docker bridge network)"
        in masked["seen"]
    )
    assert ("IPv6" in masked["mend"]) is (family == "IPv6")


def test_outside_is_removed_when_the_test_fails() -> None:
    seen: list[Outside] = []
    sleeping: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with outside() as away:
            seen.append(away)
            command = ["nsenter", f"--net=/var/run/netns/{away.namespace}", "sleep", "600"]
            sleeping.append(subprocess.Popen(command))
            assert Path("/sys/class/net", away.link).exists()
            assert away.run(["ip", "route"]).returncode == 0
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert sleeping[0].wait(5) == -9
    assert not Path("/var/run/netns", seen[0].namespace).exists()
    assert not Path("/sys/class/net", seen[0].link).exists()
