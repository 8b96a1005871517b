"""Keys are those of OpenSSH: read by ssh-keygen and by another library, and what is none is told."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from ssh.keys import known_hosts_line, new_private_key, parse_public_key, public_key
from tests.requirements import require


def public(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


# lengths of comments around the eight bytes that the secret part is filled up to
@pytest.mark.parametrize("comment", ["", *("x" * length for length in range(1, 9)), "Zürich"])
def test_new_key_is_one_of_openssh(comment: str, tmp_path: Path) -> None:
    private = new_private_key(comment)
    assert isinstance(load_ssh_private_key(private.encode(), None), Ed25519PrivateKey)
    require(shutil.which("ssh-keygen"), "ssh-keygen is missing", "apt-get install openssh-client")
    path = tmp_path / "key"
    path.write_text(private)
    path.chmod(0o600)
    told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == f"{public_key(private)} {comment}".strip()


def test_key_with_a_passphrase_is_told(tmp_path: Path) -> None:
    require(shutil.which("ssh-keygen"), "ssh-keygen is missing", "apt-get install openssh-client")
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path], check=True)
    with pytest.raises(ValueError, match="without a passphrase"):
        public_key(path.read_text())


def test_each_new_key_is_another() -> None:
    assert len({public_key(new_private_key("same")) for _ in range(8)}) == 8


def test_public_half_is_told_of_openssh_keys_alone() -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for text in (pem.decode(), "", new_private_key("x")[:-60]):
        with pytest.raises(ValueError, match="no private key of OpenSSH without a passphrase"):
            public_key(text)


@pytest.mark.parametrize(
    "key",
    [
        public_key(new_private_key("")),
        public(rsa.generate_private_key(65537, 2048)),
        public(ec.generate_private_key(ec.SECP256R1())),
        public(ec.generate_private_key(ec.SECP384R1())),
        public(ec.generate_private_key(ec.SECP521R1())),
    ],
    ids=lambda key: str(key).partition(" ")[0],
)
def test_comment_and_blanks_are_left_out(key: str) -> None:
    assert parse_public_key(f"  {key} me@laptop with words\n") == key
    assert parse_public_key(key) == key


def test_security_keys_are_taken() -> None:
    # https://github.com/openssh/openssh-portable/blob/V_9_9_P1/PROTOCOL.u2f: type, key, application
    kind = b"sk-ssh-ed25519@openssh.com"
    raw = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, raw, b"ssh:"))
    key = f"{kind.decode()} {base64.b64encode(blob).decode()}"
    assert parse_public_key(f"{key} yubikey") == key


ED25519 = public_key(new_private_key(""))
OTHER_TYPE = ED25519.replace("ssh-ed25519", "ssh-rsa")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "begins with ''"),
        ("AAAAC3NzaC1lZDI1NTE5", "begins with 'AAAAC3NzaC1lZDI1NTE5'"),
        ("ssh-ed25519", "no key of that type"),
        ("ssh-ed25519 !!!", "no base64"),
        (ED25519[:-3], "no base64, or is cut short"),
        (ED25519[:-4], "no whole key"),
        (OTHER_TYPE, "no key of that type"),
        (f"{ED25519}\n{ED25519}", "more than one line"),
        (new_private_key("x"), "private key; the public one"),
        (f'command="ls" {ED25519}', "begins with 'command="),
        (f"derp.example.com {ED25519}", "begins with 'derp.example.com'"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "begins with 'ssh-dss'"),
        (public(rsa.generate_private_key(65537, 1024)), "1024 bits is too weak"),  # noqa: S505 - that is it
    ],
    # The keys are others in each process, and workers have to agree on the tests' names.
    ids=range(13),
)
def test_what_is_no_public_key_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_public_key(text)


def test_known_hosts_line_pins_an_alias() -> None:
    assert known_hosts_line("derp-relays-eu", f"{ED25519} comment") == f"derp-relays-eu {ED25519}\n"
    with pytest.raises(ValueError, match="begins with"):
        known_hosts_line("derp-relays-eu", "no key")
