"""One stack: a DERP relay behind Caddy, on one host. This file is the table of contents."""

import pulumi

from components import HOSTS, CaddyConfiguration, CaddyProxy, Delivery, DerperRelay, RelayNetwork
from delivery import content_of
from render import derp_map_region
from settings import SettingsError, read_pulumi_config

try:
    settings = read_pulumi_config()
    content = content_of(settings, pulumi.get_stack())
    content.keep(pulumi.get_stack())
except SettingsError as error:
    raise pulumi.RunError(str(error)) from None

host = HOSTS[settings.host.kind]("host", settings)
network = RelayNetwork("network", settings, host)
delivery = Delivery("delivery", host)
relay = DerperRelay("derper", settings, host, network, delivery)
proxy = CaddyProxy("caddy", settings, host, network, delivery)
configuration = CaddyConfiguration("configuration", settings, content, host, delivery, proxy)

port = "" if settings.caddy.https_port == 443 else f":{settings.caddy.https_port}"  # noqa: PLR2004 - HTTPS's own
pulumi.export("url", f"https://{settings.domain}{port}")
pulumi.export("ipv4", host.ipv4)
pulumi.export("ipv6", host.ipv6)
pulumi.export(
    "derpMapRegion",
    pulumi.Output.all(host.ipv4, host.ipv6).apply(lambda both: derp_map_region(settings, *both)),
)
