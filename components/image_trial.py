"""A new image is tried before the container with the old one goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi
import pulumi_docker as docker
from pulumi import dynamic

from components.delivery import Delivery, on_engine
from components.host import Host
from delivery import try_image

# A change of one of these is a trial. The environment follows the memory limit, and is no reason for one.
_TRIED = ("image", "command")


class ImageTrial(pulumi.ComponentResource):
    """The trial of a container's image; the container depends on it.

    Nothing is tried for a container that is made for the first time, which
    replaces none.
    """

    def __init__(  # noqa: PLR0913 - what is tried, and with what
        self,
        name: str,
        *,
        host: Host,
        delivery: Delivery,
        image: docker.RemoteImage,
        container: str,
        url: str,
        command: Sequence[str] | None = None,
        environment: Sequence[str] = (),
        parent: pulumi.Resource,
    ) -> None:
        """Declare that ``image`` is tried, once it is another one, as the container named ``container``.

        ``url`` is what it answers inside with a 2xx status if it runs.
        """
        super().__init__(
            "derp-relays:components:ImageTrial", name, None, pulumi.ResourceOptions(parent=parent)
        )
        _Trial(
            name,
            {
                **delivery.arguments(host),
                "image": image.image_id,
                "imageName": image.name,
                "container": container,
                "command": list(command or ()),
                "environment": list(environment),
                "url": url,
            },
            delivery.options(host, self),
        )
        self.register_outputs({})


class _Provider(dynamic.ResourceProvider):
    # It is this class by its name: nothing in it is secret.
    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        return dynamic.DiffResult(changes=any(_olds.get(key) != _news.get(key) for key in _TRIED))

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        return dynamic.CreateResult(props["container"], props)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        on_engine(
            _news,
            lambda client: try_image(
                client,
                _news["image"],
                name=_news["imageName"],
                replaces=_news["container"],
                command=_news["command"],
                environment=_news["environment"],
                url=_news["url"],
                program=_news["program"],
                stack=_news["stack"],
            ),
        )
        return dynamic.UpdateResult(_news)


class _Trial(dynamic.Resource, module="docker", name="ImageTrial"):
    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(_Provider(), name, props, opts)
