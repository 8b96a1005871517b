"""Keys as OpenSSH writes them."""

from __future__ import annotations

import base64
import binascii
import secrets
import struct

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

# What OpenSSH's sshd takes without being told to (PubkeyAcceptedAlgorithms in sshd_config(5)).
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
# RequiredRSASize in sshd_config(5) is 1024; NIST SP 800-57 part 1, table 2, has 2048 as the least since 2014.
_LEAST_RSA_BITS = 2048
# As ssh-keygen wraps the text: https://github.com/openssh/openssh-portable/blob/V_9_9_P1/sshkey.c
_LINE = 70


def new_private_key(comment: str) -> str:
    """Return a new ed25519 key in OpenSSH's own format, without a passphrase, with a newline at its end.

    ``comment`` is what ``ssh-keygen -l`` shows of it. It is written here since
    ``cryptography`` writes none
    (https://github.com/openssh/openssh-portable/blob/V_9_9_P1/PROTOCOL.key).
    """
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    check = secrets.token_bytes(4)
    secret = (
        check + check + b"".join(map(_string, (b"ssh-ed25519", public, private + public, comment.encode())))
    )
    secret += bytes(range(1, 1 + -len(secret) % 8))
    blob = b"openssh-key-v1\0" + b"".join(map(_string, (b"none", b"none", b"")))
    blob += struct.pack(">I", 1) + _string(_string(b"ssh-ed25519") + _string(public)) + _string(secret)
    text = base64.b64encode(blob).decode()
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""])


def _string(value: bytes) -> bytes:
    """Encode as RFC 4251 section 5 has a string."""
    return struct.pack(">I", len(value)) + value


def public_key(private: str) -> str:
    """Return the public half of ``private``: type and base64, without a comment.

    Raises ``ValueError`` if it is no private key in OpenSSH's format, or one with a passphrase.
    """
    try:
        key = load_ssh_private_key(private.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"no private key of OpenSSH without a passphrase: {error}") from error
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def parse_public_key(text: str) -> str:
    """Return the public key in ``text`` as type and base64, without its comment.

    Raises ``ValueError`` that says what ``text`` is instead: several lines, a
    private key, a type that OpenSSH no longer takes, an RSA key under 2048 bits,
    or something cut short.
    """
    line = text.strip()
    if "PRIVATE KEY" in line:
        raise ValueError("it is a private key; the public one is in the file whose name ends with .pub")
    if "\n" in line:
        raise ValueError("it has more than one line; a public key is one line")
    kind, _, rest = line.partition(" ")
    if kind not in KEY_TYPES:
        raise ValueError(f"it begins with {kind[:40]!r}, not with the type of a key, such as ssh-ed25519")
    encoded = rest.split(" ", 1)[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"what stands after {kind} is no base64, or is cut short") from error
    inner = _string(kind.encode())
    if not blob.startswith(inner):
        raise ValueError(f"what stands after {kind} is no key of that type")
    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"what stands after {kind} is no whole key of that type") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise ValueError(
            f"an RSA key of {key.key_size} bits is too weak; make one with ssh-keygen -t ed25519"
        )
    return f"{kind} {encoded}"


def known_hosts_line(alias: str, public_key: str) -> str:
    """Return the line of a ``known_hosts`` file that pins ``public_key`` to ``alias``, with its newline.

    Raises ``ValueError`` as ``parse_public_key`` does.
    """
    return f"{alias} {parse_public_key(public_key)}\n"
