"""
Stand-in for the pulumi-docker provider plugin, for machines that cannot download the real one.

The Pulumi engine attaches to it through ``PULUMI_DEBUG_PROVIDERS=docker:PORT``; it drives the
Docker API with the ``docker`` library. It carries networks, volumes, images and containers on
this machine's own daemon or on one behind ``ssh://``, and refuses whatever else the real plugin
offers by name instead of leaving it out quietly.
"""

from __future__ import annotations

PLUGIN_VERSION = "5.2.0"
"""Version of the plugin it stands in for; the pinned ``pulumi-docker`` SDK has the same."""
