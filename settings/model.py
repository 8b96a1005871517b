"""The settings of one stack, and the rules that a value must keep.

Every field's description is written as the advice that a user gets when the
value is missing or of the wrong type. Names in stack files are in camelCase.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from images import pinned_version
from settings.base import Group
from settings.folders import folder_here, is_path_in_container
from settings.host import AnyHost, LocalHost
from settings.names import NAME_ADVICE, host_name
from settings.pem import certificates_in, private_key_in
from settings.problems import reject
from settings.site import DURATION, Site, SiteSecrets
from ssh.keys import public_key

# caddy:2.11.4 on Docker Hub, index of all architectures.
CADDY_IMAGE = "caddy:2.11.4@sha256:844f60b64e4724a5aa8245e019dace0d3f199f7433ce6c57676cb30a920dbad9"

# What the Docker Engine takes as a container's, network's or volume's name.
_DOCKER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
# Reference grammar of github.com/distribution/reference: [registry/]path[:tag][@digest].
_IMAGE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
# What follows goes into the Caddyfile as it stands. It holds nothing that ends a token there, starts a
# comment, a quotation or a heredoc, or is a placeholder (caddyserver.com/docs/caddyfile/concepts).
_MAIL_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@([A-Za-z0-9-]+\.)+[A-Za-z0-9-]+")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.+@=-]+")
# What Hetzner and Kubernetes take as a label's value, so that stacks' labels can be the same.
_LABEL = re.compile(r"[a-z0-9A-Z]([a-z0-9A-Z._-]{0,61}[a-z0-9A-Z])?")
# RFC 6761 and 6762, RFC 8375 and ICANN's resolution on .internal: names that no public authority signs.
PRIVATE_SUFFIXES = (".localhost", ".local", ".test", ".invalid", ".internal", ".home.arpa")


def _docker_name(value: str) -> str:
    if not _DOCKER_NAME.fullmatch(value):
        reject(
            f"{value!r} is no name that Docker takes",
            "Use letters, digits, '_', '.' and '-', at least two, the first a letter or digit.",
        )
    return value


class Region(Group):
    """Give the region as id, code and name, such as {id: 900, code: nbg, name: Nuremberg}."""

    # tailcfg/derpmap.go: 900 to 999 are reserved for regions that users run themselves.
    id: Annotated[
        int,
        Field(ge=900, le=999, description="Give a number from 900 to 999, one that none of your stacks has."),
    ]
    code: Annotated[str, Field(description="Give a short code such as nbg, unique over your stacks.")]
    name: Annotated[str, Field(description="Give a name for people, such as Nuremberg.")] = ""
    latitude: Annotated[
        float | None, Field(ge=-90, le=90, description="Give degrees north, from -90 to 90, or leave it out.")
    ] = None
    longitude: Annotated[
        float | None,
        Field(ge=-180, le=180, description="Give degrees east, from -180 to 180, or leave it out."),
    ] = None
    # tailcfg/derpmap.go, DERPHomeParams.RegionScore: clients ignore what is not more than 0.
    score: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000,
            allow_inf_nan=False,
            description="Give what clients multiply the region's latency by, such as 0.5 to prefer it.",
        ),
    ] = None
    no_measure: Annotated[
        bool,
        Field(description="Use true for a region that is nobody's home, and used for peers alone."),
    ] = False

    @field_validator("code")
    @classmethod
    def _code_is_short(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", value):
            reject(
                f"{value!r} is no region code",
                "Use up to 32 small letters, digits and hyphens, such as nbg or eu-home.",
            )
        return value

    @model_validator(mode="after")
    def _both_or_no_coordinates(self) -> Self:
        if (self.latitude is None) != (self.longitude is None):
            reject("has a latitude without a longitude, or the other way round", "Give both or neither.")
        return self

    @model_validator(mode="after")
    def _a_score_has_a_use(self) -> Self:
        if self.no_measure and self.score is not None:
            reject(
                "has a score, but noMeasure is true, so that no client measures it",
                "Leave score out, or set noMeasure: false.",
            )
        return self

    @property
    def title(self) -> str:
        """The name for people: ``name``, else ``code``."""
        return self.name or self.code


def unique_local_subnet(*names: str) -> str:
    """Return the /64 that belongs to ``names``, in fd00::/8 (RFC 4193).

    Engines older than 27 choose no IPv6 subnet themselves. The 40 bits that
    RFC 4193 wants random are a hash of the names, so that a stack keeps its
    subnet and two stacks do not share one.
    """
    digest = hashlib.sha256("/".join(names).encode()).digest()
    prefix = bytes([0xFD]) + digest[:5]
    return str(ipaddress.IPv6Network((prefix.ljust(16, b"\0"), 64)))


class Network(Group):
    """Give the network as a group, such as {name: shared_bridge}."""

    name: Annotated[str, Field(description="Give the name of the Docker network, such as shared_bridge.")] = (
        "shared_bridge"
    )
    external: Annotated[
        bool, Field(description="Use true to join a network that is there already, false to have it made.")
    ] = False
    ipv6: Annotated[
        bool, Field(description="Use true; false only where the network or the engine has no IPv6.")
    ] = True
    ipv6_subnet: Annotated[
        str | None, Field(description="Give a /64 such as fd12:3456:789a:1::/64, or leave it out.")
    ] = None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value in {"host", "bridge", "none"}:
            reject(
                f"{value!r} is one of Docker's own networks, on which containers find no names",
                "Name a network of your own, such as shared_bridge.",
            )
        return _docker_name(value)

    @field_validator("ipv6_subnet")
    @classmethod
    def _subnet(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            subnet = ipaddress.IPv6Network(value)
        except ValueError as error:
            reject(f"{value!r} is no IPv6 subnet ({error})", "Give a /64 such as fd12:3456:789a:1::/64.")
        if not 48 <= subnet.prefixlen <= 112:  # noqa: PLR2004 - a site's prefix to what Docker can still allot from
            reject(f"{value!r} has {subnet.prefixlen} bits", "Give a /64 such as fd12:3456:789a:1::/64.")
        return str(subnet)

    @model_validator(mode="after")
    def _subnet_has_a_use(self) -> Self:
        if self.ipv6_subnet and self.external:
            reject(
                "has an ipv6Subnet, but an external network keeps the one that it has",
                "Leave ipv6Subnet out, or set external: false.",
            )
        if self.ipv6_subnet and not self.ipv6:
            reject("has an ipv6Subnet, but ipv6 is false", "Leave ipv6Subnet out, or set ipv6: true.")
        return self

    def subnet(self, stack: str) -> str:
        """Return the IPv6 subnet that the network of ``stack`` is made with."""
        return self.ipv6_subnet or unique_local_subnet("derp-relays", stack, self.name)


_VOLUMES = ("derp_certs", "derp_data", "caddy_etc", "caddy_srv", "caddy_data", "caddy_config")


class Volumes(Group):
    """Give the volumes as a group, such as {prefix: relay_, protect: true}."""

    prefix: Annotated[
        str | None, Field(description="Give the start of all volumes' names, such as relay_; or ''.")
    ] = None
    protect: Annotated[
        bool,
        Field(
            description="Use true, so that `pulumi destroy` keeps certificates and keys; false to let it go."
        ),
    ] = True

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str | None) -> str | None:
        if value:
            _docker_name(value + "derp_data")
        return value

    def names(self, stack: str) -> dict[str, str]:
        """Return the names on the engine of the volumes of ``stack``, by what they are for.

        Without a prefix of the user's each stack has its own, so that two on one
        host do not share keys.
        """
        prefix = f"derp-relays-{stack}_" if self.prefix is None else self.prefix
        return {use: prefix + use for use in _VOLUMES}


class _Container(Group):
    allow_unpinned: Annotated[
        bool, Field(description="Use true to accept an image without digest, which can change under you.")
    ] = False
    version: Annotated[str | None, Field(description="Give a version such as 1.102.5, or leave it out.")] = (
        None
    )
    image: str
    container_name: str
    memory: Annotated[int, Field(ge=0, description="Give MiB, such as 512; 0 means no limit.")] = 512
    logs: Annotated[
        Literal["rotated", "engine"],
        Field(description="Use rotated (100 MB at most), or engine for the Docker Engine's own default."),
    ] = "rotated"
    healthcheck: Annotated[
        list[str] | None,
        Field(description="Give a command as a list, [] for none, or leave it out for the image's own."),
    ] = None

    @field_validator("container_name")
    @classmethod
    def _container_name(cls, value: str) -> str:
        return _docker_name(value)

    @field_validator("memory")
    @classmethod
    def _memory_is_enough(cls, value: int) -> int:
        if 0 < value < 64:  # noqa: PLR2004 - Caddy alone holds 57 MB when idle
            reject(f"{value} MiB do not hold the program", "Give at least 64, or 0 for no limit.")
        return value

    @field_validator("version")
    @classmethod
    def _version(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+([-+.][0-9A-Za-z.-]+)?", value):
            reject(f"{value!r} is no version", "Give one such as 1.102.5, without a leading v.")
        return value

    @field_validator("image")
    @classmethod
    def _image_is_pinned(cls, value: str, info: ValidationInfo) -> str:
        if value == "build":
            return value
        match = _IMAGE.fullmatch(value)
        if match is None:
            reject(
                f"{value!r} is no image reference",
                "Give NAME:TAG@sha256:DIGEST, or build to have it built from its Go module.",
            )
        if match["digest"] is None and not info.data.get("allow_unpinned"):
            reject(
                f"{value!r} has no digest, so it can change under you",
                f"Append @sha256:..., which `docker buildx imagetools inspect {value}` shows;"
                " or set allowUnpinned: true beside it.",
            )
        if info.data.get("version") is not None:
            reject(
                f"{value!r} stands beside a version, which is for images that are built",
                "Leave version out, or set image: build to have that version built.",
            )
        return value

    @property
    def builds(self) -> bool:
        """Whether the image is built from the program's Go module."""
        return self.image == "build"


