"""A copy of the project with a stack of the test's own, and the command line to run it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from relayctl.prerequisites import provider_plugins, pulumi_cli
from relayctl.prerequisites.progress import Progress
from settings import PROJECT
from settings.base import PROJECT_FOLDER
from tests.docker_host import DockerHost

STACK = "test"


@dataclass
class Checkout:
    """A copy of the working tree at ``folder``, with state of its own.

    It is used on a host of the test's own, with the engine there, or on this machine.
    """

    folder: Path
    used_on: DockerHost | None
    cli: pulumi_cli.PulumiCli
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, host: DockerHost | None) -> Checkout:
        """Copy what git knows of, or would add; bring Pulumi, which is cached, so that the rest is quick."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT_FOLDER,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        for name in filter(None, listed):
            if (PROJECT_FOLDER / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT_FOLDER / name, folder / name)
        # Pulumi.yaml names it, and official language hosts use it.
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "state").mkdir()
        environment = {
            "PULUMI_BACKEND_URL": f"file://{folder}/state",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PYTHONPATH": str(folder),
            "COLUMNS": "200",
        }
        if host is not None:
            environment["DOCKER_HOST"] = host.address
        return cls(folder, host, pulumi_cli.bring(Progress()), environment)

    @property
    def host(self) -> DockerHost:
        """The host of the test's own that it is used on."""
        assert self.used_on is not None
        return self.used_on

    def write_stack(self, values: Mapping[str, Any], name: str = STACK) -> None:
        """Write the stack's settings, by their keys without the project's name.

        Kept are Pulumi's own lines and what relayctl put there: keys, as secrets.
        """
        path = self.folder / "stacks" / f"Pulumi.{name}.yaml"
        kept = yaml.safe_load(path.read_text()) if path.exists() else {}
        secrets = {
            key: value
            for key, value in kept.get("config", {}).items()
            if isinstance(value, dict) and list(value) == ["secure"]
        }
        config: dict[str, Any] = {"pulumi:disable-default-providers": ["docker", "hcloud"], **secrets}
        config |= {f"{PROJECT}:{key}": value for key, value in values.items()}
        path.write_text(yaml.safe_dump({**kept, "config": config}))

    def relayctl(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the command line where the checkout is used; the exit code is the caller's to judge."""
        command = [sys.executable, "-m", "relayctl", *arguments]
        if self.used_on is not None:
            return self.used_on.run(command, timeout=timeout, env=self.environment, cwd=self.folder)
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **self.environment},
            cwd=self.folder,
            check=False,
        )

    @contextlib.contextmanager
    def pulumi(self) -> Iterator[Pulumi]:
        """Yield Pulumi's own command line with the Docker provider that can be had."""
        progress = Progress()
        plugins = [provider_plugins.find(name, self.cli, progress) for name in ("docker", "hcloud")]
        # Stand-ins are started with this process's own environment, and Pulumi's plugins with Pulumi's.
        with (
            mock.patch.dict(os.environ, self.environment),
            provider_plugins.attached(plugins, progress, self.folder) as attached,
        ):
            yield Pulumi(self, {**self.environment, **self.cli.environment, **attached})


def _is_secret(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"secure"}


@dataclass(frozen=True)
class Pulumi:
    """The command line ``pulumi`` for a checkout."""

    checkout: Checkout
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run ``pulumi ARGUMENTS``; the exit code is the caller's to judge."""
        return subprocess.run(
            [str(self.checkout.cli.command), *arguments, "--non-interactive", "--color=never"],
            cwd=self.checkout.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
