"""What an image loader is told to do with pictures."""

from typing import Protocol

from PIL import Image


class Plan(Protocol):
    """From a working copy, and the chat that it belongs to, to bytes for the engine; can be pickled."""

    def prepare(self, picture: Image.Image, text: str) -> bytes:
        """Return what the engine is given of one picture."""
