"""The proxy: one Caddy on ports 80 and 443, for the relay and every other site."""

from __future__ import annotations

import pulumi
import pulumi_docker as docker

from components.container import (
    common_arguments,
    container_image,
    container_options,
    data_volume,
    environment,
    published,
)
from components.delivery import Delivery
from components.host import Host
from components.image_trial import ImageTrial
from components.network import RelayNetwork
from settings import Settings
from settings.model import folder_of_host

# Caddy's admin API, on loopback inside the container, answers once the configuration is loaded.
_ADMIN = "http://127.0.0.1:2019/config/"


class CaddyProxy(pulumi.ComponentResource):
    """Caddy's image, volumes and container; what it serves is delivered to it (`CaddyConfiguration`)."""

    container: docker.Container

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        name: str,
        settings: Settings,
        host: Host,
        network: RelayNetwork,
        delivery: Delivery,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare Caddy on ``host``, which finds derper and the sites on ``network``."""
        super().__init__("derp-relays:components:CaddyProxy", name, None, opts)
        caddy = settings.caddy
        image = container_image("caddy", caddy, host, self)
        probe = (
            ["/usr/local/bin/healthcheck", _ADMIN]
            if caddy.builds
            else ["wget", "--quiet", "--output-document=/dev/null", _ADMIN]
        )
        ports = [
            *published(caddy.http_port, 80, "tcp", network),
            *published(caddy.https_port, 443, "tcp", network),
            *published(caddy.https_port, 443, "udp", network),
        ]
        envs = environment(caddy, {})
        trial = ImageTrial(
            name,
            host=host,
            delivery=delivery,
            image=image,
            container=caddy.container_name,
            url=_ADMIN,
            environment=envs,
            parent=self,
        )
        self.container = docker.Container(
            name,
            # Its configuration is delivered once it is there, and waits for it.
            **common_arguments(
                caddy,
                host,
                network,
                probe,
                wait=False,
                metrics_address=settings.metrics.caddy if settings.metrics else None,
            ),
            image=image.image_id,
            envs=envs or None,
            # Docker stores the name with CAP_, and a refresh reads it back so.
            capabilities=docker.ContainerCapabilitiesArgs(adds=["CAP_NET_ADMIN"])
            if caddy.net_admin
            else None,
            # Sites that run on the host itself are reached by this name.
            hosts=[docker.ContainerHostArgs(host="host.docker.internal", ip="host-gateway")],
            ports=ports,
            volumes=self._volumes(settings, host),
            opts=container_options(host, self, ports, trial),
        )
        self.register_outputs({"container": self.container.id})

    def _volumes(self, settings: Settings, host: Host) -> list[docker.ContainerVolumeArgs]:
        caddy = settings.caddy

        def volume(name: str, path: str, folder: str | None = None) -> docker.ContainerVolumeArgs:
            if folder is not None:
                return docker.ContainerVolumeArgs(host_path=str(folder_of_host(folder)), container_path=path)
            made = data_volume(name, settings.volumes, host, self)
            return docker.ContainerVolumeArgs(volume_name=made.name, container_path=path)

        return [
            volume("caddy_etc", "/etc/caddy", caddy.config_folder),
            volume("caddy_srv", "/srv", caddy.site_folder),
            volume("caddy_data", "/data"),
            volume("caddy_config", "/config"),
        ]
