"""The sites that Caddy serves beside the relay, and the rules that they must keep."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from settings.base import PROJECT_FOLDER, Group
from settings.folders import folder_here, is_path_in_container
from settings.names import host_name
from settings.pem import certificates_in
from settings.problems import reject
from settings.snippet import stays_in_its_block

# Five digits: 292 years are the longest that Go's time.Duration holds.
DURATION = re.compile(r"[1-9][0-9]{0,4}[smhd]")
# What follows goes into the Caddyfile as it stands. It holds nothing that ends a token there, starts a
# comment, a quotation or a heredoc, or is a placeholder (caddyserver.com/docs/caddyfile/concepts).
_UPSTREAM_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:][0-9A-Fa-f:.]*")
_REDIRECT = re.compile(
    r"https?://[A-Za-z0-9\[][A-Za-z0-9.:\[\]-]*(/[A-Za-z0-9._~:/@!$&'()*+,;=%-]*)?", re.IGNORECASE
)
_HEALTH_PATH = re.compile(r"/[A-Za-z0-9._~:/@!$&'()*+,;=%?-]*")
_STATUS = re.compile(r"[1-5]([0-9][0-9]|xx)")
_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_USER = re.compile(r"[A-Za-z0-9._@+-]+")
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>[0-3][0-9])\$[./A-Za-z0-9]{53}")
_ARGON2ID = re.compile(
    r"\$argon2id\$v=19\$m=(?P<memory>[1-9][0-9]{0,9}),t=(?P<time>[1-9][0-9]{0,9}),p=(?P<threads>[1-9][0-9]{0,2})"
    r"\$(?P<salt>[A-Za-z0-9+/]+)\$(?P<key>[A-Za-z0-9+/]+)"
)
_SECRET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# A placeholder of this program's own, which Caddy never sees.
SECRET = re.compile(r"\{secret\.([^{}]*)\}")

_HASH_ADVICE = (
    "Give users by names, each with what `docker run --rm -it caddy:2.11.4 caddy hash-password` prints; where"
    " the relay runs, so does `docker exec -it caddy caddy hash-password`."
)


def _header_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        reject(
            f"{name!r} is no name of a header", "Use letters, digits, '-' and '_', such as X-Frame-Options."
        )
    return name


def _header_value(value: str | None) -> str | None:
    """Check that ``value`` can stand in the Caddyfile as one quoted token."""
    if value is None:
        return None
    if not value.isprintable():
        reject("has a line break or another control character", "Give one line of text.")
    # parse.go in v2.11.4 takes a brace alone for one of the Caddyfile's own, even in quotation marks.
    if value in {"{", "}"}:
        reject(f"{value!r} is a brace alone", "Put something beside it.")
    if "{$" in value:
        reject(
            "has an environment variable of Caddy's container, where none of yours is set",
            "Write its value, or {secret.NAME} and the value in siteSecrets.",
        )
    if value.endswith("\\") or ("`" in value and ("\\" in value or '"' in value)):
        reject(
            f"{value!r} cannot be quoted in a Caddyfile",
            "Leave out a '\\' at the end, and '`' beside '\\' or '\"'.",
        )
    return value


def _names_once(headers: dict[str, str | None]) -> dict[str, str | None]:
    seen: set[str] = set()
    for name in headers:
        if name.lower() in seen:
            reject(f"has {name} twice", "Give each header once; small and capital letters are the same.")
        seen.add(name.lower())
    return headers


_Headers = Annotated[
    dict[
        Annotated[str, AfterValidator(_header_name)],
        # YAML has numbers where headers have text
        Annotated[str | None, Field(coerce_numbers_to_str=True), AfterValidator(_header_value)],
    ],
    AfterValidator(_names_once),
]


def _user(name: str) -> str:
    if not _USER.fullmatch(name):
        reject(f"{name!r} is no name of a user", "Use letters, digits, '.', '_', '@', '+' and '-'.")
    return name


def _password_hash(value: Any) -> Any:
    """Check a hash as Caddy's basic_auth takes it (modules/caddyhttp/caddyauth, v2.11.9).

    No message repeats the value, which may be the password itself.
    """
    found = _BCRYPT.fullmatch(value) if isinstance(value, str) else None
    if found:
        # Ten is OWASP's least; a guess at cost 20 takes Caddy a minute, and so does each right password.
        if not 10 <= int(found["cost"]) <= 19:  # noqa: PLR2004
            reject(
                f"is a bcrypt hash of cost {int(found['cost'])}", "Make one of cost 10 to 19; Caddy's is 14."
            )
        return value
    found = _ARGON2ID.fullmatch(value) if isinstance(value, str) else None
    if found is None or not (_is_base64(found["salt"]) and _is_base64(found["key"])):
        reject("is not the hash of a password as Caddy takes it (bcrypt, argon2id)", _HASH_ADVICE)
    # Each try takes the memory; Caddy's container has 512 MiB by default, and its own are 46.
    if int(found["memory"]) > 128 * 1024 or int(found["time"]) > 100 or int(found["threads"]) > 255:  # noqa: PLR2004
        reject("is an argon2id hash that costs Caddy too much", "Keep to m=131072, t=100 and p=255 at most.")
    return value


def _is_base64(text: str) -> bool:
    """Tell whether ``text`` is standard base64 without padding, and the only way to write its bytes."""
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False
    return base64.b64encode(content).decode().rstrip("=") == text


def _group(what: str, mend: str) -> BeforeValidator:
    """Refuse what is no group without repeating it, as pydantic would."""

    def check(value: Any) -> Any:
        if not isinstance(value, Mapping):
            reject(what, mend)
        return value

    return BeforeValidator(check)


def _secret_name(name: str) -> str:
    if not _SECRET_NAME.fullmatch(name):
        reject(f"{name!r} is no name of a secret", "Use letters, digits, '-' and '_', the first a letter.")
    return name


def _secret_text(value: Any) -> Any:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    # Headers hold nothing else, and Caddy would put it in unseen.
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        reject(
            "is not one line of text",
            "Give a text without line breaks: pulumi config set --secret --path derp-relays:siteSecrets.NAME",
        )
    return value


SiteSecrets = Annotated[
    dict[
        Annotated[str, AfterValidator(_secret_name)],
        Annotated[SecretStr, BeforeValidator(_secret_text)],
    ],
    _group(
        "is not a group of secrets",
        "Give each by its name: pulumi config set --secret --path derp-relays:siteSecrets.NAME",
    ),
]


class Health(Group):
    """Give the health check as a group, such as {path: /healthz}."""

    path: Annotated[str, Field(description="Give the path to ask for, such as /healthz.")]
    interval: Annotated[str, Field(description="Give the time between two checks, such as 30s.")] = "30s"
    timeout: Annotated[str, Field(description="Give how long to wait for the answer, such as 5s.")] = "5s"
    status: Annotated[
        str, Field(description="Give the status to expect, such as 200 or 2xx.", coerce_numbers_to_str=True)
    ] = "2xx"

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if not _HEALTH_PATH.fullmatch(value):
            reject(f"{value!r} is no path", "Give one such as /healthz.")
        return value

    @field_validator("interval", "timeout")
    @classmethod
    def _duration(cls, value: str) -> str:
        if not DURATION.fullmatch(value):
            reject(f"{value!r} is no length of time", "Give a number and s, m, h or d, such as 30s.")
        return value

    @field_validator("status")
    @classmethod
    def _is_status(cls, value: str) -> str:
        if not _STATUS.fullmatch(value):
            reject(f"{value!r} is no status", "Give one such as 200, or 2xx for all from 200 to 299.")
        return value


def _trusted(value: Any) -> Any:
    """Read the PEM file that ``value`` names, as certificates in base64."""
    if not isinstance(value, str):
        return value
    return tuple(
        base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        for certificate in certificates_in(folder_here(value))
    )


class UpstreamTls(Group):
    """Give TLS with the upstream as a group, such as {trust: authority.pem}."""

    server_name: Annotated[
        str | None,
        Field(description="Give the name in the upstream's certificate, where it is not the upstream's own."),
    ] = None
    # The certificates themselves, DER in base64.
    trust: Annotated[
        tuple[str, ...],
        BeforeValidator(_trusted),
        Field(description="Give the PEM file of the authority that signs the upstream's certificate."),
    ] = ()
    verify: Annotated[bool, Field(description="Use true; false takes any certificate, whoever shows it.")] = (
        True
    )

    @field_validator("server_name")
    @classmethod
    def _server_name(cls, value: str | None) -> str | None:
        if value is not None and not _UPSTREAM_HOST.fullmatch(value):
            reject(f"{value!r} is no name of a server", "Give it as its certificate has it.")
        return value

    @model_validator(mode="after")
    def _verifies_what_it_trusts(self) -> Self:
        if self.trust and not self.verify:
            reject("has trust, but verify is false", "Leave verify out, so that it is checked.")
        return self


class Upstream(Group):
    """Where a site's requests go: ``address`` for Caddy's ``reverse_proxy``, such as ``blog:8080``."""

    address: str
    health: Health | None = None
    tls: UpstreamTls | None = None
    request_headers: Mapping[str, str | None] = {}


class Folder(Group):
    """A site's files: ``path`` in Caddy's volume, or ``source`` on the operator's machine."""

    path: str | None = None
    source: str | None = None
    listing: bool = False
    fallback: str | None = None


