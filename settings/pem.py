"""Certificates and keys in PEM files of this machine."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from settings.problems import reject


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Return the certificates in the file ``path``; reject one that has none, or a bad one."""
    content = _content(path)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        reject(
            f"names {path}, which is no PEM file of certificates",
            "Give one that begins with -----BEGIN CERTIFICATE-----.",
        )


def private_key_in(path: Path) -> PrivateKeyTypes:
    """Return the private key in the file ``path``; reject a file that has none, or one with a password."""
    content = _content(path)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        reject(
            f"names {path}, whose key is encrypted with a password that Caddy does not have",
            "Write it without one: openssl pkey -in OLD -out NEW.",
        )
    except (ValueError, UnsupportedAlgorithm):
        reject(
            f"names {path}, which is no PEM file of a private key",
            "Give one that begins with -----BEGIN PRIVATE KEY-----.",
        )


def _content(path: Path) -> bytes:
    if not path.is_file():
        reject(f"names {path}, which is no file", "Put it there, or name the one that is.")
    try:
        return path.read_bytes()
    except OSError as error:
        reject(f"names {path}, which cannot be read: {error.strerror}", "See to its permissions.")
