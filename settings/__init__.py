"""What a stack's configuration means: one typed model, and the only reader of Pulumi's config."""

from settings.model import (
    Caddy,
    Certificate,
    Derper,
    Folder,
    Host,
    Network,
    Redirect,
    Region,
    Settings,
    Site,
    Upstream,
    Volumes,
)
from settings.problems import Problem, SettingsError
from settings.reader import PROJECT, read_pulumi_config, read_stack_file, settings_from

__all__ = [
    "PROJECT",
    "Caddy",
    "Certificate",
    "Derper",
    "Folder",
    "Host",
    "Network",
    "Problem",
    "Redirect",
    "Region",
    "Settings",
    "SettingsError",
    "Site",
    "Upstream",
    "Volumes",
    "read_pulumi_config",
    "read_stack_file",
    "settings_from",
]
