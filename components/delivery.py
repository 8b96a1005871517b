"""What works on the host beside the containers: the program in ``images/deliver``, and who calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pulumi
import pulumi_docker as docker
import requests
from docker.errors import DockerException

from components.container import image_built_of
from components.host import Host
from delivery import DeliveryError, engine_at
from images import built_image

T = TypeVar("T")


class Delivery(pulumi.ComponentResource):
    """The program's image, and Pulumi's provider for resources that are written in Python.

    ``provider`` runs them in a process of its own, in the project's folder. It is
    an explicit one: the default provider has all of the stack's configuration in
    the state.
    """

    provider: pulumi.ProviderResource
    image: docker.RemoteImage

    def __init__(self, name: str, host: Host, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare both for ``host``."""
        super().__init__("derp-relays:components:Delivery", name, None, opts)
        self.provider = pulumi.ProviderResource(
            "pulumi-python", name, {}, opts=pulumi.ResourceOptions(parent=self)
        )
        self.image = image_built_of(built_image("deliver", host.goarch), host, self)
        self.register_outputs({"image": self.image.image_id})

    def options(self, host: Host, parent: pulumi.Resource) -> pulumi.ResourceOptions:
        """Return the options of a resource that it provides on ``host``."""
        return pulumi.ResourceOptions(parent=parent, provider=self.provider, deleted_with=host.server)

    def arguments(self, host: Host) -> dict[str, Any]:
        """Return what each of these resources needs to get to work on ``host`` (`on_engine`)."""
        return {
            "stack": pulumi.get_stack(),
            "program": self.image.image_id,
            "dockerHost": host.provider.host,
        }


def on_engine(props: dict[str, Any], work: Callable[[Any], T]) -> T:
    """Return what ``work`` returns for a client of the engine that ``props`` lead to.

    For the provider's process. Raises ``DeliveryError`` alone, of which Pulumi shows
    the message.
    """
    # Pulumi shows all that Python prints of an error.
    sys.tracebacklimit = 0
    try:
        with engine_at(props["stack"], props["dockerHost"]) as client:
            return work(client)
    except (DockerException, requests.RequestException) as error:
        where = props["dockerHost"] or "this machine"
        raise DeliveryError(f"the Docker Engine of {where}: {error}") from None
    except OSError as error:
        raise DeliveryError(f"{error.filename or 'a connection'}: {error.strerror or error}") from None
