"""A decoder process: takes pictures from its pool over a socket, one at a time, and answers with working copies.

Confined, because decoders are written in C and the pictures come from strangers: limited address space and processor
time, no secrets in the environment, none of root's rights but to files, no core dump, no words of a C library on the
terminal, and answers in JSON, so that nothing but a wrong picture comes back.  Starting one must stay cheap: neither
this module nor what it imports may import torch, transformers, httpx2 or sqlite-utils.
"""

import contextlib
import dataclasses
import io
import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from etl.confinement import limit_memory, limit_time, limit_time_of_next, time_left
from etl.domain.items import DecodedImage
from etl.errors import DecoderLimitError, EtlError, ImageError, LocalFileError, item_error_classes
from etl.processes import Parent
from etl.text import clean_lines

READY = b"ready"
"""Sent once: the process accepts pictures."""

ACCEPTED = b"accepted"
"""Sent before each answer: from here on a death is the picture's."""

_DATA = b"\0"
"""Begins an order that holds pictures themselves; no path does."""

_LENGTH = struct.Struct("!Q")
"""Goes before each of several pictures, and of their answers: its bytes."""

NICENESS = 5
"""Below the downloads and the GPU's feeding, which must not wait; above what runs only on an idle machine."""

LIFE_S = 3600
"""Processor seconds of a process, which then makes room for another: that is what its hard limit is for."""

HEADROOM_BYTES = 64 * 1024**2
"""What a limit leaves at least above the interpreter's own mapping, so that small pictures always pass."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a decoder process is told once, as JSON.

    Attributes:
        memory_bytes: limit of its address space.
        longest_edge: of working copies, in pixels.
        max_pixels: largest accepted picture.
        accept_truncated: part of its pixels that a picture which is cut short must have.
        cpu_s: processor seconds that it may spend on one picture.
    """

    memory_bytes: int
    longest_edge: int
    max_pixels: int
    accept_truncated: float
    cpu_s: int


def main(config_fields: dict[str, Any], pool: Parent) -> None:
    """Decode what the pool sends until it is gone; a SIGKILL in the middle of a picture leaves nothing to say."""
    # Before the first picture, and not above: the pool's process decodes nothing, and would load all that, too.
    from etl.images import decode  # noqa: F401

    config = WorkerConfig(**config_fields)
    os.nice(NICENESS)
    limit_memory(config.memory_bytes, HEADROOM_BYTES)
    limit_time(max(LIFE_S, 2 * config.cpu_s))
    _silence_libraries()
    pool.send(READY)
    while True:
        ordered = pool.recv()
        pool.send(ACCEPTED)
        pool.send(_framed([_answer(original, config) for original in _originals(ordered)]))
        if time_left() <= config.cpu_s:
            # The next picture gets a process that has all the time for it.
            return


def order(originals: Sequence[Path | bytes]) -> bytes:
    """Return what a worker is sent to decode one file, or pictures that are in memory; it answers all at once."""
    if isinstance(originals[0], Path):
        return os.fsencode(originals[0])
    return _DATA + _framed(original for original in originals if isinstance(original, bytes))


def parts_in(message: bytes) -> list[bytes]:
    """Return the answers that a worker has sent for one order.  Raises ValueError where the last one is cut short."""
    parts, place = [], 0
    while place < len(message):
        end = place + _LENGTH.size + int.from_bytes(message[place : place + _LENGTH.size], "big")
        if end > len(message):
            raise ValueError("the last part is cut short")
        parts.append(message[place + _LENGTH.size : end])
        place = end
    return parts


def decoded_or_raise(answer: bytes) -> tuple[DecodedImage, bytes]:
    """Return what a worker's answer holds, the working copy's bytes beside it, or raise the error that it holds."""
    line, _, working = answer.partition(b"\n")
    fields = json.loads(line)
    if "error" in fields:
        raise _error_classes()[fields["error"]](fields["message"])
    return DecodedImage.from_fields(fields), working


def _framed(parts: Iterable[bytes]) -> bytes:
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def _originals(ordered: bytes) -> list[Path | bytes]:
    return list(parts_in(ordered[len(_DATA) :])) if ordered.startswith(_DATA) else [Path(os.fsdecode(ordered))]


def _answer(original: Path | bytes, config: WorkerConfig) -> bytes:
    # The pool's own time is shorter, but a decoder that holds the interpreter does not notice when it is gone.
    limit_time_of_next(config.cpu_s)
    from etl.images.decode import make_working_copy
    from etl.images.refusals import OUT_OF_MEMORY

    fields: dict[str, Any]
    working = b""
    try:
        with _as_file(original) as path:
            decoded, working = make_working_copy(
                path,
                longest_edge=config.longest_edge,
                max_pixels=config.max_pixels,
                accept_truncated=config.accept_truncated,
            )
        fields = dataclasses.asdict(decoded)
    except (ImageError, LocalFileError) as error:
        fields = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        fields = {"error": DecoderLimitError.__name__, "message": OUT_OF_MEMORY}
    return json.dumps(fields).encode() + b"\n" + working


@contextlib.contextmanager
def _as_file(original: Path | bytes) -> Iterator[Path]:
    """Yield the path of what was ordered: what opens pictures wants a file, and one of memory costs a tenth."""
    if isinstance(original, Path):
        yield original
        return
    with os.fdopen(os.memfd_create("original"), "wb") as file:
        file.write(original)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _error_classes() -> dict[str, type[EtlError]]:
    images = [cls for cls in item_error_classes() if issubclass(cls, ImageError)]
    return {cls.__name__: cls for cls in (*images, LocalFileError)}


def _silence_libraries() -> None:
    """Send what C libraries print, with a picture's own words in it, nowhere; Python's errors go where they went."""
    kept = os.dup(2)
    sys.stderr = _CleanStream(os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace", buffering=1))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


class _CleanStream(io.TextIOBase):
    """Lets nothing through that acts on a terminal but line ends."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        self._inner.write(clean_lines(text))
        return len(text)

    def flush(self) -> None:
        self._inner.flush()
