"""One stack's SSH connection: the files that OpenSSH's client reads, and the commands that use them."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from settings.base import PROJECT_FOLDER
from ssh.keys import known_hosts_line, parse_public_key

_CONFIG = """\
# Written anew by every update. Only the host key in known_hosts beside it is taken.
HostKeyAlias {alias}
HostKeyAlgorithms {algorithms}
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
UpdateHostKeys no
CheckHostIP no
VerifyHostKeyDNS no

PreferredAuthentications publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
BatchMode yes
{identity}

ForwardAgent no
ForwardX11 no
ClearAllForwardings yes

ConnectTimeout 10
ServerAliveInterval 15
ServerAliveCountMax 3

# One connection carries all sessions: a provider opens dozens at once.
ControlMaster auto
ControlPath {control_path}
ControlPersist 120
"""


@dataclass(frozen=True)
class Connection:
    """How the server of ``stack`` is reached: by ``user`` at ``address`` (a name or a literal address).

    The files are the stack's, whatever the address: options that name them can
    stand in a state that other machines use. All paths among the options start
    from the project's folder, so ``ssh`` has to run there; ``run`` sees to that.
    """

    stack: str
    user: str
    address: str
    port: int = 22

    @property
    def folder(self) -> Path:
        """Where the stack's files are: a folder that only this user reads and git does not see."""
        return PROJECT_FOLDER / self._relative_folder

    @property
    def _relative_folder(self) -> str:
        return f".relayctl/ssh/{self.stack}"

    @property
    def alias(self) -> str:
        """The name that the host key is pinned to, whatever the address."""
        return f"derp-relays-{self.stack}"

    @property
    def docker_host(self) -> str:
        """The server's Docker engine as ``DOCKER_HOST`` takes it, such as ``ssh://root@[2001:db8::1]:2222``."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        port = "" if self.port == 22 else f":{self.port}"  # noqa: PLR2004 - SSH's own, which ssh:// implies
        return f"ssh://{self.user}@{address}{port}"

    def write(self, host_key: str, deploy_key: str | None, key_file: str | None) -> None:
        """Write ``config``, ``known_hosts`` and ``deploy_key``, each whole or not at all, if it changed.

        ``host_key`` is the server's public key. ``deploy_key`` is a private key to
        log in with; ``key_file`` names one that is there (its agent is asked too, if
        it has a passphrase). Without either, ssh offers what its agent and the
        user's default files have. Raises ``ValueError`` if ``host_key`` is no public
        key, or ``key_file`` cannot stand in ssh_config.
        """
        for folder in reversed([self.folder, *self.folder.parents[:2]]):
            folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.folder.parent / ".gitignore", "*\n", 0o600)
        _write(self.folder / "known_hosts", known_hosts_line(self.alias, host_key), 0o600)
        key_path = self.folder / "deploy_key"
        if deploy_key is None:
            key_path.unlink(missing_ok=True)
        else:
            _write(key_path, deploy_key.strip() + "\n", 0o600)
        identity = "# keys: whatever the agent and the default files have"
        if deploy_key is not None:
            identity = (
                f"IdentitiesOnly yes\nIdentityAgent none\nIdentityFile {self._relative_folder}/deploy_key"
            )
        elif key_file is not None:
            identity = f"IdentitiesOnly yes\nIdentityFile {_quoted(key_file)}"
        config = _CONFIG.format(
            alias=self.alias,
            algorithms=_signature_algorithms(host_key),
            folder=self._relative_folder,
            identity=identity,
            control_path=_control_path(self.stack, parse_public_key(host_key), deploy_key, key_file),
        )
        _write(self.folder / "config", config, 0o600)

    def options(self) -> list[str]:
        """Return ssh's options, the same on every machine: for the Docker provider's ``ssh_opts``."""
        return ["-F", f"{self._relative_folder}/config"]

    def command(self, *remote: str) -> list[str]:
        """Return the whole command that runs ``remote`` on the server, each word as it stands here.

        Without ``remote`` it is a login. It has to be run in the project's folder.
        """
        words = [shlex.join(remote)] if remote else []
        return ["ssh", *self.options(), "-l", self.user, "-p", str(self.port), "--", self.address, *words]

    def run(
        self, *remote: str, timeout: float | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``remote`` on the server; the exit code is the caller's to judge, and 255 is ssh's own.

        Raises ``subprocess.TimeoutExpired`` after ``timeout`` seconds, ``FileNotFoundError`` without ssh.
        """
        return subprocess.run(
            self.command(*remote),
            cwd=PROJECT_FOLDER,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def close(self) -> None:
        """Let no further session share the connection that is there, which ends with its last one."""
        subprocess.run(
            ["ssh", *self.options(), "-O", "stop", "-l", self.user, "-p", str(self.port), "--", self.address],
            cwd=PROJECT_FOLDER,
            capture_output=True,
            timeout=10,
            check=False,
        )


def _control_path(*held_to: str | None) -> str:
    """Return where sessions find the connection that they share: another one for other keys.

    A connection that was held to another host key is not used. OpenSSH's limit
    is 107 bytes (sun_path in unix(7)), of which 17 are a suffix while it begins
    to listen (muxserver_listen in OpenSSH's mux.c); %C, which tells addresses and
    users apart, is 40. So the stack's name, which may be long, does not stand here.
    """
    digest = hashlib.sha256("\n".join(map(str, held_to)).encode()).hexdigest()[:12]
    return f".relayctl/ssh/{digest}-%C"


def _signature_algorithms(host_key: str) -> str:
    """Return the only algorithms that the server may show ``host_key`` with."""
    kind = parse_public_key(host_key).split(" ")[0]
    # RFC 8332: RSA keys sign with SHA-2; the type's own name means SHA-1.
    return "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind


def _quoted(path: str) -> str:
    """Return ``path`` as an argument in ssh_config(5), where percent signs begin tokens."""
    if re.search(r'["\n\r]|\$\{', path):
        raise ValueError(f"{path!r}: ssh takes no quotes, line ends or ${{ in the name of a key's file")
    return '"' + path.replace("%", "%%") + '"'


def _write(path: Path, text: str, mode: int) -> None:
    """Write the file in one step, so that no ssh that starts meanwhile reads half of it."""
    try:
        if path.read_text() == text and path.stat().st_mode & 0o777 == mode:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
