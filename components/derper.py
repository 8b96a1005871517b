"""The relay itself: derper on plain HTTP for Caddy, and STUN published to the world."""

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

CERTIFICATE_FOLDER = "/app/certs"
DATA_FOLDER = "/app/data"


class DerperRelay(pulumi.ComponentResource):
    """derper's image, volumes and container."""

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
        """Declare derper on ``host``, reachable on ``network`` by its container's name."""
        super().__init__("derp-relays:components:DerperRelay", name, None, opts)
        derper = settings.derper
        image = container_image("derper", derper, host, self)
        certificates, data = (
            data_volume(volume, settings.volumes, host, self) for volume in ("derp_certs", "derp_data")
        )
        folders = {CERTIFICATE_FOLDER: certificates, DATA_FOLDER: data}
        if derper.key_folder:
            folders[derper.key_folder] = data
        by_flags = derper.configured_by == "flags"
        variables = {} if by_flags else {"DERP_DOMAIN": settings.domain, "DERP_ADDR": ":80"}
        if settings.metrics:
            variables["TS_DEBUG_TRUSTED_CIDRS"] = ",".join(settings.metrics.readers)
        ports = published(derper.stun_port, 3478, "udp", network)
        command = self._flags(settings) if by_flags else None
        envs = environment(derper, variables)
        trial = ImageTrial(
            name,
            host=host,
            delivery=delivery,
            image=image,
            container=derper.container_name,
            url="http://127.0.0.1/derp/probe",
            command=command,
            environment=envs,
            parent=self,
        )
        self.container = docker.Container(
            name,
            **common_arguments(
                derper,
                host,
                network,
                ["/usr/local/bin/healthcheck", "http://127.0.0.1/derp/probe"] if derper.builds else [],
                wait=True,
                metrics_address=settings.metrics.derper if settings.metrics else None,
            ),
            image=image.image_id,
            command=command,
            envs=envs or None,
            ports=ports,
            volumes=[
                docker.ContainerVolumeArgs(volume_name=volume.name, container_path=path)
                for path, volume in folders.items()
            ],
            opts=container_options(host, self, ports, trial),
        )
        self.register_outputs({"container": self.container.id})

    @staticmethod
    def _flags(settings: Settings) -> list[str]:
        return [
            f"-hostname={settings.domain}",
            # Any port but 443 means plain HTTP: Caddy has the certificate.
            "-a=:80",
            f"-c={DATA_FOLDER}/derper.key",
            f"-certdir={CERTIFICATE_FOLDER}",
        ]
