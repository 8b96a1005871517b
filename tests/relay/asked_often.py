"""Runs the probe in one process: ``python -m tests.relay.asked_often RELAY RUNS AT_ONCE``.

RELAY is a JSON file with the fields of ``probe.Relay`` under ``relay``,
``dns_servers`` and ``timeout``. Each run's findings are printed as a line of JSON: ``seconds``
and ``findings``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from probe import Relay, check_relay_async


def main(path: str, runs: str, at_once: str) -> None:
    """Run the probe as often as it is said, so many at once."""
    asyncio.run(_ask(json.loads(Path(path).read_text()), int(runs), int(at_once)))


async def _ask(asked: dict[str, Any], runs: int, at_once: int) -> None:
    relay = Relay(**asked["relay"])
    left = iter(range(runs))

    async def one_after_another() -> None:
        for _ in left:
            started = time.perf_counter()
            findings = await check_relay_async(
                relay, timeout=asked["timeout"], dns_servers=asked["dns_servers"]
            )
            taken = time.perf_counter() - started
            click.echo(json.dumps({"seconds": taken, "findings": [f.as_dict() for f in findings]}))

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))


if __name__ == "__main__":
    main(*sys.argv[1:])
