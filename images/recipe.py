"""What goes into an image that is built from a Go module, told without building it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent

ModuleProgram = Literal["derper", "caddy"]
Program = Literal["derper", "caddy", "deliver"]

# Part of every image's name. Raise it when programs are built in another way,
# with other flags say, so that hosts get the new image.
RECIPE = 2

MODULES: dict[ModuleProgram, str] = {
    "derper": "tailscale.com",
    "caddy": "github.com/caddyserver/caddy/v2",
}


def host_goarch() -> str:
    """Return this machine's processor architecture by Go's name, such as ``amd64``."""
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(machine, machine)


def cache_folder() -> Path:
    """Return the folder for built programs: ``$DERP_RELAYS_CACHE``, else under the user's cache."""
    explicit = os.environ.get("DERP_RELAYS_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "derp-relays"


def pinned_version(program: ModuleProgram) -> str:
    """Return the version, such as ``1.102.5``, that ``tools/<program>/go.mod`` pins.

    Raises ``ValueError`` if that file does not require the program's module.
    """
    module = MODULES[program]
    path = ROOT / "tools" / program / "go.mod"
    match = re.search(rf"^(?:require)?\s*{re.escape(module)} v(\S+)", path.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{path} does not require {module}")
    return match.group(1)


@dataclass(frozen=True)
class BuiltImage:
    """An image built from a Go module, or from a program of the project's, for one architecture.

    ``name`` is its name and tag; the tag's last part is a digest of all that the
    project puts into it (pins, Dockerfile, health check, CA certificates), so a
    change of these is another image and machines agree on its name. Which Go
    builds it is each machine's own. ``context`` is the folder it is built from.
    ``version`` is the module's, empty for a program of the project's.
    """

    program: Program
    version: str
    goarch: str
    name: str
    context: Path


def built_image(program: Program, goarch: str, version: str | None = None) -> BuiltImage:
    """Describe the image of ``program`` for ``goarch`` (``amd64``, ``arm64``).

    ``version`` is a version of the program's module without its ``v``; by
    default the pinned one. Nothing is built and the context may not be there.
    """
    folder = ROOT / "images" / program
    own = sorted(path for path in folder.iterdir() if path.is_file())
    # locked in requirements.txt, and the source of the image's CA certificates
    authorities = importlib.metadata.version("certifi")
    if program == "deliver":
        version = ""
        told = f"{RECIPE} {program} {goarch} {authorities}"
        ingredients = own
    else:
        version = version or pinned_version(program)
        told = f"{RECIPE} {program} {version} {goarch} {authorities}"
        healthcheck = ROOT / "images" / "healthcheck"
        ingredients = [
            ROOT / "tools" / program / "go.mod",
            ROOT / "tools" / program / "go.sum",
            *own,
            healthcheck / "go.mod",
            *sorted(healthcheck.glob("*.go")),
        ]
    digest = hashlib.sha256(told.encode())
    for path in ingredients:
        digest.update(path.read_bytes())
    tag = "-".join(part for part in (version, goarch, digest.hexdigest()[:12]) if part)
    return BuiltImage(
        program=program,
        version=version,
        goarch=goarch,
        name=f"derp-relays/{program}:{tag}",
        context=cache_folder() / "images" / f"{program}-{tag}",
    )
