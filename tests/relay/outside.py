"""A place outside the machine's network: a network namespace on the other end of a wire.

What runs there reaches the machine as another host would, from an address of
its own, so that what the machine's relay says of that address can be judged.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tests.requirements import require

_NAMESPACES = Path("/var/run/netns")
_NAME = re.compile(r"derp-outside-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Outside:
    """A namespace and the wire to it.

    ``here_*`` are the machine's own addresses on the wire, those to ask;
    ``there_*`` are the namespace's, those that STUN must return. ``link`` is
    the name of this side's interface.
    """

    namespace: str
    link: str
    here_ipv4: str
    there_ipv4: str
    here_ipv6: str
    there_ipv6: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` as it runs in the namespace."""
        # nsenter, unlike ip netns exec, leaves /sys as it is: no new mount namespace is made.
        return ["nsenter", f"--net={_NAMESPACES / self.namespace}", *command]

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace; the exit code is the caller's to judge.

        ``env`` is added to this process's. Raises ``subprocess.TimeoutExpired``
        after ``timeout`` seconds; the command is ended then.
        """
        return subprocess.run(
            self.command(command),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )


@contextlib.contextmanager
def outside(near_namespace: str | None = None) -> Iterator[Outside]:
    """Make a namespace, wire it to this one, and remove both at the end, whatever happened.

    With ``near_namespace``, a name as ``ip netns`` knows it, the near end of the
    wire is put there instead, for a relay that runs in a namespace of its own.
    Skips the test where it cannot be made.
    """
    require(os.geteuid() == 0, "network namespaces need root", "sudo make test")
    for program in ("ip", "nsenter"):
        require(shutil.which(program), f"{program} is missing", "apt-get install iproute2 util-linux")
    _remove_left_behind()

    near = ["-n", near_namespace] if near_namespace else []
    ipv4, ipv6 = _free_networks(near)
    mark = f"{os.getpid():x}{secrets.token_hex(2)}"[-10:]
    here, there = f"dro{mark}a", f"dro{mark}b"  # an interface's name has 15 characters at most
    name = f"derp-outside-{os.getpid()}-{mark}"
    end = Outside(name, here, str(ipv4[1]), str(ipv4[2]), str(ipv6[1]), str(ipv6[2]))
    try:
        _ip("netns", "add", name)
        _ip(*near, "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        # Without duplicate address detection an IPv6 address can be used at once.
        _ip(*near, "address", "add", f"{end.here_ipv4}/24", "dev", here)
        _ip(*near, "address", "add", f"{end.here_ipv6}/64", "dev", here, "nodad")
        _ip(*near, "link", "set", here, "up")
        _ip("-n", name, "address", "add", f"{end.there_ipv4}/24", "dev", there)
        _ip("-n", name, "address", "add", f"{end.there_ipv6}/64", "dev", there, "nodad")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", there, "up")
        yield end
    finally:
        _remove(name)
        # Removing the namespace removes the wire, but only some time later: its name would be still taken.
        subprocess.run(["ip", *near, "link", "delete", here], capture_output=True, check=False)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _free_networks(near: Sequence[str]) -> tuple[IPv4Network, IPv6Network]:
    """Choose networks in which this machine has no address."""
    taken = {
        address["local"].rsplit(".", 1)[0]
        for link in json.loads(_ip(*near, "-json", "address"))
        for address in link.get("addr_info", ())
        if "local" in address
    }
    while True:
        third, site = secrets.randbelow(256), secrets.token_hex(5)
        if f"10.213.{third}" not in taken:
            # A unique local prefix is made of 40 random bits: RFC 4193, section 3.2.
            prefix = f"fd{site[:2]}:{site[2:6]}:{site[6:]}::/64"
            return IPv4Network(f"10.213.{third}.0/24"), IPv6Network(prefix)


def _remove(name: str) -> None:
    """End what still runs in a namespace, then remove it."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for pid in pids.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _remove_left_behind() -> None:
    """Remove the namespaces of test runs that were killed."""
    for path in _NAMESPACES.glob("derp-outside-*"):
        match = _NAME.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            _remove(path.name)
