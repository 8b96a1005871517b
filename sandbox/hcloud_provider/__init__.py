"""
Stand-in for the pulumi-hcloud provider plugin, for machines that cannot download the real one.

It goes through the official ``hcloud`` client to a sandbox's Hetzner Cloud API on loopback
(``sandbox.hcloud_api``), and to no other: servers that cost money are for the real plugin. It
follows what the real plugin does, as far as read in terraform-provider-hcloud v1.66.1, its faults
included, so that a program that works with one works with the other.
"""

from __future__ import annotations

PLUGIN_VERSION = "1.43.3"
"""Version of the plugin it stands in for; the pinned ``pulumi-hcloud`` SDK has the same."""
