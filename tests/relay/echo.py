"""An upstream that says what it was asked: ``python -m tests.relay.echo ADDRESS PORT STATUS [CERTIFICATE]``.

The file STATUS has the status of ``/healthz``. With a PEM file of certificate
and key it speaks TLS.
"""

from __future__ import annotations

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main(address: str, port: str, status: str, certificate: str | None = None) -> None:
    """Answer until the process is ended."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}
            content = json.dumps(told).encode()
            self.send_response(int(Path(status).read_text()) if self.path == "/healthz" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Frame-Options", "SAMEORIGIN")
            self.send_header("X-Powered-By", "echo")
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer((address, int(port)), Answer)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