class Derper(_Container):
    """Give derper's settings as a group, such as {image: build}."""

    image: Annotated[str, Field(description="Use build, or give NAME:TAG@sha256:DIGEST.")] = "build"
    container_name: Annotated[str, Field(description="Give the container's name, such as derper.")] = "derper"
    arguments: Annotated[
        Literal["flags", "environment"] | None,
        Field(
            description="Use flags for images that start derper, environment for those that read DERP_DOMAIN."
        ),
    ] = None
    stun_port: Annotated[
        int, Field(ge=1, le=65535, description="Give the UDP port for STUN, such as 3478.")
    ] = 3478
    key_folder: Annotated[
        str | None,
        Field(description="Give the folder where the image keeps derper.key, such as /var/lib/derper."),
    ] = None

    @field_validator("key_folder")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith("/"):
            reject(f"{value!r} is not absolute", "Give a path in the container, such as /var/lib/derper.")
        if not is_path_in_container(value):
            reject(f"{value!r} is no folder in the container", "Use letters, digits, '.', '-', '_' and '/'.")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _built_image_takes_flags(self) -> Self:
        if self.builds and self.arguments == "environment":
            reject(
                "has arguments: environment, but the built image starts derper itself",
                "Use arguments: flags, or name an image that reads DERP_DOMAIN.",
            )
        return self

    @property
    def configured_by(self) -> Literal["flags", "environment"]:
        """How the image is told its settings: ``arguments``, else flags."""
        return self.arguments or "flags"

    @property
    def build_version(self) -> str:
        """The version of tailscale.com to build: ``version``, else the pinned one."""
        return self.version or pinned_version("derper")


