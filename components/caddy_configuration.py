"""What Caddy serves, as one resource, however many sites there are."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import dynamic

from components.caddy import CaddyProxy
from components.delivery import Delivery, on_engine
from components.host import Host
from delivery import Content, deliver, delivered_digest
from settings import Settings

# A change of these is a delivery. The engine's address is among them since a refresh uses the one that
# the last delivery did.
_COMPARED = ("digest", "container", "dockerHost", "program")


class CaddyConfiguration(pulumi.ComponentResource):
    """The Caddyfile and the data that it names, delivered to Caddy's container while that runs on."""

    def __init__(  # noqa: PLR0913, PLR0917 - what is delivered, and where to
        self,
        name: str,
        settings: Settings,
        content: Content,
        host: Host,
        delivery: Delivery,
        proxy: CaddyProxy,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare that Caddy on ``host`` serves ``content``."""
        super().__init__("derp-relays:components:CaddyConfiguration", name, None, opts)
        delivered = _Configuration(
            name,
            {
                **delivery.arguments(host),
                "digest": content.digest,
                "sites": dict(content.sites),
                # What it is now tells what the next delivery does to sessions (relayctl.plan).
                "streamCloseDelay": settings.caddy.stream_close_delay,
                "secrets": pulumi.Output.secret(
                    {name: value.get_secret_value() for name, value in settings.site_secrets.items()}
                ),
                "container": proxy.container.id,
            },
            delivery.options(host, self),
        )
        self.register_outputs({"digest": delivered.digest})


class _Provider(dynamic.ResourceProvider):
    # It is this class by its name: nothing in it is secret.
    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        return dynamic.DiffResult(changes=any(_olds.get(key) != _news.get(key) for key in _COMPARED))

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        return dynamic.CreateResult(props["stack"], _delivered(props))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        return dynamic.UpdateResult(_delivered(_news))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        found = on_engine(props, lambda client: delivered_digest(client, props["container"]))
        return dynamic.ReadResult(id_, {**props, "digest": found})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leave it: it goes with its volume, and serves nobody without its container."""


def _delivered(props: dict[str, Any]) -> dict[str, Any]:
    delivered = on_engine(
        props,
        lambda client: deliver(
            client,
            Content.kept(props["stack"], props["digest"]),
            props["secrets"],
            caddy=props["container"],
            program=props["program"],
            stack=props["stack"],
        ),
    )
    return {**props, "heap": delivered.heap}


class _Configuration(dynamic.Resource, module="caddy", name="Configuration"):
    digest: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(_Provider(), name, {**props, "heap": None}, opts)
