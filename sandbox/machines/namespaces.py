"""Servers as namespaces of this machine: own network, processes, disk, SSH server and Docker Engine.

A server boots as one in a cloud does: Debian's cloud-init reads its user data,
sshd answers with the key that it was given, then Docker starts. What of this
a namespace cannot do is named in the server's ``/var/log/sandbox.log``. It is
not a wall: a server's root is the machine's root, with less to reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from ipaddress import IPv6Network
from pathlib import Path

from relayctl.prerequisites.errors import PrerequisiteError
from sandbox.machines import FirewallRule, MachineError, MachineSpec, disk, firewall
from sandbox.machines.cloud_init_package import package_folder
from sandbox.machines.guest.init import SSH_READY
from sandbox.machines.guest.services import ENVIRONMENT
from sandbox.machines.network import INTERFACE, Network, Outside, in_namespace, run

_BOOT = Path(__file__).parent / "guest/boot.sh"
# cloud-init's first two stages take one second each; a machine that is busy takes longer
_BOOT_TIMEOUT = 120.0
_END_TIMEOUT = 20.0
_NEEDED = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "nft": "nftables",
    "sysctl": "procps",
    "sshd": "openssh-server",
    "dockerd": "docker.io",
    "gpg": "gpg",
}


class NamespaceMachines:
    """Servers on a network of their own; a ``Machines``. All methods may be called by several threads."""

    def __init__(self, folder: Path, *, name: str) -> None:
        """Make the network; servers' disks are kept in ``folder``, which is made where it is not there.

        A folder with disks from an earlier process, which ended without
        ``close``, has the same networks again, and its servers are off:
        ``power_on`` boots them. Of processes that were killed nothing goes on.
        ``name`` is shown in ``ip netns``; several may have the same.

        Raises ``MachineError`` where it cannot be done: no root, a program that
        is missing, networks in use.
        """
        if os.geteuid() != 0:
            raise MachineError("servers that are namespaces need root")
        for program, debian in _NEEDED.items():
            # Debian has these in folders that a user's PATH may not have
            if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                raise MachineError(f"{program} is missing: apt-get install {debian}")
        try:
            self._package = package_folder()
        except PrerequisiteError as error:
            raise MachineError(str(error)) from error
        self._folder = folder.resolve()
        # specifications hold user data, and user data the host keys
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = self._folder / "network.json"
        number = int(json.loads(record.read_text())["number"]) if record.exists() else None
        self._network = Network(name, number)
        _write(record, json.dumps({"number": self._network.number}))
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._locks: dict[int, threading.RLock] = {}
        self._lock = threading.Lock()

    @property
    def ipv4_network(self) -> str:
        """The network of the servers' IPv4 addresses, such as ``198.18.7.0/24``: they have ``.10`` and on."""
        return str(self._network.ipv4)

    @property
    def ipv6_network(self) -> str:
        """The network of the servers' /64s, such as ``2001:db8:7::/48``: they have the second and on."""
        return str(self._network.ipv6)

    def create(self, spec: MachineSpec) -> None:
        """Make a server and boot it; return when its SSH server answers. See ``Machines``."""
        with self._locked(spec.server_id):
            folder = self._disk(spec.server_id)
            if folder.exists():
                raise MachineError(f"there is a server {spec.server_id} already")
            try:
                folder.mkdir(mode=0o755, parents=True)
                parent = self._network.control_group(str(spec.server_id))
                disk.make(folder, spec, self._package, parent)
                _write(self._spec(spec.server_id), json.dumps(asdict(spec)))
                self._boot(spec)
            except BaseException as error:
                self.delete(spec.server_id)
                if isinstance(error, OSError):
                    raise MachineError(
                        f"the disk of server {spec.server_id} cannot be made: {error}"
                    ) from error
                raise

    def power_on(self, server_id: int) -> None:
        """Boot a server that is off; return when its SSH server answers. See ``Machines``."""
        with self._locked(server_id):
            spec = self._read_spec(server_id)
            if server_id not in self._running:
                try:
                    self._boot(spec)
                except BaseException:
                    self.power_off(server_id)
                    raise

    def power_off(self, server_id: int) -> None:
        """Pull the plug: everything in the server ends at once, its disk stays."""
        with self._locked(server_id):
            process = self._running.pop(server_id, None)
            if process is not None:
                process.kill()
                process.wait(_END_TIMEOUT)
            self._network.remove_namespace(str(server_id))

    def delete(self, server_id: int) -> None:
        """Remove a server, its disk and its firewall. Nothing happens if there is none."""
        with self._locked(server_id):
            self.power_off(server_id)
            self._spec(server_id).unlink(missing_ok=True)
            self._firewall(server_id).unlink(missing_ok=True)
            shutil.rmtree(self._disk(server_id), ignore_errors=True)
            if self._disk(server_id).exists():
                shutil.rmtree(self._disk(server_id))

    def set_firewall(self, server_id: int, rules: Sequence[FirewallRule] | None) -> None:
        """Put ``rules`` in force in place of those before, at once if the server is on. See ``Machines``."""
        text = firewall.ruleset(INTERFACE, rules)
        with self._locked(server_id):
            _write(self._firewall(server_id), text)
            if server_id in self._running:
                self._enforce(server_id)

    def outside(self, index: int = 0) -> contextlib.AbstractContextManager[Outside]:
        """Return a place on the network that is no server, from 0 to 7, while the context lasts."""
        return self._network.outside(index)

    def command(self, server_id: int, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` as it runs as root in the server, as at its console: no SSH, no firewall.

        Raises ``MachineError`` if the server is off.
        """
        process = self._running.get(server_id)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children") if process else None
        try:
            first = children.read_text().split()[0] if children else None
        except (OSError, IndexError):
            first = None
        if first is None:
            raise MachineError(f"server {server_id} is off")
        environment = ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        return ["nsenter", f"--target={first}", "--all", "--", *environment, *argv]

    def shut_down(self) -> None:
        """Switch off every server and remove the network; the disks stay for a next process.

        Nothing can be done with these machines any more but ``close``.
        """
        for server_id in self._known():
            self.power_off(server_id)
        self._network.close()

    def close(self) -> None:
        """Remove every server with its disk, and the network."""
        for server_id in self._known():
            self.delete(server_id)
        self._network.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _boot(self, spec: MachineSpec) -> None:
        what = str(spec.server_id)
        namespace = self._network.add_namespace(what)
        if self._firewall(spec.server_id).exists():
            self._enforce(spec.server_id)
        addresses = [spec.ipv4] if spec.ipv4 else []
        if spec.ipv6_network:
            addresses.append(str(IPv6Network(spec.ipv6_network)[1]))
        self._network.connect(what, addresses)
        command = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        command += ["sh", str(_BOOT), str(self._disk(spec.server_id)), str(self._package)]
        console = self._disk(spec.server_id) / "console.log"
        with console.open("ab") as log:
            process = subprocess.Popen(
                in_namespace(namespace, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._running[spec.server_id] = process
        said = _first_line(process, _BOOT_TIMEOUT)
        if said != SSH_READY:
            last = "\n".join(console.read_text(errors="replace").splitlines()[-10:])
            raise MachineError(
                f"server {spec.server_id} does not boot: {said or 'it says nothing'}\n{last}".rstrip()
            )

    def _enforce(self, server_id: int) -> None:
        namespace = self._network.namespace(str(server_id))
        run(in_namespace(namespace, ["nft", "-f", "-"]), text=self._firewall(server_id).read_text())

    @contextlib.contextmanager
    def _locked(self, server_id: int) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(server_id, threading.RLock())
        with lock:
            yield

    def _known(self) -> list[int]:
        """Return the servers of which there is a disk, a specification or a firewall."""
        if not self._folder.exists():
            return []
        names = [path.name.split(".")[0] for path in self._folder.iterdir()]
        return sorted({int(name) for name in names if name.isdigit()})

    def _read_spec(self, server_id: int) -> MachineSpec:
        try:
            fields = json.loads(self._spec(server_id).read_text())
        except FileNotFoundError:
            raise MachineError(f"there is no server {server_id}") from None
        return MachineSpec(**{**fields, "authorized_keys": tuple(fields["authorized_keys"])})

    def _disk(self, server_id: int) -> Path:
        return self._folder / str(server_id)

    def _spec(self, server_id: int) -> Path:
        return self._folder / f"{server_id}.json"

    def _firewall(self, server_id: int) -> Path:
        return self._folder / f"{server_id}.nft"


def _first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Return the first line that a process writes, or what it wrote until it ended or the time was over."""
    if process.stdout is None:
        raise MachineError("the server's output is not read")
    deadline = time.monotonic() + seconds
    said = b""
    with process.stdout as pipe:
        while b"\n" not in said and (left := deadline - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                chunk = os.read(pipe.fileno(), 4096)
                if not chunk:
                    break
                said += chunk
    return said.decode(errors="replace").partition("\n")[0]


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for root's eyes alone."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)