class Caddy(_Container):
    """Give Caddy's settings as a group, such as {httpPort: 80, httpsPort: 443}."""

    image: Annotated[str, Field(description="Use build, or give NAME:TAG@sha256:DIGEST.")] = CADDY_IMAGE
    container_name: Annotated[str, Field(description="Give the container's name, such as caddy.")] = "caddy"
    http_port: Annotated[
        int, Field(ge=1, le=65535, description="Give the TCP port for HTTP, such as 80.")
    ] = 80
    https_port: Annotated[
        int, Field(ge=1, le=65535, description="Give the TCP and UDP port for HTTPS and HTTP/3, such as 443.")
    ] = 443
    net_admin: Annotated[
        bool, Field(description="Use true to give Caddy NET_ADMIN, false to withhold it.")
    ] = True
    answer_by_address: Annotated[
        bool,
        Field(description="Use true, so that Tailscale's check for captive portals is answered on port 80."),
    ] = True
    close_debug: Annotated[
        bool, Field(description="Use true, so that /debug is not to be had from outside.")
    ] = True
    stream_close_delay: Annotated[
        str,
        Field(
            description="Give how long relay sessions outlive a reload, such as 24h; 0 ends them at once.",
            # YAML has the 0 as a number
            coerce_numbers_to_str=True,
        ),
    ] = "24h"
    config_folder: Annotated[
        str | None,
        Field(description="Give a folder of the host to use as /etc/caddy, or leave it out for a volume."),
    ] = None
    site_folder: Annotated[
        str | None,
        Field(description="Give a folder of the host to use as /srv, or leave it out for a volume."),
    ] = None

    @field_validator("stream_close_delay")
    @classmethod
    def _duration(cls, value: str) -> str:
        if value != "0" and not DURATION.fullmatch(value):
            reject(
                f"{value!r} is no length of time", "Give a number and s, m, h or d, such as 24h; 0 for none."
            )
        return value

    @field_validator("config_folder", "site_folder")
    @classmethod
    def _folder_can_be_mounted(cls, value: str | None) -> str | None:
        if value is not None:
            path = folder_of_host(value)
            if path.exists() and not path.is_dir():
                reject(f"{path} is no folder", "Name a folder; one that is not there is made.")
        return value

    @property
    def build_version(self) -> str:
        """The version of Caddy's module to build: ``version``, else the pinned one."""
        return self.version or pinned_version("caddy")


