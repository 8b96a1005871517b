"""What runs inside a server: process 1, and stand-ins for what needs systemd, a mirror or the whole kernel.

Copied onto each server's disk and run there by Debian's own Python, so
nothing here may use a library.
"""
