"""Process 1 of a server: runs cloud-init's stages and the services in their order, and is orphans' parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from sandbox.machines.guest.services import SERVICES, ServiceError, log
from sandbox.machines.guest.systemctl import enabled

# the only line that is written to standard output, which whoever booted the server reads
SSH_READY = "ssh ready"

_CLOUD_INIT = "/usr/bin/cloud-init"


def main() -> None:
    """Boot, and then wait for ever for processes that end."""
    # On Debian systemd makes sshd's folder at every boot.
    for folder in ("/run/lock", "/run/sshd", "/run/systemd/system", "/run/cloud-init"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    # What cloud-init's systemd generator leaves for its status where it finds a cloud.
    Path("/run/cloud-init/enabled").touch()
    socket.sethostname(Path("/etc/hostname").read_text().strip())
    subprocess.run(["/usr/sbin/ip", "link", "set", "lo", "up"], check=True)
    # Blocked before there is a child, so that none ends unseen; the children must have it as usual.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        _boot()
        os._exit(0)
    os.close(sys.stdout.fileno())
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _boot() -> None:
    _cloud_init("init", "--local")
    _cloud_init("init")
    if not list(Path("/etc/ssh").glob("ssh_host_*_key")):
        subprocess.run(["/usr/bin/ssh-keygen", "-A"], stdout=sys.stderr, check=False)
    try:
        SERVICES["ssh"].start()
        sys.stdout.write(f"{SSH_READY}\n")
    except ServiceError as error:
        log(str(error))
        sys.stdout.write(f"{' '.join(str(error).split())}\n")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os.close(sys.stdout.fileno())
    # A server whose disk has Docker on it from an earlier boot starts it beside cloud-init's last stages.
    started = _installed() and _start_docker()
    _cloud_init("modules", "--mode=config")
    _cloud_init("modules", "--mode=final")
    if not started:
        _start_docker()


def _cloud_init(*arguments: str) -> None:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [_CLOUD_INIT, *arguments], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment, check=False
    )
    if done.returncode:
        log(f"cloud-init {' '.join(arguments)} ended with exit code {done.returncode}")


def _installed() -> bool:
    # The engine makes it at its first start.
    return Path("/var/lib/docker/containers").is_dir()


def _start_docker() -> bool:
    if not enabled("docker"):
        return False
    try:
        SERVICES["docker"].start()
    except ServiceError as error:
        log(str(error))
        sys.stderr.write(f"{error}\n")
    return True


if __name__ == "__main__":
    main()
