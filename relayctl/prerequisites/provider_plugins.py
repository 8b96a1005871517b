"""Finds or downloads a Pulumi provider plugin; where neither can be, attaches a stand-in."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from images.recipe import ROOT
from relayctl.prerequisites.cache import RememberedFailure
from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import CommandFailedError, PrerequisiteError, last_lines
from relayctl.prerequisites.registry import site_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relayctl.prerequisites.progress import Progress
    from relayctl.prerequisites.pulumi_cli import PulumiCli

# where `pulumi plugin install` downloads from, in its order
_DOWNLOAD_SITES = ("https://github.com", "https://get.pulumi.com")
_DOWNLOAD_TIMEOUT = 600.0
# Python, gRPC and the provider's schema take two seconds to load
_STAND_IN_START = 60.0
_STAND_IN_STOP = 10.0


@dataclass(frozen=True)
class ProviderPlugin:
    """A provider plugin of a name and version such as ``docker`` and ``5.2.0``.

    ``installed`` tells whether Pulumi finds it; if not, ``reason`` says why it
    could not be downloaded. ``origin`` says where it was found, for a person.
    """

    name: str
    version: str
    installed: bool
    origin: str = ""
    reason: str = ""


def find(name: str, cli: PulumiCli, progress: Progress) -> ProviderPlugin:
    """Return the plugin in the version of the installed Python package ``pulumi_<name>``.

    One that is not installed is downloaded with ``pulumi plugin install``. A
    download that failed is not tried again for an hour, so that the next run is
    quick; ``forget_failure`` has it tried at once.
    """
    version = importlib.metadata.version(f"pulumi-{name}")
    binary = f"pulumi-resource-{name}"
    folder = pulumi_home() / "plugins" / f"resource-{name}-v{version}"
    if _is_installed(folder, binary):
        return ProviderPlugin(name, version, installed=True, origin=str(folder))
    # the engine takes one on PATH, as pulumi's own CI does, unless it is told not to
    found = shutil.which(binary, path=cli.environment["PATH"])
    if found and not _is_true(os.environ.get("PULUMI_IGNORE_AMBIENT_PLUGINS")):
        return ProviderPlugin(name, version, installed=True, origin=f"found at {found}, whatever its version")

    failure = RememberedFailure(f"plugin-{name}-{version}")
    reason = failure.reason()
    if reason is None:
        reason = _download(name, version, cli, progress)
        if reason is None:
            failure.forget()
            return ProviderPlugin(name, version, installed=True, origin="downloaded")
        failure.remember(reason)
    return ProviderPlugin(name, version, installed=False, reason=reason)


def forget_failure(name: str) -> None:
    """Have the next ``find`` try the download again, however lately it failed."""
    RememberedFailure(f"plugin-{name}-{importlib.metadata.version(f'pulumi-{name}')}").forget()


def pulumi_home() -> Path:
    """Return Pulumi's folder for plugins and credentials: ``$PULUMI_HOME``, else ``~/.pulumi``."""
    return Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")


@contextlib.contextmanager
def attached(
    plugins: Sequence[ProviderPlugin], progress: Progress, project: Path = ROOT
) -> Iterator[dict[str, str]]:
    """Yield what must be in the environment of Pulumi for the length of the block.

    Pulumi is kept from looking for plugins itself: at every call it would ask its
    site for those of all installed SDKs, which takes seconds where that is out of
    reach. For a plugin that is not installed this project's stand-in is started,
    announced, named in ``PULUMI_DEBUG_PROVIDERS``, and ended with the block; it
    also ends by itself if this process is killed. It runs in the folder of the
    ``project``, as plugins that Pulumi starts do: ssh's options have paths in it.

    Raises ``PrerequisiteError`` if there is no stand-in of that name or it does
    not start.
    """
    named = [item for item in os.environ.get("PULUMI_DEBUG_PROVIDERS", "").split(",") if item]
    with contextlib.ExitStack() as running:
        for plugin in plugins:
            if plugin.installed:
                continue
            port = running.enter_context(_stand_in(plugin, progress, project))
            named = [item for item in named if not item.startswith(f"{plugin.name}:")]
            named.append(f"{plugin.name}:{port}")
        environment = {"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true"}
        yield environment | ({"PULUMI_DEBUG_PROVIDERS": ",".join(named)} if named else {})


@contextlib.contextmanager
def _stand_in(plugin: ProviderPlugin, progress: Progress, project: Path) -> Iterator[int]:
    module = f"sandbox.{plugin.name}_provider"
    if not (ROOT / module.replace(".", "/")).is_dir():
        raise PrerequisiteError(
            f"Pulumi's {plugin.name} provider {plugin.version} cannot be downloaded ({plugin.reason}),"
            " and it has no stand-in",
            f"pulumi plugin install resource {plugin.name} {plugin.version}   (where the network allows it)",
        )
    progress.warn(
        f"STAND-IN IN USE: Pulumi's {plugin.name} provider {plugin.version} cannot be downloaded"
        f" ({plugin.reason}). This project's own stand-in for it is used instead; it is meant for trying"
        " things, not for servers that others rely on."
    )
    with _running(module, progress, project) as port:
        yield port


@contextlib.contextmanager
def _running(module: str, progress: Progress, project: Path) -> Iterator[int]:
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=project,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C is for Pulumi, which still needs the provider while it stops
            start_new_session=True,
        )
        try:
            with progress.step(f"starting the stand-in {module}"):
                port = _first_line(process, module, log)
            yield port
        finally:
            # that its standard input closes is how it is asked to end
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            try:
                process.wait(_STAND_IN_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _first_line(process: subprocess.Popen[str], module: str, log: IO[str]) -> int:
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        # read to the end: a provider that prints more must not block on a full pipe
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout or ():
                lines.put(line.strip())
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    try:
        line = lines.get(timeout=_STAND_IN_START)
        port = int(line)
    except (queue.Empty, ValueError):
        log.seek(0)
        raise CommandFailedError(
            f"the stand-in {module} did not start: it told no port",
            f"see what it says: {sys.executable} -m {module}",
            last_lines(log.read()),
        ) from None
    return port


def _download(name: str, version: str, cli: PulumiCli, progress: Progress) -> str | None:
    """Return ``None`` once it is installed, else why it is not, in a few words."""
    # `pulumi plugin install` waits through five attempts before it says no
    unreachable = [answer for answer in map(site_answers, _DOWNLOAD_SITES) if not answer]
    if len(unreachable) == len(_DOWNLOAD_SITES):
        return f"{unreachable[-1].host}: {unreachable[-1].reason}"
    try:
        run(
            [str(cli.command), "plugin", "install", "resource", name, version, "--non-interactive"],
            title=f"downloading Pulumi's {name} provider {version}",
            mend="",
            timeout=_DOWNLOAD_TIMEOUT,
            progress=progress,
            environment={**os.environ, **cli.environment},
            writes_to=pulumi_home(),
        )
    except CommandFailedError as error:
        return last_lines(error.output, 1) or error.what
    return None


def _is_installed(folder: Path, binary: str) -> bool:
    # https://github.com/pulumi/pulumi/blob/v3.250.0/sdk/go/common/workspace/plugins.go:
    # a file of this name marks an installation that is under way or was cut short
    return os.access(folder / binary, os.X_OK) and not folder.with_name(folder.name + ".partial").exists()


def _is_true(value: str | None) -> bool:
    return (value or "").lower() in ("1", "t", "true")
