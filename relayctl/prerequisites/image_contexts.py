"""Fills the folders that our own images are built from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import certifi

from images.recipe import ROOT, BuiltImage, Program, built_image
from relayctl.prerequisites import cache, go_programs

if TYPE_CHECKING:
    from relayctl.prerequisites.progress import Progress


def fill(program: Program, progress: Progress, *, goarch: str, version: str | None = None) -> BuiltImage:
    """Return the image's description, its context folder filled: Dockerfile, programs, CA certificates.

    ``goarch`` is the architecture of the Docker engine's machine; ``version`` is
    of the program's module without its ``v``, by default the pinned one. What is
    not in the cache is built, which takes up to two minutes; the folder appears
    whole or not at all.

    Raises what ``go_programs.build`` raises.
    """
    image = built_image(program, goarch, version)
    contents = {"Dockerfile": 0o644, "ca-certificates.crt": 0o644, program: 0o755}
    if program != "deliver":
        contents["healthcheck"] = 0o755
    if program == "caddy":
        contents["Caddyfile"] = 0o644

    def source(name: str) -> Path:
        if name in ("Dockerfile", "Caddyfile"):
            return ROOT / "images" / program / name
        if name == "ca-certificates.crt":
            return Path(certifi.where())
        if name == "healthcheck":
            return go_programs.build("healthcheck", progress, goarch=goarch)
        return go_programs.build(program, progress, goarch=goarch, version=version)

    def assemble(folder: Path) -> None:
        for name, mode in contents.items():
            shutil.copyfile(source(name), folder / name)
            # the image has the modes of this folder, whatever this user's umask
            (folder / name).chmod(mode)

    cache.entry(
        image.context,
        assemble,
        progress,
        whole=lambda folder: all((folder / name).is_file() for name in contents),
    )
    return image
