"""Start the API: ``python -m sandbox.hcloud_api --state DIR``."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import click

from .server import TOKEN_FILE, serve
from .state import StateError


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
    """Serve the Hetzner Cloud API on loopback until told to stop. The first line printed is the port."""
    if not without_machines:
        raise click.UsageError("servers cannot boot yet: give --without-machines")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="hcloud API: %(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with serve(None, folder=folder, port=port) as api:
            click.echo(api.port)
            ended.wait()
    except (StateError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
