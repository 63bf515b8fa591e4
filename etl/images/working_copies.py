"""Reading working copies: whole, decoded, and with what is wrong with one told in our own errors.

A state that came from elsewhere may hold anything under their names: all is read through `etl.files`, as a JPEG alone.
The bytes without any Pillow are `etl.images.cache.read_working`'s.
"""

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from etl import files
from etl.errors import CacheUnreadableError, NotPlainError, StateError, WorkingCopyError
from etl.images.cache import MAX_WORKING_PIXELS, read_working

_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for damaged files, a header with absurd dimensions among them."""

_ITS_OWN_FAULT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO})
"""``errno`` of what is no file, and EIO: a disk that cannot give it back, so it is damaged as any other."""


def open_working_copy(path: Path) -> Image.Image:
    """Return the picture as RGB, wholly decoded; raises as `reading` does."""
    with reading(path), _opened(path) as picture:
        if picture.width * picture.height > MAX_WORKING_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
        picture.load()
        # Nearly all are RGB; to convert them would copy them.
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def working_copy_bytes(path: Path) -> bytes:
    """Return a working copy whose content is what its name says; raises as `reading` does."""
    with reading(path):
        return read_working(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in our own errors what goes wrong with a working copy in the block.

    Raises `WorkingCopyError` for one that is missing or damaged, and `CacheUnreadableError` when it is not the file's
    own fault that it cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise WorkingCopyError(f"the working copy {path.name} is not in the cache") from error
    except (NotPlainError, *_UNDECODABLE) as error:
        # Pillow's own complaints have no number.
        if isinstance(error, OSError) and error.errno is not None and error.errno not in _ITS_OWN_FAULT:
            raise CacheUnreadableError(
                f"cannot read {path}: {error.strerror}; nothing was charged for it: see to permissions, open files "
                "(ulimit -n) and the disk, then run the same command again"
            ) from error
        raise WorkingCopyError(f"the working copy {path.name} cannot be read: {error}") from error


def holds(path: Path, sha256: str) -> bool:
    """Return whether there is a file whose content has this hash.  Raises `StateError` when it may not be read."""
    try:
        with files.reading(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == sha256
    except NotPlainError:
        return False
    except OSError as error:
        if error.errno in _ITS_OWN_FAULT:
            return False
        raise StateError(f"cannot read {path}: {error.strerror or error}") from error


def fault_of(path: Path, width: int, height: int) -> str | None:
    """Return what is wrong with a working copy that should have this size in pixels; ``None`` for a good one.

    Its whole content is decoded, but only where its header says the right size.
    """
    try:
        with _opened(path) as picture:
            if picture.size != (width, height):
                return f"it has {picture.width} x {picture.height} pixels, not {width} x {height}"
            picture.load()
    except _UNDECODABLE as error:
        return f"it cannot be decoded ({error})"
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield the picture of a working copy, of which the header alone was read."""
    with files.reading(path) as file, Image.open(file, formats=("JPEG",)) as picture:
        yield picture
