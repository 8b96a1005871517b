"""Who finds which fault of a relay: ``make bench-faults``, as root.

A relay is brought up on a host of its own (a network namespace with a Docker
Engine), faults are made in it one after the other, and each is looked at from
outside by this project's probe and by Tailscale's own tools: ``derpprobe``, and
``tailscale netcheck`` and ``tailscale debug derp`` of a client of a headscale
that serves the relay's DERP map. Printed is what each of them says.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.docker_host import docker_host
from tests.relay.faults import FAULTS, Findings, WatchedRelay, watched_relay
from tests.relay.outside import outside
from tests.relay.programs import program
from tests.relay.tailnet import Tailscale, forward, headscale, log_in, tailscale

REGION = "test"
_NOTHING = "-"
# A healthy relay at the other end of a wire on one machine answers far sooner.
_LONG_SECONDS = 0.1
_LONGEST = 110  # characters of a message


@dataclass(frozen=True)
class Bench:
    """A relay, and a client of Tailscale's outside of its host."""

    watched: WatchedRelay
    client: Tailscale

    def row(self) -> list[str]:
        """Return what each tool says by now; ``-`` where it finds nothing."""
        return [
            _lines(ours(self.watched.findings())),
            _lines(self.derpprobe()),
            _lines(self.netcheck()),
            _lines(self.debug_derp()),
        ]

    def derpprobe(self) -> list[str]:
        """Run all probes of derpprobe once that end by themselves, and return the bad ones."""
        folder = self.watched.folder
        derp_map = folder / "derp-map.json"
        derp_map.write_text(json.dumps(self.watched.relay.derp_map()))
        # the name server of the client's namespace, as for tailscaled
        script = (
            f"mount --bind {self.client.folder}/hosts /etc/hosts"
            f" && mount --bind {self.client.folder}/resolv.conf /etc/resolv.conf"
            f" && exec {program('derpprobe')} -once -spread=false -derp-map=file://{derp_map}"
            " -bw-interval=1s -bw-probe-size-bytes=1000000"
        )
        done = self.watched.relay.outside.run(
            ["unshare", "--mount", "sh", "-c", script],
            env={"SSL_CERT_FILE": str(self.watched.roots)},
            timeout=180,
        )
        said = re.findall(r"(bad|good): (\S+): (.*)", done.stdout + done.stderr)
        if not said:
            raise RuntimeError(f"derpprobe: {done.stdout}{done.stderr}")
        return _grouped(
            [(name.rsplit("/", 1)[-1], words) for kind, name, words in said if kind == "bad"], _end
        )

    def netcheck(self) -> list[str]:
        """Return in what netcheck's report is not that of a healthy relay."""
        report, end = self.client.netcheck(), self.watched.relay.outside
        (region,) = self.watched.relay.derp_map()["Regions"]
        said = [f"{key}: no" for key in ("UDP", "IPv4", "IPv6") if not report[key]]
        for key, own in (("GlobalV4", end.there_ipv4), ("GlobalV6", end.there_ipv6)):
            mapped = report[key].rpartition(":")[0].strip("[]")
            if mapped and mapped != own:
                said.append(f"{key}: {mapped}, which is not the client's, without a remark")
        if report["CaptivePortal"]:
            said.append("CaptivePortal: yes")
        latency = report["RegionLatency"].get(region) if report["RegionLatency"] else None
        if latency is None:
            said.append("no latency of the region")
        elif latency / 1e9 > _LONG_SECONDS:
            said.append(f"latency {latency / 1e6:.0f} ms, without a remark")
        return said

    def debug_derp(self) -> list[str]:
        """Return the errors and warnings of ``tailscale debug derp`` but for that there is one region."""
        said = self.client.debug_derp(REGION)
        words = [*said["Errors"], *said["Warnings"]]
        return _grouped([("", text) for text in words if "single point of failure" not in text], _end)


def ours(findings: Findings) -> list[str]:
    """Return the checks that failed or warn, with what was seen, once for both families."""
    bad = [f for f in findings if f["status"] in {"failed", "warning"}]
    return _grouped(
        [(f"{f['check']}{' (warning)' if f['status'] == 'warning' else ''}", f["seen"]) for f in bad],
        _beginning,
    )


def _grouped(said: list[tuple[str, str]], shortened: Callable[[str], str]) -> list[str]:
    """Join the names of those with the same words, where addresses and ports do not count."""
    by_words: dict[str, tuple[list[str], str]] = {}
    for name, words in said:
        key = re.sub(r"[0-9a-f.:\[\]]*\d[0-9a-f.:\[\]]*|IPv[46]", "", words)
        names, _ = by_words.setdefault(key, ([], shortened(words)))
        if name not in names:
            names.append(name)
    return [
        f"{', '.join(filter(None, names))}: {words}".removeprefix(": ") for names, words in by_words.values()
    ]


def _beginning(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def _end(words: str) -> str:
    """Return where Go's errors say what is wrong."""
    words = re.sub(r": current time \S+ is after \S+", "", words).strip()
    return words if len(words) <= _LONGEST else f"... {words[-_LONGEST:]}"


def _lines(said: list[str]) -> str:
    return "\n".join(said) or _NOTHING


@contextlib.contextmanager
def _bench() -> Iterator[Bench]:
    with contextlib.ExitStack() as opened:
        host = opened.enter_context(docker_host())
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        watched = opened.enter_context(
            watched_relay(host, folder, network={"name": "bench"}, volumes={"prefix": "b_"})
        )
        control = opened.enter_context(outside(host.namespace))
        end = watched.relay.outside
        forward(host, [end, control])
        derp_map = folder / "derp-map.yaml"
        watched.relay.write_derp_map(derp_map, "headscale")
        server = opened.enter_context(headscale(control, folder / "headscale", derp_map))
        client = opened.enter_context(tailscale(end, folder / "tailscale", roots=watched.roots, hosts={}))
        log_in(client, server, "client")
        yield Bench(watched, client)


def main() -> None:
    """Make all faults and print what is said of each; some ten minutes."""
    console = Console(width=200, emoji=False)
    table = Table("fault", "python -m probe", "derpprobe", "tailscale netcheck", "tailscale debug derp")
    table.title, table.show_lines = "Who finds which fault", True
    with _bench() as bench:
        table.add_row("none", *bench.row())
        for fault in FAULTS:
            bench.watched.wait_until_well()
            started = time.monotonic()
            with fault.made(bench.watched):
                table.add_row(fault.name, *bench.row())
            console.print(f"{fault.name}: {time.monotonic() - started:.0f} s")
    console.print(table)


if __name__ == "__main__":
    main()
