"""Why a file gives no picture, in words that a person can act on."""

import contextlib
import errno
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from etl import extras
from etl.errors import (
    CorruptImageError,
    DecoderLimitError,
    DecoderMissingError,
    EtlError,
    ImageError,
    ImageTooLargeError,
    LocalFileError,
    NotAnImageError,
    TruncatedImageError,
)
from etl.images.formats import ImageFormat
from etl.images.sniff import TEXT_BYTES, describe
from etl.text import clean

OUT_OF_MEMORY = "the picture needs more memory than a decoder process may use (decoder_memory)"

_SHOWN = 200
"""Characters of a library's words."""

_THE_FILES_OWN = (None, errno.EINVAL, errno.EOVERFLOW)
"""``errno`` of Pillow's own complaints, and of places in a file where none can be."""

_NO_MEMORY = re.compile(r"out of memory|memory allocation|allocating \d+ bytes failed", re.IGNORECASE)
_TOO_LARGE = re.compile(r"security limit exceeded: image size", re.IGNORECASE)
_CUT_SHORT = re.compile(
    r"truncated|requires a buffer|end of file|unexpected end|too small for|not enough image data|only got \d",
    re.IGNORECASE,
)

_REASONS = (
    ("password", "needs a password"),
    (
        "decoder error|broken data stream|unrecognized data|[Dd]ecoding.*failed|could not create decoder|Generic Error",
        "has pixels that are damaged or cut short",
    ),
    ("Errno|[Ss]eek", "points to a place that is not in the file"),
    ("invalid literal|Token too long", "header is broken"),
)
"""What libraries say, and what that means."""


@contextlib.contextmanager
def errors_mapped(known: ImageFormat | None, path: Path, max_pixels: int) -> Iterator[None]:
    """Raise whatever the decoding libraries raise as one of ours, and let Pillow enforce ``max_pixels``."""
    limit_before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except EtlError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(f"more than {max_pixels:,} pixels: {error}") from error
    except MemoryError as error:
        raise DecoderLimitError(OUT_OF_MEMORY) from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise DecoderLimitError(OUT_OF_MEMORY) from error
        if error.errno not in _THE_FILES_OWN:
            raise LocalFileError(f"cannot read the file: {error.strerror or error}") from error
        raise _refusal(known, path, error) from error
    # Pillow's and PDFium's parsers raise nearly every exception there is on broken files.
    except Exception as error:
        raise _refusal(known, path, error) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit_before


def missing(known: ImageFormat) -> DecoderMissingError:
    """Return the error for a format that cannot be opened here."""
    if not known.extra:
        return DecoderMissingError(f"the file is {known.name}, which the installed Pillow cannot read")
    command = extras.install_extra(known.extra)
    return DecoderMissingError(f"the file is {known.name}, which needs one more package: {command}")


def _refusal(known: ImageFormat | None, path: Path, error: Exception) -> ImageError:
    """Return the error for a file of this format, or of none, that could not be decoded."""
    words = clean(str(error), _SHOWN)
    if known is not None and _TOO_LARGE.search(words):
        return ImageTooLargeError(f"more pixels than the decoder of {known.name} takes: {words}")
    if _NO_MEMORY.search(words):
        return DecoderLimitError(OUT_OF_MEMORY)
    if known is None:
        with path.open("rb") as file:
            return NotAnImageError(describe(file.read(TEXT_BYTES)))
    if isinstance(error, UnidentifiedImageError):
        return CorruptImageError(f"the {known.name} header is broken or cut short, or of a kind that is not supported")
    if _CUT_SHORT.search(words):
        return TruncatedImageError(f"the {known.name} is cut short, and no part of it can be taken")
    for pattern, meaning in _REASONS:
        if re.search(pattern, words):
            return CorruptImageError(f"the {known.name} {meaning}")
    if isinstance(error, KeyError):
        return CorruptImageError(f"the {known.name} is of a kind that is not supported: {words}")
    return CorruptImageError(f"the {known.name} is broken: {words or type(error).__name__}")
