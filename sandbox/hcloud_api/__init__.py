"""
The Hetzner Cloud API on loopback, for tests and for showing a region without an account.

It keeps servers, primary IPs, firewalls, SSH keys, placement groups and DNS zones, and answers as
``api.hetzner.cloud/v1`` does (https://docs.hetzner.cloud/reference/cloud), so that the official clients run
against it unchanged. What servers do when they run is up to `sandbox.machines`.

Start it with ``python -m sandbox.hcloud_api --state DIR``, or in a process with `serve`.
"""

from .server import ServedApi, serve

__all__ = ["ServedApi", "serve"]
