"""Settings rendered as text: the Caddyfile and the DERP map. Pure functions, no Pulumi."""

from render.caddyfile import Places, caddyfile
from render.derp_map import derp_map_region

__all__ = ["Places", "caddyfile", "derp_map_region"]
