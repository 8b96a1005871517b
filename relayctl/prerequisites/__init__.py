"""Finds on this machine, or brings to it, all that the relay needs."""
