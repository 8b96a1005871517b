"""``sysctl`` that sets what is of the server's own network, and writes down what is of the whole machine."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox.machines.guest.services import log

REAL = "/usr/lib/sandbox/real/sysctl"
# what sysctl says of a key that may not be written, and of one that only the first namespace has
_REFUSED = re.compile(r"Read-only file system|[Pp]ermission denied|Operation not permitted")
_ABSENT = re.compile(r"cannot stat /proc/sys/net/")
# it says this of a value that is wrong, and of a key that nobody may write
_INVALID = re.compile(r'setting key "([^"]+)"(?:, ignoring)?: Invalid argument')


def main(arguments: Sequence[str]) -> int:
    """Run the real program and return its exit code; what the sandbox cannot set is no error."""
    done = subprocess.run([REAL, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    own, others = judged(done.stderr, _writable)
    for line in others:
        log(f"not set, it is of the whole machine: {line}")
    sys.stderr.write("".join(f"{line}\n" for line in own))
    return 0 if others and not own else done.returncode


def judged(errors: str, writable: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Split the program's error lines into mistakes, and what is the sandbox's limit.

    ``writable`` says of a key such as ``net.core.rmem_max`` whether it can be set at all.
    """
    lines = [line for line in errors.splitlines() if line.strip()]
    limits = []
    for line in lines:
        invalid = _INVALID.search(line)
        if _REFUSED.search(line) or _ABSENT.search(line) or (invalid and not writable(invalid[1])):
            limits.append(line)
    return [line for line in lines if line not in limits], limits


def _writable(key: str) -> bool:
    path = Path("/proc/sys", key if "/" in key else key.replace(".", "/"))
    return not path.exists() or bool(path.stat().st_mode & stat.S_IWUSR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
