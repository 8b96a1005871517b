"""What the API's parts share: the project, its actions and the machines, and what is told to the machines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sandbox.machines import FirewallRule, Machines, MachineSpec

from .actions import Actions, Step
from .catalogue import IMAGES, SERVER_TYPES
from .faults import Faults
from .state import Project, Server

MB_PER_GB = 1024


class NoMachines:
    """In place of machines: servers are only said to run."""

    ipv4_network = "198.19.0.0/16"
    """Of RFC 2544's network, in which nothing on a real network answers."""

    ipv6_network = "2001:db8:ffff::/48"
    """Of RFC 3849's."""

    def create(self, spec: MachineSpec) -> None:
        """Take note of nothing."""

    def power_on(self, server_id: int) -> None:
        """Take note of nothing."""

    def power_off(self, server_id: int) -> None:
        """Take note of nothing."""

    def delete(self, server_id: int) -> None:
        """Take note of nothing."""

    def set_firewall(self, server_id: int, rules: Sequence[FirewallRule] | None) -> None:
        """Take note of nothing."""

    def close(self) -> None:
        """Have nothing to remove."""


@dataclass
class Cloud:
    """
    A project and what makes it real.

    Methods that raise `sandbox.machines.MachineError` are called without the project's lock.
    """

    project: Project
    machines: Machines
    faults: Faults
    actions: Actions
    _enforcing: threading.Lock = field(default_factory=threading.Lock)

    def boot(self, server: Server) -> None:
        """
        Power a server's machine on; make it first, with an empty disk, where there is none that fits.

        Raises `sandbox.machines.MachineError`.
        """
        if server.machine_fits:
            self.enforce_firewalls([server.id])
            self.machines.power_on(server.id)
            return
        self.machines.delete(server.id)
        self.enforce_firewalls([server.id])
        with self.project.lock:
            spec = self._spec(server)
        self.machines.create(spec)
        with self.project.lock:
            server.machine_fits = True

    def reboot(self, server: Server) -> None:
        """Power a server's machine off and on. Raises `sandbox.machines.MachineError`."""
        self.machines.power_off(server.id)
        self.boot(server)

    def start(self, server: Server) -> Step:
        """Return the action that boots a server, which has the status ``starting`` from now on."""
        server.status = "starting"
        return self.change(server, "start_server", self.boot, done="running", failed="off")

    def deletion(self, server: Server) -> Step:
        """Return the action that deletes a server, which has the status ``deleting`` from now on."""
        before, server.status = server.status, "deleting"
        return Step(
            "delete_server",
            [("server", server.id)],
            work=lambda: self.machines.delete(server.id),
            done=lambda: self.project.forget(server),
            failed=lambda: setattr(server, "status", before),
            locks=server.id,
        )

    @staticmethod
    def change(
        server: Server, command: str, work: Callable[[Server], None] | None = None, *, done: str, failed: str
    ) -> Step:
        """Return an action on a server, which has the status ``done`` or ``failed`` when it has ended."""
        return Step(
            command,
            [("server", server.id)],
            work=None if work is None else lambda: work(server),
            done=lambda: setattr(server, "status", done),
            failed=lambda: setattr(server, "status", failed),
            locks=server.id,
        )

    def enforce_firewalls(self, server_ids: Iterable[int]) -> None:
        """
        Tell the machines of servers what their firewalls let in now.

        Raises `sandbox.machines.MachineError`.
        """
        for identity in server_ids:
            # one at a time, or rules that are read first could be told last
            with self._enforcing:
                with self.project.lock:
                    server = self.project.servers.get(identity)
                    rules = None if server is None else self._inbound(server)
                if server is not None:
                    self.machines.set_firewall(identity, rules)

    def _spec(self, server: Server) -> MachineSpec:
        ipv4, ipv6 = (self.project.address_of(server, kind) for kind in ("ipv4", "ipv6"))
        return MachineSpec(
            server_id=server.id,
            name=server.name,
            ipv4=ipv4.ip if ipv4 else None,
            ipv6_network=ipv6.ip if ipv6 else None,
            user_data=server.user_data,
            authorized_keys=tuple(server.authorized_keys),
            image=IMAGES[server.image_id].name,
            memory_mb=SERVER_TYPES[server.server_type].memory * MB_PER_GB,
        )

    def _inbound(self, server: Server) -> list[FirewallRule] | None:
        firewalls = self.project.firewalls_of(server)
        if not firewalls:
            return None
        return [
            FirewallRule(rule["protocol"], rule["port"], tuple(rule["source_ips"]))
            for firewall in firewalls
            for rule in firewall.rules
            if rule["direction"] == "in"
        ]
