"""The network that servers are on: a switch in a namespace of its own, and a wire from it to this machine.

The switch is not on the machine's own network, where Docker's firewall would
drop what passes over a bridge. All on it are on one link: the machine at
``.1`` and ``::1``, servers, and places outside that ports are tried from.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sandbox.machines import MachineError

NAMESPACES = Path("/run/netns")
# the interface by which a server and a place outside are on the network
INTERFACE = "eth0"
# places outside have the addresses .2 to .9, which the API gives to no server
PLACES_OUTSIDE = 8

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LOCKS = Path("/run/derp-machines")
_PREFIX = "dm"
# an interface's name has 15 characters at most, and holds no more of this
_NUMBERS = range(1, 255)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_END_TIMEOUT = 20.0
_CLAIM_TIMEOUT = 10.0
_COMMAND_TIMEOUT = 30.0


@dataclass(frozen=True)
class Outside:
    """A place on the network that is no server: whoever comes from there is a stranger to all of them."""

    namespace: str
    ipv4: str
    ipv6: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` as it runs in that place."""
        return in_namespace(self.namespace, argv)

    def run(
        self, argv: Sequence[str], *, timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there; the exit code is the caller's to judge.

        ``env`` is added to this process's. Raises ``subprocess.TimeoutExpired``
        after ``timeout`` seconds; the command is ended then.
        """
        return subprocess.run(
            self.command(argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            check=False,
        )


class Network:
    """A switch, claimed for this process until ``close`` or its end.

    ``number`` is that of the networks, 198.18.NUMBER.0/24 (RFC 2544: for
    tests between devices, on no network) and 2001:db8:NUMBER::/48 (RFC 3849: for
    documentation).
    """

    def __init__(self, name: str, number: int | None = None) -> None:
        """Claim networks that nobody here uses, or those of ``number``, and make the switch.

        ``name`` is shown in ``ip netns``. What processes that were killed left of
        theirs is removed. Raises ``MachineError`` where it cannot be made.
        """
        if not _NAME.fullmatch(name):
            raise MachineError(
                f"{name!r} names no machines: give lower-case letters, digits and hyphens, at most 32"
            )
        self.name = name
        self.number, self._lock = _claim(number)
        self.ipv4 = ipaddress.IPv4Network(f"198.18.{self.number}.0/24")
        self.ipv6 = ipaddress.IPv6Network(f"2001:db8:{self.number:x}::/48")
        self._switch = self.namespace("switch")
        try:
            self._make()
        except MachineError:
            self.close()
            raise

    def namespace(self, what: str) -> str:
        """Return the name of a namespace of this network, such as ``dm7-test-1234``."""
        return f"{_PREFIX}{self.number}-{self.name}-{what}"

    def control_group(self, what: str = "") -> str:
        """Return the control group for what one server's engine runs, below each hierarchy's root."""
        return f"/{_PREFIX}{self.number}-{self.name}" + (f"/{what}" if what else "")

    def add_namespace(self, what: str) -> str:
        """Make a namespace that is not on the network yet, and return its name."""
        namespace = self.namespace(what)
        ip("netns", "add", namespace)
        settings = {
            # an IPv6 address can be used at once
            "net.ipv6.conf.default.accept_dad": 0,
            "net.ipv6.conf.default.accept_ra": 0,
        }
        run(
            in_namespace(namespace, ["sysctl", "-qw", *(f"{key}={value}" for key, value in settings.items())])
        )
        return namespace

    def connect(self, what: str, addresses: Sequence[str]) -> None:
        """Put a namespace on the network with addresses such as ``198.18.7.10`` and ``2001:db8:7:1::1``."""
        namespace, port = self.namespace(what), f"p-{what}"
        ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", INTERFACE, "netns", namespace)
        ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        for address in addresses:
            ip("-n", namespace, "address", "add", self._with_length(address), "dev", INTERFACE)
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "set", INTERFACE, "up")
        # Who knew another server by this address would go on asking that one for half a minute.
        for address in addresses:
            ip("neighbour", "flush", "to", address, "dev", _link(self.number))
            for path in NAMESPACES.glob(f"{_PREFIX}{self.number}-*"):
                if path.name not in (self._switch, namespace):
                    flush = ["ip", "-n", path.name, "neighbour", "flush", "to", address]
                    # another one may be on its way out
                    subprocess.run(flush, capture_output=True, timeout=_COMMAND_TIMEOUT, check=False)

    def remove_namespace(self, what: str) -> None:
        """End what runs in a namespace, and remove it with its control group.

        Nothing happens if there is none. Raises ``MachineError`` if a process does not end.
        """
        _remove_namespace(self.namespace(what))
        # Removing a namespace removes its interface, but only some time later.
        port = ["ip", "-n", self._switch, "link", "delete", f"p-{what}"]
        subprocess.run(port, capture_output=True, timeout=_COMMAND_TIMEOUT, check=False)
        remove_control_group(self.control_group(what))

    @contextlib.contextmanager
    def outside(self, index: int = 0) -> Iterator[Outside]:
        """Make a place outside, one of ``PLACES_OUTSIDE`` from 0 on, and remove it at the end."""
        if not 0 <= index < PLACES_OUTSIDE:
            raise MachineError(f"there are {PLACES_OUTSIDE} places outside, from 0 on: {index} is none")
        what, host = f"out{index}", 2 + index
        place = Outside(self.namespace(what), str(self.ipv4[host]), str(self.ipv6[host]))
        try:
            self.add_namespace(what)
            self.connect(what, [place.ipv4, place.ipv6])
            yield place
        finally:
            self.remove_namespace(what)

    def close(self) -> None:
        """Remove the switch and every namespace of the network, and let others have its addresses."""
        if not self._lock.closed:
            _remove_all(self.number)
            self._lock.close()

    def _make(self) -> None:
        ip("netns", "add", self._switch)
        # Filters that Docker set for bridges where it first ran would hold for this one as well.
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self._switch, "link", "set", "switch", "up")
        here = _link(self.number)
        ip("link", "add", here, "type", "veth", "peer", "machine", "netns", self._switch)
        ip("-n", self._switch, "link", "set", "machine", "master", "switch", "up")
        ip("address", "add", self._with_length(str(self.ipv4[1])), "dev", here)
        ip("address", "add", self._with_length(str(self.ipv6[1])), "dev", here, "nodad")
        ip("link", "set", here, "up")

    def _with_length(self, address: str) -> str:
        network = self.ipv4 if "." in address else self.ipv6
        if ipaddress.ip_address(address) not in network:
            raise MachineError(f"{address} is not of the network {network}")
        return f"{address}/{network.prefixlen}"


def in_namespace(namespace: str, argv: Sequence[str]) -> list[str]:
    """Return ``argv`` as it runs in a network namespace. ``ip netns exec`` would hide the control groups."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", *argv]


