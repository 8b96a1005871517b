"""What there is: the resources of one project, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .errors import ApiError, not_found, not_unique
from .listing import label_test

FIRST_ID = 100_000_001
"""As long as today's real ones, so that a client which takes an ID for a small number shows."""

FIRST_IPV4 = 10
"""The first address that is given, counted in the network: `sandbox.machines` keeps those before."""

FIRST_IPV6_NETWORK = 16
"""The first /64 that is given, counted likewise."""

KEPT_ACTIONS = 500
"""Actions that have ended are forgotten beyond this number."""

STATE_FILE = "state.json"


class StateError(Exception):
    """The folder with the state cannot be gone on from; the message says why and what to do."""


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class SshKey:
    """A public key, in OpenSSH's format."""

    id: int
    name: str
    public_key: str
    fingerprint: str
    labels: dict[str, str]
    created: str


@dataclass
class PrimaryIp:
    """
    An address that servers are given.

    ``ip`` is an IPv4 address, or a /64 network for type ``ipv6``. ``dns_ptr`` holds the names that were
    set, by address.
    """

    id: int
    name: str
    type: str
    ip: str
    location: str
    labels: dict[str, str]
    created: str
    auto_delete: bool
    assignee_id: int | None = None
    delete_protection: bool = False
    dns_ptr: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """
    A server, with what it was ordered with.

    ``authorized_keys`` are the keys as they were when it was ordered: later changes of SSH keys do not reach
    a server. ``machine_fits`` is false when the machine has to be made before the server can be powered on.
    """

    id: int
    name: str
    server_type: str
    image_id: int
    location: str
    status: str
    created: str
    labels: dict[str, str]
    user_data: str
    authorized_keys: list[str]
    primary_disk_size: int
    placement_group_id: int | None = None
    backup_window: str | None = None
    delete_protection: bool = False
    rebuild_protection: bool = False
    machine_fits: bool = False


@dataclass
class Firewall:
    """Rules as the API shows them, and what they are applied to: servers by ID, and label selectors."""

    id: int
    name: str
    labels: dict[str, str]
    created: str
    rules: list[dict[str, Any]]
    server_ids: list[int] = field(default_factory=list)
    selectors: list[str] = field(default_factory=list)


@dataclass
class PlacementGroup:
    """Servers that are kept on different hosts."""

    id: int
    name: str
    type: str
    labels: dict[str, str]
    created: str


@dataclass
class RecordSet:
    """The records of one name and type; without ``ttl`` they have the zone's."""

    name: str
    type: str
    ttl: int | None
    labels: dict[str, str]
    records: list[dict[str, Any]]
    change_protection: bool = False

    @property
    def id(self) -> str:
        """Return the ID, which the API makes of name and type."""
        return f"{self.name}/{self.type}"


@dataclass
class Zone:
    """A DNS zone; its record sets are by their ID."""

    id: int
    name: str
    ttl: int
    labels: dict[str, str]
    created: str
    delete_protection: bool = False
    rrsets: dict[str, RecordSet] = field(default_factory=dict)


@dataclass
class Action:
    """
    Something that takes time.

    ``locks`` is the server that nothing else may be done to until the action ends.
    """

    id: int
    command: str
    resources: list[dict[str, Any]]
    started: str
    status: str = "running"
    progress: int = 0
    finished: str | None = None
    error: dict[str, str] | None = None
    locks: int | None = None

    def shown(self) -> dict[str, Any]:
        """Return the action as the API has it."""
        fields = dataclasses.asdict(self)
        del fields["locks"]
        return fields


class _Named(Protocol):
    id: int
    name: str


_N = TypeVar("_N", bound=_Named)
_R = TypeVar("_R")