class Redirect(Group):
    """A site that sends visitors on to ``url``, which has no trailing slash, with ``status``."""

    url: str
    status: int = 301


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


# Which options are of use with one kind of site alone.
_OPTIONS = {
    "health": "upstream",
    "tls": "upstream",
    "request_headers": "upstream",
    "listing": "folder",
    "fallback": "folder",
    "redirect_status": "redirect",
}


class Site(Group):
    """Give a site as names and one of upstream, folder, redirect and snippet."""

    names: Annotated[
        list[str], Field(min_length=1, description="Give a list of host names, such as [blog.example.com].")
    ]
    upstream: Annotated[
        str | None,
        Field(description="Give a container and port, such as blog:8080, or a URL without a path."),
    ] = None
    health: Annotated[Health | None, Field(description="Give a group, such as {path: /healthz}.")] = None
    tls: Annotated[UpstreamTls | None, Field(description="Give a group, such as {trust: authority.pem}.")] = (
        None
    )
    request_headers: Annotated[
        _Headers,
        Field(
            default_factory=dict,
            description="Give values by names, such as {X-Token: '{secret.token}'}; null takes one out.",
        ),
    ]
    folder: Annotated[
        str | None,
        Field(description="Give a folder of this machine to publish, or /srv/NAME for one in the volume."),
    ] = None
    listing: Annotated[
        bool, Field(description="Use true to list what is in folders that have no index.html.")
    ] = False
    fallback: Annotated[
        str | None,
        Field(description="Give the file that answers where there is none, such as /index.html."),
    ] = None
    redirect: Annotated[str | None, Field(description="Give a URL such as https://www.example.com.")] = None
    redirect_status: Annotated[
        Literal[301, 302, 307, 308] | None, Field(description="Use 301, 302, 307 or 308; 301 is the default.")
    ] = None
    snippet: Annotated[
        str | None, Field(description="Give directives of a Caddyfile, as they stand in a site's block.")
    ] = None
    headers: Annotated[
        _Headers,
        Field(
            default_factory=dict,
            description="Give values by names, such as {X-Frame-Options: DENY}; null takes one out.",
        ),
    ]
    basic_auth: Annotated[
        dict[Annotated[str, AfterValidator(_user)], Annotated[str, BeforeValidator(_password_hash)]],
        _group("is not a group of users", _HASH_ADVICE),
        Field(default_factory=dict, description=_HASH_ADVICE),
    ]
    compress: Annotated[
        bool | None, Field(description="Use true or false; a folder is compressed where it is left out.")
    ] = None

    @field_validator("names")
    @classmethod
    def _host_names(cls, value: list[str]) -> list[str]:
        return [host_name(name) for name in value]

    @field_validator("upstream")
    @classmethod
    def _upstream_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        advice = "Give a container and port, such as blog:8080, or a URL such as https://10.0.0.5:8443."
        url = urlsplit(value if "://" in value else f"http://{value}")
        if url.scheme not in {"http", "https"}:
            reject(f"{value!r} is neither http nor https", advice)
        if url.path not in {"", "/"} or url.query or url.fragment:
            reject(f"{value!r} has a path", "Give the address alone; requests keep their own path.")
        try:
            port = url.port
        except ValueError:
            reject(f"{value!r} has a port that is none", advice)
        if port == 0:
            reject(f"{value!r} has a port that is none", advice)
        if url.scheme == "https" and port == 80:  # noqa: PLR2004 - HTTP's own, which Caddy refuses
            reject(f"{value!r} is HTTPS on HTTP's own port", "Leave https:// out, or give another port.")
        if "@" in url.netloc or not url.hostname or not _UPSTREAM_HOST.fullmatch(url.hostname):
            reject(f"{value!r} is no address", advice)
        if _is_loopback(url.hostname):
            reject(
                f"{value!r} is Caddy's own container",
                "What runs on the host itself is host.docker.internal with the port; a container, its name.",
            )
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        address = host if port is None else f"{host}:{port}"
        return f"https://{address}" if url.scheme == "https" else address

    @field_validator("folder")
    @classmethod
    def _folder_is_there(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.startswith("/srv/"):
            # '..' would lead to /data, where the keys are
            if not is_path_in_container(value):
                reject(f"{value!r} is no folder under /srv", "Use letters, digits, '.', '-', '_' and '/'.")
            if value.split("/")[2] == ".sites":
                reject(f"{value!r} is where the folders of sites are put", "Name another folder.")
            return value
        path = folder_here(value)
        if not path.is_dir():
            reject(f"{path} is no folder", "Make it, or name the folder with the site's files.")
        if PROJECT_FOLDER.is_relative_to(path):
            reject(
                f"{path} has this project in it, with its stacks", "Name a folder of the site's files alone."
            )
        return value

    @field_validator("fallback")
    @classmethod
    def _fallback_is_a_file(cls, value: str | None) -> str | None:
        if value is not None and (not is_path_in_container(value) or value.endswith("/")):
            reject(f"{value!r} is no path of a file", "Give one from the site's folder, such as /index.html.")
        return value

    @field_validator("redirect")
    @classmethod
    def _redirect_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "?" in value or "#" in value:
            reject(
                f"{value!r} has more than a path", "Leave '?' and '#' out: the request's path is appended."
            )
        try:
            good = _REDIRECT.fullmatch(value) and urlsplit(value).hostname and urlsplit(value).port != 0
        except ValueError:
            good = False
        if not good:
            reject(f"{value!r} is no URL to send visitors to", "Give one such as https://www.example.com.")
        return value.rstrip("/")

    @field_validator("snippet")
    @classmethod
    def _snippet(cls, value: str | None) -> str | None:
        return None if value is None else stays_in_its_block(value)

    @field_validator("basic_auth")
    @classmethod
    def _one_algorithm(cls, value: dict[str, str]) -> dict[str, str]:
        if len({hash_algorithm(each) for each in value.values()}) > 1:
            reject(
                "has hashes of bcrypt and of argon2id", "Make all of one kind: Caddy compares one at a time."
            )
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("upstream", "folder", "redirect") if getattr(self, kind) is not None]
        if len(kinds) > 1:
            reject(f"has {' and '.join(kinds)}", "Give one of them; a snippet may stand beside it.")
        if not kinds and self.snippet is None:
            reject("says nothing of what to serve", "Give one of upstream, folder, redirect and snippet.")
        for option, kind in _OPTIONS.items():
            if getattr(self, option) and kind not in kinds:
                reject(
                    f"has {Site.model_fields[option].alias}, but no {kind}", f"Leave it out, or give {kind}."
                )
        if self.tls is not None and not (self.upstream or "").startswith("https://"):
            reject(
                "has tls, but upstream is plain HTTP", "Write https:// before the upstream, or leave tls out."
            )
        return self

    @model_validator(mode="after")
    def _fallback_is_there(self) -> Self:
        source = getattr(self.serves, "source", None)
        if source is not None and self.fallback is not None:
            path = folder_here(source + self.fallback)
            if not path.is_file():
                reject(f"has the fallback {self.fallback}, but {path} is no file", "Name one that is there.")
        return self

    @property
    def serves(self) -> Upstream | Folder | Redirect | None:
        """What the site serves, as the one kind that it has; None for a snippet alone."""
        if self.upstream is not None:
            return Upstream(
                address=self.upstream, health=self.health, tls=self.tls, request_headers=self.request_headers
            )
        if self.redirect is not None:
            return Redirect(url=self.redirect, status=self.redirect_status or 301)
        if self.folder is None:
            return None
        in_volume = self.folder.startswith("/srv/")
        return Folder(
            path=self.folder if in_volume else None,
            source=None if in_volume else str(folder_here(self.folder)),
            listing=self.listing,
            fallback=self.fallback,
        )

    def secrets(self) -> Iterator[tuple[str, str]]:
        """Yield the names of secrets that the site uses, each after the option that has it."""
        for option, headers in (("requestHeaders", self.request_headers), ("headers", self.headers)):
            for name, value in headers.items():
                for secret in SECRET.findall(value or ""):
                    yield f"{option}.{name}", secret
        for secret in SECRET.findall(self.snippet or ""):
            yield "snippet", secret


def hash_algorithm(password_hash: str) -> Literal["bcrypt", "argon2id"]:
    """Return what made ``password_hash``, by the name that Caddy's ``basic_auth`` has for it."""
    return "argon2id" if password_hash.startswith("$argon2id$") else "bcrypt"
