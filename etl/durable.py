"""Seeing to it that what was written is on the disk."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Return when a file's content, or a directory's names, are on the disk.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