class Certificate(Group):
    """Give the certificate as a group, such as {source: acme, email: you@example.com}."""

    source: Annotated[
        Literal["acme", "acme-staging", "internal", "files"],
        Field(
            description="Use acme for Let's Encrypt, acme-staging to try it, internal for Caddy's own,"
            " files for yours."
        ),
    ] = "acme"
    email: Annotated[
        str | None, Field(description="Give your mail address for the authority, or leave it out.")
    ] = None
    folder: Annotated[
        str | None,
        Field(description="Give the folder of this machine that has the files, such as /etc/ssl/relay."),
    ] = None
    certificate: Annotated[str, Field(description="Give the chain's file name, such as fullchain.pem.")] = (
        "fullchain.pem"
    )
    key: Annotated[str, Field(description="Give the key's file name, such as privkey.pem.")] = "privkey.pem"

    @field_validator("email")
    @classmethod
    def _mail_address(cls, value: str | None) -> str | None:
        if value is not None and not _MAIL_ADDRESS.fullmatch(value):
            reject(f"{value!r} is no mail address", "Give one such as you@example.com, or leave it out.")
        return value

    @model_validator(mode="after")
    def _files_are_there(self) -> Self:
        if self.source != "files":
            if self.folder is not None:
                reject(
                    f"has a folder, but source is {self.source}", "Set source: files, or leave folder out."
                )
            return self
        if self.folder is None:
            reject(
                "has source files but no folder", "Set certificate.folder to the folder that has the files."
            )
        folder = folder_here(self.folder)
        for name in (self.certificate, self.key):
            if not _FILE_NAME.fullmatch(name):
                reject(
                    f"has the file name {name!r}",
                    "Name a file in folder, by letters, digits, '.', '_', '-', '+', '=' and '@' alone.",
                )
        chain, key = certificates_in(folder / self.certificate), private_key_in(folder / self.key)
        if chain[0].public_key() != key.public_key():
            reject(
                f"names {folder / self.certificate}, whose first certificate is not for {folder / self.key}",
                "Name the certificate and the key that were made together.",
            )
        return self