@dataclass
class Project:
    """
    The resources of one project, by their IDs. Whoever reads or changes them holds ``lock``.

    ``folder`` is where `save` writes to; nowhere for None. ``ipv4_network`` and ``ipv6_network`` are what
    addresses are given from; each address is given once before any is given again, so that a new server is
    not mistaken for an old one.
    """

    folder: Path | None
    ipv4_network: str
    ipv6_network: str
    lock: threading.RLock = field(default_factory=threading.RLock)
    last_id: int = FIRST_ID - 1
    last_ipv4: int = FIRST_IPV4 - 1
    last_ipv6: int = FIRST_IPV6_NETWORK - 1
    servers: dict[int, Server] = field(default_factory=dict)
    primary_ips: dict[int, PrimaryIp] = field(default_factory=dict)
    firewalls: dict[int, Firewall] = field(default_factory=dict)
    ssh_keys: dict[int, SshKey] = field(default_factory=dict)
    placement_groups: dict[int, PlacementGroup] = field(default_factory=dict)
    zones: dict[int, Zone] = field(default_factory=dict)
    actions: dict[int, Action] = field(default_factory=dict)

    def new_id(self) -> int:
        """Return an ID that nothing has had."""
        self.last_id += 1
        return self.last_id

    def new_ipv4(self) -> str:
        """Return a free address. Raises ``unavailable`` when there is none."""
        network = ipaddress.IPv4Network(self.ipv4_network)
        self.last_ipv4 = _next_free(
            self.last_ipv4,
            range(FIRST_IPV4, network.num_addresses - 1),
            {int(ipaddress.IPv4Address(taken.ip)) - int(network[0]) for taken in self._of_type("ipv4")},
        )
        return str(network[self.last_ipv4])

    def new_ipv6_network(self) -> str:
        """Return a free /64. Raises ``unavailable`` when there is none."""
        network = ipaddress.IPv6Network(self.ipv6_network)
        first, size = int(network.network_address), 2**64
        self.last_ipv6 = _next_free(
            self.last_ipv6,
            range(FIRST_IPV6_NETWORK, network.num_addresses // size),
            {
                (int(ipaddress.IPv6Network(taken.ip).network_address) - first) // size
                for taken in self._of_type("ipv6")
            },
        )
        return str(ipaddress.IPv6Network((first + self.last_ipv6 * size, 64)))

    def _of_type(self, kind: str) -> Iterable[PrimaryIp]:
        return (ip for ip in self.primary_ips.values() if ip.type == kind)

    def address_of(self, server: Server, kind: str) -> PrimaryIp | None:
        """Return the server's primary IP of type ``ipv4`` or ``ipv6``."""
        return next((ip for ip in self._of_type(kind) if ip.assignee_id == server.id), None)

    def firewalls_of(self, server: Server) -> list[Firewall]:
        """Return the firewalls that are applied to a server, by itself or by its labels."""
        return [
            firewall
            for firewall in self.firewalls.values()
            if server.id in firewall.server_ids or self.selects(firewall, server)
        ]

    @staticmethod
    def selects(firewall: Firewall, server: Server) -> bool:
        """Tell whether one of the firewall's label selectors takes the server."""
        return any(label_test(selector)(server.labels) for selector in firewall.selectors)

    def is_locked(self, server: Server) -> bool:
        """Tell whether an action is running that forbids others."""
        return any(
            action.locks == server.id and action.status == "running" for action in self.actions.values()
        )

    def forget(self, server: Server) -> None:
        """Take a server out of the project, if it is in it: its primary IPs are freed, or go with it."""
        self.servers.pop(server.id, None)
        for primary_ip in [ip for ip in self.primary_ips.values() if ip.assignee_id == server.id]:
            primary_ip.assignee_id = None
            if primary_ip.auto_delete:
                del self.primary_ips[primary_ip.id]
        for firewall in self.firewalls.values():
            if server.id in firewall.server_ids:
                firewall.server_ids.remove(server.id)

    def save(self) -> None:
        """Write everything to the folder; a reader finds the old state or the new one, whole."""
        if self.folder is None:
            return
        with self.lock:
            ended = [action.id for action in self.actions.values() if action.status != "running"]
            for identity in ended[:-KEPT_ACTIONS]:
                del self.actions[identity]
            text = json.dumps({name: _plain(getattr(self, name)) for name in _KEPT}, indent=1)
            path = self.folder / STATE_FILE
            unfinished = path.with_suffix(".new")
            # user data holds the servers' private keys
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
                file.write(text)
            unfinished.replace(path)


_KEPT = [each.name for each in dataclasses.fields(Project) if each.name not in ("folder", "lock")]


def _plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return [dataclasses.asdict(resource) for resource in value.values()]


def _next_free(last: int, numbers: range, taken: set[int]) -> int:
    for number in chain(range(last + 1, numbers.stop), range(numbers.start, min(last + 1, numbers.stop))):
        if number not in taken:
            return number
    # the status that POST /primary_ips has for this code (https://docs.hetzner.cloud/changelog, 1 July 2025)
    raise ApiError(412, "unavailable", "no address of this type is available")


def load(folder: Path | None, ipv4_network: str, ipv6_network: str) -> Project:
    """
    Return the project that a folder holds, or an empty one.

    Actions that were running when it was last written have ended with an error. Raises `StateError` for a
    file that is no state, or whose addresses are not of these networks.
    """
    project = Project(folder, ipv4_network, ipv6_network)
    if folder is None or not (folder / STATE_FILE).exists():
        return project
    path = folder / STATE_FILE
    try:
        kept = json.loads(path.read_text())
        for name in _KEPT:
            setattr(project, name, _restored(name, kept[name]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path} is not a state of this API ({error!r}): remove it to begin anew") from error
    if (project.ipv4_network, project.ipv6_network) != (ipv4_network, ipv6_network):
        raise StateError(
            f"{path} has addresses of {project.ipv4_network} and {project.ipv6_network}, but this "
            f"machine's are now of {ipv4_network} and {ipv6_network}: remove it to begin anew"
        )
    for action in project.actions.values():
        if action.status == "running":
            action.status, action.finished = "error", now()
            action.error = {
                "code": "action_failed",
                "message": "the API was stopped while the action was running",
            }
    return project


def _restored(name: str, kept: Any) -> Any:
    kind = _KINDS.get(name)
    return {fields["id"]: kind(**fields) for fields in kept} if kind else kept


def _zone(*, rrsets: Mapping[str, Any], **fields: Any) -> Zone:
    return Zone(**fields, rrsets={key: RecordSet(**rrset) for key, rrset in rrsets.items()})


_KINDS: dict[str, Callable[..., Any]] = {
    "servers": Server,
    "primary_ips": PrimaryIp,
    "firewalls": Firewall,
    "ssh_keys": SshKey,
    "placement_groups": PlacementGroup,
    "zones": _zone,
    "actions": Action,
}


def found(resources: Mapping[int, _R], identity: int | str, noun: str) -> _R:
    """Return the resource with an ID. Raises ``not_found``."""
    number = int(identity) if str(identity).isdecimal() else -1
    if number not in resources:
        raise not_found(noun, identity)
    return resources[number]


def check_name(resources: Mapping[int, _N], name: str, noun: str, own_id: int | None = None) -> None:
    """Raise ``uniqueness_error`` if another resource of the kind has the name."""
    if any(resource.name == name and resource.id != own_id for resource in resources.values()):
        raise not_unique(noun, "name")
