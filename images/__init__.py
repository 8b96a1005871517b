"""Images built from pinned Go modules: their names, and the folders they are built from."""

from images.recipe import BuiltImage, built_image, pinned_version

__all__ = ["BuiltImage", "built_image", "pinned_version"]
