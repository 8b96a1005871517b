"""Start the API: ``python -m sandbox.hcloud_api --state DIR``."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from sandbox.machines import MachineError
from sandbox.machines.namespaces import NamespaceMachines

from .server import TOKEN_FILE, serve
from .state import StateError

MACHINES_FOLDER = "machines"
"""Folder of the servers' disks, beside the state."""


@click.command()
@click.option(
    "--state",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help=f"Folder that the state is kept in, with the token in the file '{TOKEN_FILE}'.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; a free one for 0.")
@click.option("--without-machines", is_flag=True, help="Only say that servers run.")
def main(folder: Path, port: int, *, without_machines: bool) -> None:
    """
    Serve the Hetzner Cloud API on loopback until told to stop.

    The first line printed is the port. Servers are switched off at the end, and are switched on when the API
    is started with the same folder again.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="hcloud API: %(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with (
            nullcontext() if without_machines else _machines(folder) as machines,
            serve(machines, folder=folder, port=port) as api,
        ):
            click.echo(api.port)
            ended.wait()
    except (StateError, MachineError, OSError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _machines(folder: Path) -> Iterator[NamespaceMachines]:
    machines = NamespaceMachines(folder / MACHINES_FOLDER, name="hcloud")
    try:
        yield machines
    finally:
        machines.shut_down()


if __name__ == "__main__":
    main()
