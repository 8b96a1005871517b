"""What Caddy serves, as one resource, however many sites there are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi import dynamic

from components.caddy import CaddyProxy
from components.container import delivery_image
from components.host import Host
from delivery import Content, DeliveryError, deliver, delivered_digest, engine_at
from settings import Settings

# A change of these is a delivery: the others only say how to get there.
_COMPARED = ("digest", "container")


class CaddyConfiguration(pulumi.ComponentResource):
    """The Caddyfile and the data that it names, delivered to Caddy's container while that runs on."""

    def __init__(  # noqa: PLR0913, PLR0917 - what is delivered, and where to
        self,
        name: str,
        settings: Settings,
        content: Content,
        host: Host,
        proxy: CaddyProxy,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare that Caddy on ``host`` serves ``content``."""
        super().__init__("derp-relays:components:CaddyConfiguration", name, None, opts)
        stack = pulumi.get_stack()
        content.keep(stack)
        # An explicit one: the default provider has all of the stack's configuration in the state.
        provider = pulumi.ProviderResource(
            "pulumi-python", name, {}, opts=pulumi.ResourceOptions(parent=self)
        )
        image = delivery_image(host, self)
        delivered = _Configuration(
            name,
            {
                "stack": stack,
                "digest": content.digest,
                "sites": dict(content.sites),
                # What it is now tells what the next delivery does to sessions (relayctl.plan).
                "streamCloseDelay": settings.caddy.stream_close_delay,
                "secrets": pulumi.Output.secret(
                    {
                        name: value.get_secret_value()
                        for name, value in getattr(settings, "site_secrets", {}).items()
                    }
                ),
                "container": proxy.container.id,
                "image": image.image_id,
                "dockerHost": host.provider.host,
            },
            pulumi.ResourceOptions(parent=self, provider=provider, deleted_with=host.server),
        )
        self.register_outputs({"digest": delivered.digest})


class _Provider(dynamic.ResourceProvider):
    """Delivers. Pulumi runs it in a process of its own, in the project's folder."""

    # It is this class by its name: nothing in it is secret.
    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        return dynamic.DiffResult(changes=any(_olds.get(key) != _news.get(key) for key in _COMPARED))

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        return dynamic.CreateResult(props["stack"], self._deliver(props))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        return dynamic.UpdateResult(self._deliver(_news))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        with engine_at(props["stack"], props["dockerHost"]) as client:
            found = delivered_digest(client, props["container"])
        return dynamic.ReadResult(id_, {**props, "digest": found})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leave it: it goes with its volume, and serves nobody without its container."""

    @staticmethod
    def _deliver(props: Mapping[str, Any]) -> dict[str, Any]:
        stack = props["stack"]
        try:
            with engine_at(stack, props["dockerHost"]) as client:
                delivered = deliver(
                    client,
                    Content.kept(stack, props["digest"]),
                    props["secrets"],
                    caddy=props["container"],
                    image=props["image"],
                    stack=stack,
                )
        except DeliveryError:
            # What Pulumi shows is all that Python prints of an error: the message alone.
            sys.tracebacklimit = 0
            raise
        return {**props, "heap": delivered.heap}


class _Configuration(dynamic.Resource, module="caddy", name="Configuration"):
    digest: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(_Provider(), name, {**props, "heap": None}, opts)
