"""HEIF, for which pillow-heif must be installed."""

import pillow_heif
from pillow_heif.as_plugin import HeifImageFile

__all__ = ["HeifImageFile"]

# Pictures are decoded side by side by processes, whose threads would be in each other's way.
pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