def run(argv: Sequence[str], *, text: str | None = None) -> str:
    """Run a command, with ``text`` as its input, and return its output. Raises ``MachineError``."""
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        raise MachineError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def ip(*arguments: str) -> str:
    """Run ``ip`` of iproute2. Raises ``MachineError``."""
    return run(["ip", *arguments])


def remove_control_group(path: str) -> None:
    """Remove a control group and those below it from every hierarchy, of version 1 and 2."""
    relative = path.lstrip("/")
    for top in [_CONTROL_GROUPS / relative, *_CONTROL_GROUPS.glob(f"*/{relative}")]:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _claim(number: int | None) -> tuple[int, IO[bytes]]:
    """Lock a number, and remove what is left of all those whose owners were killed."""
    try:
        _LOCKS.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise MachineError(f"servers need root: {_LOCKS} cannot be made: {error.strerror}") from error
    unusable = _cleaned()
    if number is not None:
        return number, _claimed(number)
    for candidate in _NUMBERS:
        if candidate not in unusable and (lock := _lock(_LOCKS / f"{candidate}.lock")):
            if not _in_use(candidate):
                return candidate, lock
            lock.close()
    raise MachineError(f"198.18.{_NUMBERS[0]}.0 to 198.18.{_NUMBERS[-1]}.255 are all in use on this machine")


def _cleaned() -> set[int]:
    """Remove what is left of networks whose owners were killed, and return those that resist."""
    unusable = set()
    for path in sorted(_LOCKS.glob("*.lock")):
        if lock := _lock(path):
            with lock:
                try:
                    _remove_all(int(path.stem))
                except MachineError:
                    unusable.add(int(path.stem))
    return unusable


def _claimed(number: int) -> IO[bytes]:
    deadline = time.monotonic() + _CLAIM_TIMEOUT
    # Another process may hold it for the moment in which it looks for what is left.
    while (lock := _lock(_LOCKS / f"{number}.lock")) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if lock is None or _in_use(number):
        raise MachineError(
            f"198.18.{number}.0/24 and 2001:db8:{number:x}::/48, which these servers have, are in use on this"
            " machine: end what uses them"
        )
    return lock


def _lock(path: Path) -> IO[bytes] | None:
    """Hold a file's lock until it is closed; it ends with the process, however that ends."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _in_use(number: int) -> bool:
    own = (ipaddress.ip_network(f"198.18.{number}.0/24"), ipaddress.ip_network(f"2001:db8:{number:x}::/48"))
    found = []
    for family, mine in zip(("-4", "-6"), own, strict=True):
        for route in json.loads(ip(family, "-json", "route", "show", "table", "all") or "[]"):
            destination = route.get("dst", "default")
            if destination != "default" and mine.overlaps(ipaddress.ip_network(destination, strict=False)):
                found.append(destination)
    # A network that is wider than 198.18.0.0/15 tells nothing of this part of it.
    return any(ipaddress.ip_network(item, strict=False).prefixlen > 15 for item in found)  # noqa: PLR2004


def _link(number: int) -> str:
    return f"{_PREFIX}{number}"


def _remove_all(number: int) -> None:
    for path in NAMESPACES.glob(f"{_PREFIX}{number}-*"):
        _remove_namespace(path.name)
    subprocess.run(
        ["ip", "link", "delete", _link(number)], capture_output=True, timeout=_COMMAND_TIMEOUT, check=False
    )
    tops = [*_CONTROL_GROUPS.glob(f"{_PREFIX}{number}-*"), *_CONTROL_GROUPS.glob(f"*/{_PREFIX}{number}-*")]
    for name in {top.name for top in tops}:
        remove_control_group(name)


def _remove_namespace(namespace: str) -> None:
    if not (NAMESPACES / namespace).exists():
        return
    deadline = time.monotonic() + _END_TIMEOUT
    while pids := run(["ip", "netns", "pids", namespace]).split():
        if time.monotonic() > deadline:
            raise MachineError(f"processes of {namespace} do not end: {' '.join(pids)}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    ip("netns", "delete", namespace)
