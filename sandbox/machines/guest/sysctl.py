"""``sysctl`` that sets what is of the server's own network, and writes down what is of the whole machine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from sandbox.machines.guest.services import log

REAL = "/usr/lib/sandbox/real/sysctl"
# how the kernel refuses what a network namespace does not own, or what only the first one has
_OF_THE_MACHINE = re.compile(
    r"(?:Read-only file system|permission denied on key|Permission denied|Operation not permitted"
    r"|cannot stat /proc/sys/net/)"
)


def main(arguments: Sequence[str]) -> int:
    """Run the real program and return its exit code; what the sandbox cannot set is no error."""
    done = subprocess.run([REAL, *arguments], stderr=subprocess.PIPE, text=True, check=False)
    own, others = judged(done.stderr)
    for line in others:
        log(f"not set, it is of the whole machine: {line}")
    sys.stderr.write("".join(f"{line}\n" for line in own))
    return 0 if others and not own else done.returncode


def judged(errors: str) -> tuple[list[str], list[str]]:
    """Split the program's error lines into mistakes, and what is the sandbox's limit."""
    lines = [line for line in errors.splitlines() if line.strip()]
    limits = [line for line in lines if _OF_THE_MACHINE.search(line)]
    return [line for line in lines if line not in limits], limits


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
