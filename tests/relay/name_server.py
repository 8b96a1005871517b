"""A DNS server of a test's own: ``python -m tests.relay.name_server ADDRESS RECORDS``.

It answers UDP and TCP on port 53 from the JSON file RECORDS, addresses by names,
which is read for every question. It knows the root's name server too, as
resolvers do that work; every other name does not exist.
"""

from __future__ import annotations

import ipaddress
import json
import socketserver
import sys
import threading
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

_PORT = 53
_TTL = 0  # seconds: each question is to find what is in the file by then
_KINDS = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}


def answer(question: bytes, records: dict[str, list[str]]) -> bytes:
    """Return the answer to a DNS message from ``records``: literal addresses by names."""
    asked = dns.message.from_wire(question)
    response = dns.message.make_response(asked, recursion_available=True)
    name, kind = asked.question[0].name, asked.question[0].rdtype
    if name == dns.name.root:
        if kind == dns.rdatatype.NS:
            response.answer.append(dns.rrset.from_text(name, _TTL, "IN", "NS", "a.root-servers.net."))
        return response.to_wire()
    addresses = records.get(name.to_text(omit_final_dot=True).lower())
    if addresses is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()
    told = [text for text in addresses if _KINDS[ipaddress.ip_address(text).version] is kind]
    if told:
        response.answer.append(dns.rrset.from_text(name, _TTL, "IN", kind, *told))
    return response.to_wire()


def main(address: str, path: str) -> None:
    """Answer until the process is ended."""

    def records() -> dict[str, list[str]]:
        return dict(json.loads(Path(path).read_text()))

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            question, asker = self.request
            asker.sendto(answer(question, records()), self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            # RFC 1035, section 4.2.2: over TCP a message has its length before it
            length = int.from_bytes(self.rfile.read(2))
            told = answer(self.rfile.read(length), records())
            self.wfile.write(len(told).to_bytes(2) + told)

    streams = socketserver.ThreadingTCPServer((address, _PORT), Stream)
    threading.Thread(target=streams.serve_forever, daemon=True).start()
    socketserver.ThreadingUDPServer((address, _PORT), Datagram).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
