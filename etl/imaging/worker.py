"""A decoder process: takes paths from its pool over a socket, one at a time, and answers with `DecodedImage`s.

Confined, because decoders are written in C and the pictures come from strangers: limited address space, and
answers in JSON, so that a decoder that was taken over can return nothing but a wrong picture.  Starting one
must stay cheap: neither this module nor what it imports may import torch, transformers, httpx or sqlite-utils.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from etl.errors import (
    DecoderLimitError,
    DiskFullError,
    EtlError,
    ImageError,
    LocalFileError,
    StateError,
    item_error_classes,
)
from etl.imaging.cache import ImageCache
from etl.imaging.decode import OUT_OF_MEMORY, make_working_copy
from etl.models import DecodedImage, WorkingCopy

READY = b"ready"
"""Sent once: pictures are welcome."""

TAKEN = b"taken"
"""Sent before each answer: from here on a death is the picture's."""

NICENESS = 5
"""Below the downloads and the GPU's feeding, which must not wait; above what runs only on an idle machine."""

HEADROOM_BYTES = 64 * 1024**2
"""What a limit leaves at least above the interpreter's own mapping, so that small pictures always pass."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a decoder process is told once, as JSON in its arguments.

    Attributes:
        fd: its end of the socket.
        cache_root: directory of the image cache.
        memory_bytes: limit of its address space.
        longest_edge: of working copies, in pixels.
        max_pixels: largest accepted picture.
    """

    fd: int
    cache_root: str
    memory_bytes: int
    longest_edge: int
    max_pixels: int


def main(config_json: str) -> None:
    """Answer requests until the pool's end of the socket closes, by whatever end of the parent."""
    config = WorkerConfig(**json.loads(config_json))
    # A terminal or a service manager signals the whole group: the parent drains, and must find its decoders alive.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    cache = ImageCache(Path(config.cache_root))
    # A pool that is gone, by a SIGKILL in the middle of a picture, leaves nobody to answer and nothing to say.
    with Connection(config.fd) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
        _limit_memory(config.memory_bytes)
        connection.send_bytes(READY)
        while True:
            path = Path(requests.get())
            connection.send_bytes(TAKEN)
            connection.send_bytes(_answer(path, cache, config))


def decoded_or_raise(answer: bytes) -> DecodedImage:
    """Return what a worker's answer holds, or raise the error that it holds."""
    fields = json.loads(answer)
    if "error" in fields:
        raise _error_classes()[fields["error"]](fields["message"])
    return DecodedImage(**fields | {"working": WorkingCopy(**fields["working"])})


def _receive(connection: Connection, requests: "queue.SimpleQueue[str]") -> None:
    """Queue requests; end the process when the pool is gone, even in the middle of a picture."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(json.loads(connection.recv_bytes()))
    os._exit(0)


def _answer(path: Path, cache: ImageCache, config: WorkerConfig) -> bytes:
    fields: dict[str, Any]
    try:
        decoded = make_working_copy(path, cache, longest_edge=config.longest_edge, max_pixels=config.max_pixels)
        fields = dataclasses.asdict(decoded)
    except (ImageError, LocalFileError, DiskFullError, StateError) as error:
        fields = {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        fields = {"error": DecoderLimitError.__name__, "message": OUT_OF_MEMORY}
    return json.dumps(fields).encode()


def _error_classes() -> dict[str, type[EtlError]]:
    images = [cls for cls in item_error_classes() if issubclass(cls, ImageError)]
    return {cls.__name__: cls for cls in (*images, LocalFileError, DiskFullError, StateError)}


def _limit_memory(wanted: int) -> None:
    """Limit the address space to ``wanted`` bytes, but leave some room above what is mapped already."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = max(wanted, pages * resource.getpagesize() + HEADROOM_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    except (ImportError, OSError, ValueError):
        # Only Linux limits address space reliably; elsewhere the pixel limit and the time limit remain.
        return
