"""A wire with latency and loss: ``python -m tests.relay.slow_wire NEAR FAR DELAY EVERY``.

It lies between two network namespaces and appears in each as an interface named
``slow``. A packet takes DELAY seconds one way; each EVERYth one of a direction
is lost, none with 0. This does what netem does, which not every kernel has, and
loses evenly, so that two runs see the same. It says ``ready`` once it carries.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import uuid

import click

INTERFACE = "slow"

# linux/if_tun.h: an interface of IP packets, without a header of the driver's own
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LONGEST_PACKET = 65535


def main(near: str, far: str, delay: str, every: str) -> None:
    """Carry packets until the process is ended, and the interfaces with it."""
    asyncio.run(_carry([_end(near), _end(far)], float(delay), int(every)))


def _end(namespace: str) -> int:
    """Put one end of the wire into a namespace and return the descriptor of its packets."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"slow{uuid.uuid4().hex[:8]}"
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "netns", namespace, "name", INTERFACE], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", INTERFACE, "up"], check=True)
    return end


async def _carry(ends: list[int], delay: float, every: int) -> None:
    loop = asyncio.get_running_loop()

    def carry(source: int, target: int) -> None:
        count = 0

        def come() -> None:
            nonlocal count
            packet = os.read(source, _LONGEST_PACKET)
            count += 1
            if every and count % every == 0:
                return
            loop.call_later(delay, os.write, target, packet)

        loop.add_reader(source, come)

    carry(*ends)
    carry(*reversed(ends))
    click.echo("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
