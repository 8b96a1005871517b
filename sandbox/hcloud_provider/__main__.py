"""Start the stand-in: ``python -m sandbox.hcloud_provider``; see `sandbox.provider.process`."""

from __future__ import annotations

from sandbox.provider.process import main

from .package import PACKAGE

if __name__ == "__main__":
    main(PACKAGE)
