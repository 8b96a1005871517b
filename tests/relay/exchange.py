"""One end of a stream: ``python -m tests.relay.exchange PORT SENT RECEIVED``.

Listens on loopback for one connection, sends the file SENT and writes as many
bytes of what comes to the file RECEIVED, both at once.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path


def main(port: str, sent: str, received: str) -> None:
    """Exchange the bytes and end."""
    content = Path(sent).read_bytes()
    with socket.create_server(("127.0.0.1", int(port))) as server:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            sending = threading.Thread(target=connection.sendall, args=(content,))
            sending.start()
            Path(received).write_bytes(stream.read(len(content)))
            sending.join()
            # what was sent is under way until the other end closes
            stream.read(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
