"""Bring what the engine and relay lanes need: ``python -m tests.prepare``, which ``make test`` runs first.

What cannot be brought is told; the tests that miss it then skip, and say so
again. Where ``DERP_RELAYS_CI`` is ``1`` it ends the run instead.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from images.recipe import host_goarch
from relayctl.prerequisites import docker_engine, go_programs, image_contexts, provider_plugins, pulumi_cli
from relayctl.prerequisites.errors import PrerequisiteError
from relayctl.prerequisites.packages import install
from relayctl.prerequisites.progress import Progress
from sandbox.machines.cloud_init_package import package_folder

# Programs that tests run, and Debian's packages that have them.
_PROGRAMS = {
    "curl": "curl",
    "gpg": "gpg",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "shellcheck": "shellcheck",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sysctl": "procps",
}
# Where it is not root's PATH that has the programs for root.
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def main() -> None:
    """Bring everything, one after the other."""
    progress = Progress()
    failed = False
    for bring in (_programs, _cloud_init, _engine, _pulumi, _built):
        try:
            bring(progress)
        except PrerequisiteError as error:
            progress.warn(str(error))
            failed = True
    if failed and os.environ.get("DERP_RELAYS_CI") == "1":
        sys.exit(1)


def _programs(progress: Progress) -> None:
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program, path=_PATH) is None}
    if "openssh-server" in missing and Path("/run/systemd/system").is_dir():
        missing.remove("openssh-server")
        progress.warn(
            "openssh-server is not installed, so tests that need sshd are skipped. Installing it would open"
            " SSH on this machine; if you want that: sudo apt-get install openssh-server"
        )
    if missing:
        install(sorted(missing), progress)


def _cloud_init(progress: Progress) -> None:
    try:
        package_folder()
    except PrerequisiteError:
        # it is told from the package lists, which a new machine has not
        install(["python3"], progress)
        package_folder()


def _engine(progress: Progress) -> None:
    engine = docker_engine.ensure(progress)
    progress.say(f"Docker Engine {engine.version} ({engine.origin})")


def _pulumi(progress: Progress) -> None:
    cli = pulumi_cli.bring(progress)
    progress.say(f"Pulumi {cli.version} ({cli.origin})")
    for name in ("docker", "hcloud"):
        plugin = provider_plugins.find(name, cli, progress)
        provider = plugin.origin if plugin.installed else f"this project's stand-in, since {plugin.reason}"
        progress.say(f"{name} provider {plugin.version}: {provider}")


def _built(progress: Progress) -> None:
    goarch = host_goarch()
    steps: list[Callable[[], object]] = [
        lambda: image_contexts.fill("derper", progress, goarch=goarch),
        lambda: image_contexts.fill("caddy", progress, goarch=goarch),
        lambda: go_programs.build("derpprobe", progress),
        lambda: go_programs.build("sessions", progress),
        lambda: go_programs.build("http3", progress),
        lambda: go_programs.build("derp-map-types", progress),
        lambda: go_programs.build("promtool", progress),
        lambda: go_programs.build("headscale", progress),
        lambda: go_programs.build("tailscale", progress),
        lambda: go_programs.build("tailscaled", progress),
    ]
    for step in steps:
        step()


if __name__ == "__main__":
    main()
