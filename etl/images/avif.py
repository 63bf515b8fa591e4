"""AVIF, by the decoder that Pillow brings."""

from PIL import AvifImagePlugin
from PIL.AvifImagePlugin import AvifImageFile

__all__ = ["AvifImageFile"]

# Pictures are decoded side by side by processes, whose threads would be in each other's way.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
