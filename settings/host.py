"""Where Docker runs: this machine, a server that exists, or one that Hetzner Cloud gives."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from settings.base import PROJECT_FOLDER, Group
from settings.names import host_name, literal_address
from settings.problems import reject
from ssh.keys import parse_public_key

Architecture = Literal["amd64", "arm64"]

KINDS = ("local", "ssh", "hetzner")

# Server types that are no longer sold, and what followed them:
# https://docs.hetzner.cloud/changelog#2025-10-16-server-types-deprecated and its entry of 2024-06-06.
_SUCCESSORS = {
    **dict.fromkeys(("cx11", "cx21", "cx22"), "cx23"),
    **dict.fromkeys(("cx31", "cx32"), "cx33"),
    **dict.fromkeys(("cx41", "cx42"), "cx43"),
    **dict.fromkeys(("cx51", "cx52"), "cx53"),
}
# The cheapest that each location has (https://github.com/hetznercloud/cli/issues/1322, 2026-04-24).
_CHEAPEST = {
    **dict.fromkeys(("nbg1", "fsn1", "hel1"), "cx23"),
    **dict.fromkeys(("ash", "hil"), "cpx11"),
    "sin": "cpx12",
}
# https://docs.hetzner.cloud/reference/cloud, section "Labels"
_LABEL_KEY = re.compile(
    r"([a-z0-9A-Z]([a-z0-9A-Z.-]{0,251}[a-z0-9A-Z])?/)?[a-z0-9A-Z]([a-z0-9A-Z._-]{0,61}[a-z0-9A-Z])?"
)
_LABEL_VALUE = re.compile(r"([a-z0-9A-Z]([a-z0-9A-Z._-]{0,61}[a-z0-9A-Z])?)?")
_PORTS = re.compile(r"(?P<first>[1-9][0-9]{0,4})(-(?P<last>[1-9][0-9]{0,4}))?")
_HIGHEST_PORT = 65535
_EVERYWHERE = ("0.0.0.0/0", "::/0")
_NETWORK_ADVICE = "Give networks or addresses, such as [203.0.113.4/32, 2001:db8::/48]."


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        reject(f"{value!r} is no network ({error})", _NETWORK_ADVICE)


def _key_file(value: str | None) -> str | None:
    if value is None:
        return None
    path = PROJECT_FOLDER / Path(value).expanduser()
    if not path.is_file():
        reject(f"{path} is no file", "Name your private key, or leave it out to have one made.")
    if not Path(f"{path}.pub").is_file():
        reject(
            f"{path}.pub is no file",
            f"Write the public key beside the private one: ssh-keygen -y -f {path} > {path}.pub",
        )
    try:
        parse_public_key(Path(f"{path}.pub").read_text())
    except ValueError as error:
        reject(
            f"{path}.pub is no public key ({error})", f"Write it anew: ssh-keygen -y -f {path} > {path}.pub"
        )
    return str(path)


class _WithAddresses(Group):
    ipv4: Annotated[
        str | None, Field(description="Give the host's public IPv4 address, or leave it out.")
    ] = None
    ipv6: Annotated[
        str | None, Field(description="Give the host's public IPv6 address, or leave it out.")
    ] = None

    @field_validator("ipv4")
    @classmethod
    def _literal_ipv4(cls, value: str | None) -> str | None:
        return None if value is None else literal_address(value, 4)

    @field_validator("ipv6")
    @classmethod
    def _literal_ipv6(cls, value: str | None) -> str | None:
        return None if value is None else literal_address(value, 6)


class LocalHost(_WithAddresses):
    """Give the host as a group, such as {kind: local}."""

    kind: Literal["local"] = "local"
    docker: Annotated[
        str | None,
        Field(description="Give the engine's address, such as unix:///var/run/docker.sock, or leave it out."),
    ] = None

    @field_validator("docker")
    @classmethod
    def _engine_is_here(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("unix:///"):
            reject(
                f"{value!r} is no socket of this machine",
                "host.kind local takes unix:///PATH only, such as unix:///var/run/docker.sock;"
                " for a server that you have, use host.kind: ssh.",
            )
        return value


class SshHost(_WithAddresses):
    """Give the server as a group, such as {kind: ssh, address: 203.0.113.7, hostKey: ssh-ed25519 A...}."""

    kind: Literal["ssh"]
    address: Annotated[
        str, Field(description="Give the server's address or name for SSH, such as 203.0.113.7.")
    ]
    port: Annotated[int, Field(ge=1, le=65535, description="Give the port of its SSH, such as 22.")] = 22
    user: Annotated[
        str, Field(description="Give a user who may use Docker there, such as root or deploy.")
    ] = "root"
    host_key: Annotated[
        str,
        Field(
            description="Give what /etc/ssh/ssh_host_ed25519_key.pub says on the server itself (the"
            " provider's console shows it too), so that nobody else can answer in its place."
        ),
    ]
    deploy_key: Annotated[
        str | None,
        Field(description="Name your private key's file, such as ~/.ssh/id_ed25519, or leave it out."),
    ] = None
    architecture: Annotated[
        Architecture, Field(description="Use amd64, or arm64 for a server with an ARM processor.")
    ] = "amd64"

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        text = value.strip("[]")
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            pass
        if "@" in value or "/" in value or ":" in value:
            reject(
                f"{value!r} is more than an address",
                "Give the address or name alone; user and port are settings of their own.",
            )
        return host_name(value)

    @field_validator("user")
    @classmethod
    def _user(cls, value: str) -> str:
        # as Debian's adduser takes them: NAME_REGEX in adduser.conf(5)
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
            reject(f"{value!r} is no user's name", "Give one such as root.")
        return value

    @field_validator("host_key")
    @classmethod
    def _public_key(cls, value: str) -> str:
        try:
            return parse_public_key(value)
        except ValueError as error:
            reject(
                f"is no public key ({error})",
                "Give the line of /etc/ssh/ssh_host_ed25519_key.pub on the server: ssh-ed25519 AAAA...",
            )

    _deploy_key_is_there = field_validator("deploy_key")(_key_file)


class FirewallRule(Group):
    """Give a rule as a group, such as {protocol: tcp, port: 8443, from: [0.0.0.0/0]}."""

    protocol: Annotated[
        Literal["tcp", "udp", "icmp", "esp", "gre"],
        Field(description="Use tcp, udp, icmp, esp or gre."),
    ]
    port: Annotated[
        str | None,
        Field(description="Give a port or a range, such as 8443 or 5000-5010.", coerce_numbers_to_str=True),
    ] = None
    sources: Annotated[list[str], Field(alias="from", min_length=1, description=_NETWORK_ADVICE)]
    description: Annotated[
        str | None,
        Field(max_length=255, description="Say what it is for in 255 characters, or leave it out."),
    ] = None

    @field_validator("port")
    @classmethod
    def _port_or_range(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = _PORTS.fullmatch(value)
        first, last = (int(found["first"]), int(found["last"] or found["first"])) if found else (1, 0)
        if not first <= last <= _HIGHEST_PORT:
            reject(f"{value!r} is no port", "Give a port or a range, such as 8443 or 5000-5010.")
        return value

    @field_validator("sources")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return [_network(each) for each in value]

    @model_validator(mode="after")
    def _port_where_there_are_ports(self) -> Self:
        if (self.port is None) == (self.protocol in {"tcp", "udp"}):
            has = "no port" if self.port is None else "a port"
            reject(
                f"is for {self.protocol} and has {has}", "Give a port for tcp and udp, and for these alone."
            )
        return self

    def opens_ssh(self) -> bool:
        """Tell whether the rule lets SSH, on its own port, in from everywhere."""
        if self.protocol != "tcp" or not set(_EVERYWHERE) & set(self.sources):
            return False
        first, _, last = (self.port or "").partition("-")
        return int(first) <= 22 <= int(last or first)  # noqa: PLR2004 - SSH's own


class HetznerHost(Group):
    """Give the server as a group, such as {kind: hetzner, location: nbg1, sshFrom: [203.0.113.4/32]}."""

    kind: Literal["hetzner"]
    location: Annotated[
        str, Field(description="Give a location, such as nbg1: fsn1, nbg1, hel1, ash, hil and sin are there.")
    ]
    server_type: Annotated[str, Field(description="Give a server type, such as cx23, cpx22 or cax11.")]
    image: Annotated[
        str, Field(description="Give a system image of Debian or Ubuntu by name, such as debian-13.")
    ] = "debian-13"
    ssh_from: Annotated[
        list[str],
        Field(
            min_length=1,
            description="Give the networks from which you use SSH, such as [203.0.113.4/32]: your own address"
            " is what `curl -4 https://icanhazip.com` shows.",
        ),
    ]
    ssh_from_anywhere: Annotated[
        bool, Field(description="Use true if everybody may knock at SSH; otherwise leave it out.")
    ] = False
    deploy_key: Annotated[
        str | None,
        Field(description="Name your private key's file, such as ~/.ssh/id_ed25519, or leave it out."),
    ] = None
    firewall_rules: Annotated[
        list[FirewallRule],
        Field(
            default_factory=list,
            description="Give a list, such as [{protocol: tcp, port: 8443, from: [0.0.0.0/0, '::/0']}].",
        ),
    ]
    backups: Annotated[
        bool, Field(description="Use true for Hetzner's daily backups, which cost a fifth of the server.")
    ] = False
    delete_protection: Annotated[
        bool,
        Field(
            description="Use true, so that neither the console nor `pulumi destroy` can delete the server and"
            " its addresses until it is false again."
        ),
    ] = False
    placement_group: Annotated[
        int | None,
        Field(ge=1, description="Give the id of a placement group that is there, or leave it out."),
    ] = None
    labels: Annotated[
        dict[str, str],
        Field(default_factory=dict, description="Give a group of labels, such as {team: network}."),
    ]
    reverse_dns: Annotated[
        bool, Field(description="Use true to have the addresses lead back to the relay's name.")
    ] = True
    dns_zone: Annotated[
        str | None,
        Field(description="Give the zone at Hetzner DNS that has the names, or leave it out."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _cheapest_of_the_location(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("serverType"):
            cheapest = _CHEAPEST.get(str(values.get("location")))
            return {**values, "serverType": cheapest} if cheapest else values
        return values

    @field_validator("location")
    @classmethod
    def _no_datacenter(cls, value: str) -> str:
        location, dash, _ = value.partition("-")
        if dash:
            reject(f"{value!r} is a datacenter", f"Give the location: {location}.")
        if not re.fullmatch(r"[a-z0-9]{2,16}", value):
            reject(f"{value!r} is no location", "Give one such as nbg1.")
        return value

    @field_validator("server_type")
    @classmethod
    def _type_is_sold(cls, value: str) -> str:
        if value in _SUCCESSORS:
            reject(f"{value!r} is no longer sold", f"Give its successor: {_SUCCESSORS[value]}.")
        if not re.fullmatch(r"[a-z]{2,4}[0-9]{1,3}", value):
            reject(f"{value!r} is no server type", "Give one such as cx23, cpx22 or cax11.")
        return value

    @field_validator("image")
    @classmethod
    def _image_has_apt(cls, value: str) -> str:
        if not re.fullmatch(r"(debian|ubuntu)-[0-9]+(\.[0-9]+)?", value):
            reject(
                f"{value!r} is no image that this project sets up",
                "Give a system image of Debian or Ubuntu by name, such as debian-13 or ubuntu-24.04.",
            )
        return value

    @field_validator("ssh_from")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return [_network(each) for each in value]

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(text):
                reject(
                    f"has the label {key}: {text}, which Hetzner does not take",
                    "Use up to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit.",
                )
        return value

    @field_validator("dns_zone")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        return None if value is None else host_name(value)

    _deploy_key_is_there = field_validator("deploy_key")(_key_file)

    @model_validator(mode="after")
    def _ssh_is_for_the_world_only_by_consent(self) -> Self:
        if self.ssh_from_anywhere:
            return self
        if set(_EVERYWHERE) & set(self.ssh_from) or any(rule.opens_ssh() for rule in self.firewall_rules):
            reject(
                "opens SSH to the whole world",
                "Name your own networks in sshFrom; or, if you mean it, set sshFromAnywhere: true.",
            )
        return self

    @property
    def architecture(self) -> Architecture:
        """The architecture of the server type: Hetzner's names of those with ARM begin with cax."""
        return "arm64" if self.server_type.startswith("cax") else "amd64"

    @property
    def deploy_public_keys(self) -> list[str]:
        """The public key that stands beside ``deploy_key``, if that is given."""
        return (
            [] if self.deploy_key is None else [parse_public_key(Path(f"{self.deploy_key}.pub").read_text())]
        )

    def record_name(self, name: str) -> str | None:
        """Return ``name`` as a record of the zone has it: ``@`` for the zone's own, ``None`` outside."""
        if self.dns_zone is None:
            return None
        if name == self.dns_zone:
            return "@"
        return name.removesuffix(f".{self.dns_zone}") if name.endswith(f".{self.dns_zone}") else None


def _kind(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("kind", "local")
    return getattr(value, "kind", "local")


AnyHost = Annotated[
    Annotated[LocalHost, Tag("local")]
    | Annotated[SshHost, Tag("ssh")]
    | Annotated[HetznerHost, Tag("hetzner")],
    Discriminator(_kind),
]
