"""
Start the stand-in: ``python -m sandbox.docker_provider``.

Prints its port as the first line, as provider plugins do; the engine then finds it with
``PULUMI_DEBUG_PROVIDERS=docker:PORT``. It ends by itself when the pipe or terminal on its standard
input is closed, or when the process that started it is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import sys
import threading

from .server import serve

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


def main() -> None:
    """Serve until told to stop, or nobody is left to serve."""
    parent = os.getppid()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="docker stand-in: %(message)s")
    ended = threading.Event()
    # Ctrl-C reaches all processes of a terminal at once; the engine then still ends its calls in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server, port = serve()
    print(port, flush=True)  # noqa: T201 - the protocol of plugins
    if _is_held_open():
        threading.Thread(target=_watch_stdin, args=(ended,), daemon=True).start()
    threading.Thread(target=_watch_parent, args=(parent, ended), daemon=True).start()
    ended.wait()
    server.stop(_LAST_CALLS_SECONDS).wait(_LAST_CALLS_SECONDS)
    # threads that still wait for Docker must not hold the process
    os._exit(0)


if __name__ == "__main__":
    main()
