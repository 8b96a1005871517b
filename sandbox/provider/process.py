"""
The life of a stand-in's process, started by ``python -m sandbox.NAME_provider``.

It prints its port as the first line, as provider plugins do; the engine then finds it with
``PULUMI_DEBUG_PROVIDERS=NAME:PORT``. It ends by itself when the pipe or terminal on its standard
input is closed, or when the process that started it is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import sys
import threading

from .package import Package
from .server import Serving

_PARENT_POLL_SECONDS = 0.5

_LAST_CALLS_SECONDS = 5.0
"""Time that calls under way get to end."""


def _watch_stdin(ended: threading.Event) -> None:
    try:
        while os.read(0, 1024):
            pass
    except OSError as error:
        logging.getLogger(__name__).info("standard input: %s", error)
    ended.set()


def _watch_parent(parent: int, ended: threading.Event) -> None:
    while not ended.wait(_PARENT_POLL_SECONDS):
        if os.getppid() != parent:
            ended.set()


def _is_held_open() -> bool:
    """Tell whether somebody holds the other end of standard input: /dev/null, say, never closes."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0)


def main(package: Package) -> None:
    """Serve the package until told to stop, or nobody is left to serve."""
    parent = os.getppid()
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"{package.name} stand-in: %(message)s"
    )
    ended = threading.Event()
    # Ctrl-C reaches all processes of a terminal at once; the engine then still ends its calls in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    serving = Serving(package)
    print(serving.port, flush=True)  # noqa: T201 - the protocol of plugins
    if _is_held_open():
        threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
    threading.Thread(target=_watch_parent, args=(parent, ended), daemon=True).start()
    ended.wait()
    serving.stop(_LAST_CALLS_SECONDS)
    # threads that still wait for the other side must not hold the process
    os._exit(0)
