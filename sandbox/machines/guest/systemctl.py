"""``systemctl`` where no systemd runs: SSH and Docker for real, all else is written down and left.

Called under the names of programs that switch a machine off or restart it,
which on Debian are ``systemctl`` too, it refuses: a server is switched by its API.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox.machines.guest.services import SERVICES, Service, ServiceError, log

_ALIASES = {"sshd": "ssh"}
# systemctl(1), section EXIT STATUS
_NOT_ACTIVE = 3
_NO_SUCH_UNIT = 5
_UNIT_FOLDERS = tuple(map(Path, ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")))
_INSTALLED = Path("/var/lib/sandbox/packages")
_STATES = Path("/var/lib/sandbox/units")
_SWITCHES = ("reboot", "poweroff", "halt", "shutdown", "kexec", "suspend", "hibernate")

_ON_RUNNING = ("start", "stop", "reload")
_ON_FILE = ("enable", "disable", "mask", "unmask", "reenable", "preset")
# what "--now" does besides
_NOW = {"enable": "start", "reenable": "start", "disable": "stop", "mask": "stop"}


def main(program: str, arguments: Sequence[str]) -> int:
    """Do what ``arguments`` ask for and return the exit code, as systemctl(1) has them."""
    words = [word for word in arguments if not word.startswith("-")]
    options = [word for word in arguments if word.startswith("-")]
    if program != "systemctl" or (words and words[0] in _SWITCHES):
        return _refused(
            f"{program}: a server in the sandbox is switched off and on by its API, not from inside"
        )
    if not words:
        return _refused(f"systemctl {' '.join(arguments)}: the sandbox has no list of units")
    verb, units = words[0], [_name(unit) for unit in words[1:]]
    if verb in ("daemon-reload", "daemon-reexec", "reset-failed"):
        return 0
    if verb == "is-system-running":
        sys.stdout.write("running\n")
        return 0
    if not units:
        return _refused(f"systemctl {verb}: give the unit that is meant")
    return max(
        _on_unit(verb, unit, now="--now" in options, quiet=bool({"-q", "--quiet"} & {*options}))
        for unit in units
    )


def enabled(unit: str) -> bool:
    """Return whether the unit starts with the server; one of whom nothing was said does."""
    state = _STATES / unit
    return not state.exists() or state.read_text().strip() in ("enable", "reenable", "unmask", "preset")


def _on_unit(verb: str, unit: str, *, now: bool, quiet: bool) -> int:
    if verb in ("status", "is-active", "show"):
        service = SERVICES.get(unit)
        active = service is not None and service.pid() is not None
        return _told("active" if active else "inactive", 0 if active else _NOT_ACTIVE, quiet=quiet)
    if unit not in SERVICES and not _known(unit):
        return _refused(f"Failed to {verb} {unit}.service: Unit {unit}.service not found.", _NO_SUCH_UNIT)
    if verb == "is-enabled":
        return _told(*(("enabled", 0) if enabled(unit) else ("disabled", 1)), quiet=quiet)
    if verb in _ON_FILE:
        _STATES.mkdir(parents=True, exist_ok=True)
        (_STATES / unit).write_text(f"{verb}\n")
        if not now or verb not in _NOW:
            return 0
        verb = _NOW[verb]
    if verb.endswith(_ON_RUNNING):
        return _on_running(verb, unit)
    return _refused(f"systemctl {verb}: the sandbox does not know this")


def _on_running(verb: str, unit: str) -> int:
    service = SERVICES.get(unit)
    if service is None:
        log(f"systemctl {verb} {unit}: not done, the sandbox runs SSH and Docker alone")
        return 0
    steps = _steps(verb, running=service.pid() is not None)
    if Service.start in steps and _masked(unit):
        return _refused(f"Failed to {verb} {unit}.service: Unit {unit}.service is masked.")
    try:
        for step in steps:
            step(service)
    except ServiceError as error:
        return _refused(f"Job for {unit}.service failed: {error}")
    return 0


def _steps(verb: str, *, running: bool) -> tuple[Callable[[Service], None], ...]:
    """Return what a verb does: systemctl(1), "Unit Commands", with the old names of the "try-" forms."""
    if verb.startswith(("try-", "reload-or-try-", "cond", "force-")) and not running:
        return ()
    if verb in ("start", "stop"):
        return (Service.start,) if verb == "start" else (Service.stop,)
    if verb == "reload":
        return (Service.reload,)
    if "reload" in verb:
        return (Service.reload,) if running else (Service.start,)
    return (Service.stop, Service.start)


def _told(state: str, code: int, *, quiet: bool) -> int:
    if not quiet:
        sys.stdout.write(f"{state}\n")
    return code


def _masked(unit: str) -> bool:
    state = _STATES / unit
    return state.exists() and state.read_text().strip() == "mask"


def _name(unit: str) -> str:
    name = unit.removesuffix(".service")
    return _ALIASES.get(name, name)


def _known(unit: str) -> bool:
    file = unit if "." in unit else f"{unit}.service"
    if any((folder / file).exists() for folder in _UNIT_FOLDERS):
        return True
    # a package that was not really installed would have brought its unit
    installed = _INSTALLED.read_text().split() if _INSTALLED.exists() else []
    return unit.partition(".")[0] in installed or unit.removesuffix(".timer") in installed


def _refused(why: str, code: int = 1) -> int:
    log(why)
    sys.stderr.write(f"{why}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
