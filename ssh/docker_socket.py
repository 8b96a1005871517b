"""A Docker engine behind ssh as a socket on this machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

# Seconds for an ssh that was told to end; it has only its connection to close.
_END = 5.0
# As many as wait while a process is started for the one before.
_BACKLOG = 128


class DockerSocket:
    """A socket whose every connection is a process of its own: ``ssh ... docker system dial-stdio``.

    So does Docker's own transport
    (https://github.com/docker/cli/blob/v28.5.2/cli/connhelper/connhelper.go).
    """

    def __init__(self, command: Sequence[str], listener: socket.socket, path: Path) -> None:
        """Answer on ``listener``, bound to ``path``, with processes of ``command``."""
        self.address = f"unix://{path}"
        self._command = list(command)
        self._listener = listener
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._threads: set[threading.Thread] = set()
        self._ended = False
        self._said = ""
        self._acceptor = threading.Thread(target=self._accept, name="docker-socket", daemon=True)
        self._acceptor.start()

    @property
    def said(self) -> str:
        """What the last process that failed said on stderr, or ``""``.

        It is there before the connection that failed is closed, so who reads the end of that finds it.
        """
        return self._said

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._ended:
                    connection.close()
                    return
                thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
                self._threads.add(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, tempfile.TemporaryFile() as stderr:
                # The process has the connection itself: what either side closes, the other sees at once.
                with self._lock:
                    if self._ended:
                        return
                    try:
                        process = subprocess.Popen(
                            self._command,
                            stdin=connection.fileno(),
                            stdout=connection.fileno(),
                            stderr=stderr,
                            # out of reach of this terminal's Ctrl-C: a provider still has to finish
                            start_new_session=True,
                        )
                    except OSError as error:
                        self._said = str(error)
                        return
                    self._running.add(process)
                status = process.wait()
                with self._lock:
                    self._running.discard(process)
                    if status and not self._ended:
                        stderr.seek(0)
                        said = stderr.read().decode(errors="replace").strip()
                        self._said = said or f"{self._command[0]} ended with status {status}"
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """Take no more connections, and end the processes of those that are there."""
        with self._lock:
            self._ended = True
            running, threads = list(self._running), list(self._threads)
        # wakes the thread that waits in accept
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in [self._acceptor, *threads]:
            thread.join()


@contextlib.contextmanager
def docker_socket(argv_of_ssh: Sequence[str]) -> Iterator[DockerSocket]:
    """Make a socket for the engine on the server that ``argv_of_ssh`` logs in to.

    ``argv_of_ssh`` is a whole ssh command up to the server's name, such as
    ``Connection.command()``; relative paths among its options are this process's.
    Clients connect to ``.address`` (``unix://...``); whether there is an engine
    shows only then. A connection that ssh could not make is closed without an
    answer, and ``.said`` has ssh's own words. All processes are gone at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="derp-docker-"))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            path = folder / "docker.sock"
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            made = DockerSocket([*argv_of_ssh, "docker", "system", "dial-stdio"], listener, path)
            try:
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
