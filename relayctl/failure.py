"""What the engine shows after an update failed: a full disk, taken ports, the last words of containers."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import docker.errors
import requests

from delivery import last_words
from relayctl import preflight
from relayctl.prerequisites.errors import indented, says_disk_full
from relayctl.stack import STATE_DISK_FULL, UpdateFailedError
from settings import Settings


def explained(
    error: UpdateFailedError, stack: str, settings: Settings, client: docker.DockerClient
) -> UpdateFailedError:
    """Return ``error`` with what the engine shows of its reason, and with how to mend that."""
    try:
        data = str(client.info().get("DockerRootDir") or "Docker's data folder")
        known = preflight.Known.of_engine(stack, client)
        in_the_way = preflight.problems(settings, known, client)
        shown = [*(what for what, _ in in_the_way), *_last_words(stack, client)]
    except (docker.errors.DockerException, requests.RequestException) as gone:
        return UpdateFailedError(
            f"{error.what}\nThe Docker Engine does not answer any more: {gone}",
            "see why it ended (journalctl -u docker, or /var/log/docker.log); start it, and run this again",
        )
    mend = "\n".join(dict.fromkeys(mend for _, mend in in_the_way)) or error.mend
    if says_disk_full(error.what) and error.mend != STATE_DISK_FULL:
        mend = (
            f"make room where Docker keeps its data ({data}): `docker system df` shows what takes it,"
            " `docker system prune` often gives much; then run this again"
        )
    return UpdateFailedError("\n".join([error.what, *shown]), mend)


def _last_words(stack: str, client: docker.DockerClient) -> Iterator[str]:
    """Yield the end of the log of each container of the stack that does not run well."""
    for container in client.containers.list(all=True, filters={"label": f"{preflight.STACK_LABEL}={stack}"}):
        state = container.attrs["State"]
        health = (state.get("Health") or {}).get("Status", "healthy")
        again = container.attrs["RestartCount"]
        if (state["Running"] and health == "healthy" and not again) or state["Status"] == "created":
            continue
        how = (
            ("up" if health == "healthy" else health)
            if state["Running"]
            else f"{state['Status']} with status {state['ExitCode']}"
        )
        how = f"{how}, and was started {again + 1} times" if again else how
        yield (
            f"{container.name} is {how}; the end of its log (docker logs {container.name}):\n"
            + indented(last_words(container))
        )