# RFC 1918. What else Python calls private is somebody's: loopback, links, Tailscale's own 100.64.0.0/10.
_PRIVATE = tuple(ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_SUBNET_ADVICE = "Give one of your host's own that nothing else uses, such as 172.31.254.0/28."


class Metrics(Group):
    """Give the network for metrics as a group, such as {subnet: 172.31.254.0/28}."""

    subnet: Annotated[str, Field(description=_SUBNET_ADVICE)]
    network: Annotated[
        str | None, Field(description="Give the name of the Docker network for metrics, or leave it out.")
    ] = None

    @field_validator("network")
    @classmethod
    def _network(cls, value: str | None) -> str | None:
        return value if value is None else _docker_name(value)

    @field_validator("subnet")
    @classmethod
    def _subnet(cls, value: str) -> str:
        try:
            subnet = ipaddress.IPv4Network(value)
        except ValueError as error:
            reject(f"{value!r} is no IPv4 subnet ({error})", _SUBNET_ADVICE)
        if not any(subnet.subnet_of(each) for each in _PRIVATE):
            reject(
                f"{value!r} is not private (RFC 1918)",
                "Give one in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, such as 172.31.254.0/28.",
            )
        if not 16 <= subnet.prefixlen <= 29:  # noqa: PLR2004 - 29: the host, both containers and three who read
            reject(
                f"{value!r} has {subnet.prefixlen} bits",
                "Give one of 16 to 29 bits, such as 172.31.254.0/28.",
            )
        return str(subnet)

    @property
    def gateway(self) -> str:
        """The host's own address on the network."""
        return self._address(1)

    @property
    def derper(self) -> str:
        """The relay's address, the same as long as the subnet is."""
        return self._address(2)

    @property
    def caddy(self) -> str:
        """Caddy's address, the same as long as the subnet is."""
        return self._address(3)

    @property
    def joining(self) -> str:
        """The part of the subnet for containers that join: its second half, in which none of ours is."""
        return str(list(ipaddress.IPv4Network(self.subnet).subnets())[1])

    @property
    def readers(self) -> tuple[str, ...]:
        """The networks that metrics are for: all of the subnet but Caddy, which asks for visitors."""
        caddy = ipaddress.IPv4Network(self.caddy)
        return tuple(str(each) for each in sorted(ipaddress.IPv4Network(self.subnet).address_exclude(caddy)))

    def _address(self, number: int) -> str:
        return str(ipaddress.IPv4Network(self.subnet)[number])

    def name(self, stack: str) -> str:
        """Return the name on the engine of the network of ``stack``."""
        return self.network or f"derp-relays-{stack}_metrics"


def folder_of_host(folder: str) -> Path:
    """Return ``folder`` as `folder_here` does, if Docker can mount it.

    Rejects, for use in a validator, a name with the colon that Docker parts a
    mount by (docs.docker.com/reference/cli/docker/container/run, -v).
    """
    path = folder_here(folder)
    if ":" in str(path) or not str(path).isprintable():
        reject(f"{str(path)!r} cannot be mounted", "Name a folder without ':' and control characters.")
    return path


class Settings(Group):
    """Give the stack's settings in its file."""

    domain: Annotated[
        str, Field(description=f"{NAME_ADVICE}: the relay's own, with DNS records for the host.")
    ]
    region: Annotated[
        Region, Field(description="Give id, code and name, such as {id: 900, code: nbg, name: Nuremberg}.")
    ]
    host: Annotated[AnyHost, Field(description="Give a group, such as {kind: local}.")] = LocalHost()
    network: Annotated[Network, Field(description="Give a group, such as {name: shared_bridge}.")] = Network()
    volumes: Annotated[Volumes, Field(description="Give a group, such as {prefix: relay_}.")] = Volumes()
    derper: Annotated[Derper, Field(description="Give a group, such as {image: build}.")] = Derper()
    caddy: Annotated[Caddy, Field(description="Give a group, such as {httpsPort: 443}.")] = Caddy()
    certificate: Annotated[Certificate, Field(description="Give a group, such as {source: acme}.")] = (
        Certificate()
    )
    sites: Annotated[
        list[Site],
        Field(
            default_factory=list,
            description="Give a list, such as [{names: [blog.example.com], upstream: 'blog:8080'}].",
        ),
    ]
    site_secrets: Annotated[
        SiteSecrets,
        Field(default_factory=dict, description="Give texts by names, which sites use as {secret.NAME}."),
    ]
    metrics: Annotated[
        Metrics | None, Field(description="Give a group, such as {subnet: 172.31.254.0/28}, or leave it out.")
    ] = None
    labels: Annotated[
        dict[str, str],
        Field(
            default_factory=dict,
            description="Give labels that `relayctl fleet` chooses stacks by, such as {continent: europe}.",
        ),
    ]

    ssh_host_key: Annotated[
        SecretStr | None,
        Field(description="Leave it to `make setup`, which makes it and keeps it as a secret."),
    ] = None
    ssh_deploy_key: Annotated[
        SecretStr | None,
        Field(description="Leave it to `make setup`, which makes it and keeps it as a secret."),
    ] = None

    @field_validator("ssh_host_key", "ssh_deploy_key")
    @classmethod
    def _private_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                public_key(value.get_secret_value())
            except ValueError as error:
                reject(
                    f"is no private key in OpenSSH's format ({error})",
                    "Take the line back from where the stack's file is kept. For a stack that has no server"
                    " yet, delete it: `make setup` makes a new one.",
                )
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        """Take what YAML has as a truth value or a number for the text that was written."""
        if not isinstance(value, dict):
            return value
        return {
            key: json.dumps(text) if isinstance(text, bool | int) else text for key, text in value.items()
        }

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not _LABEL.fullmatch(key) or not _LABEL.fullmatch(text):
                reject(
                    f"has the label {key}: {text}, which cannot be chosen by",
                    "Use up to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit.",
                )
        return value

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        return host_name(value)
