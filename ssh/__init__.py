"""SSH to a server: keys, the files that OpenSSH's client reads, Docker's socket over it, and readiness.

Nothing is trusted on first use: every connection is held to a host key that was
known before it.
"""
