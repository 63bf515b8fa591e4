"""A look at working copies: whether each is the picture that the database describes."""

import errno
import hashlib
from pathlib import Path

from PIL import Image

from etl import files
from etl.errors import StateError

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO})
"""``errno`` of what is no file, and EIO: the disk itself cannot give it back, so it is damaged as any other."""


def holds(path: Path, sha256: str) -> bool:
    """Tell whether there is a file whose content has this hash.  Raises `StateError` when it may not be read."""
    try:
        with files.reading(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == sha256
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise StateError(f"cannot read {path}: {error.strerror or error}") from error


def fault_of(path: Path, width: int, height: int) -> str | None:
    """Return what is wrong with a working copy that should have this size in pixels; ``None`` for a good one.

    Its whole content is decoded, but only where its header says the right size.
    """
    try:
        with files.reading(path) as file, Image.open(file, formats=["JPEG"]) as picture:
            if picture.size != (width, height):
                return f"it has {picture.width} x {picture.height} pixels, not {width} x {height}"
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it cannot be decoded ({error})"
    return None
