"""What a stack's configuration means: one typed model, and the only reader of Pulumi's config."""

from settings.host import AnyHost, HetznerHost, LocalHost, SshHost
from settings.model import (
    Caddy,
    Certificate,
    Derper,
    Metrics,
    Network,
    Region,
    Settings,
    Volumes,
)
from settings.problems import Problem, SettingsError
from settings.reader import PROJECT, read_pulumi_config, read_stack_file, settings_from, settings_from_text
from settings.site import Folder, Redirect, Site, Upstream

__all__ = [
    "PROJECT",
    "AnyHost",
    "Caddy",
    "Certificate",
    "Derper",
    "Folder",
    "HetznerHost",
    "LocalHost",
    "Metrics",
    "Network",
    "Problem",
    "Redirect",
    "Region",
    "Settings",
    "SettingsError",
    "Site",
    "SshHost",
    "Upstream",
    "Volumes",
    "read_pulumi_config",
    "read_stack_file",
    "settings_from",
    "settings_from_text",
]
