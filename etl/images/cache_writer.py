"""Storing working copies beside an event loop."""

import asyncio
import contextlib
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from etl.images.cache import ImageCache

TOGETHER = 32
"""Working copies that share the waits for the disk, at most; fewer where few files may be open."""

_SHARE = 32
"""Of the files that this process may open, one in so many is a copy on its way; it takes two, with its directory."""

Stored = asyncio.Future[str | Exception]


class CacheWriter:
    """Stores in one thread: what came while earlier copies were on their way to the disk goes there together.

    So a slow disk has larger portions, and a quick one has no threads that take the interpreter from each other.
    """

    def __init__(self, cache: ImageCache) -> None:
        self._cache = cache
        self._most = min(TOGETHER, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache writer")
        self._lock = threading.Lock()
        self._waiting: list[tuple[bytes, Stored]] = []
        self._is_at_work = False

    async def put(self, copy: bytes) -> str:
        """Store a working copy and return its hash; raises as `ImageCache.put_working`."""
        stored: Stored = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((copy, stored))
            if not self._is_at_work:
                self._thread.submit(self._work)
                self._is_at_work = True
        result = await stored
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Wait for what is on its way."""
        self._thread.shutdown()

    def _work(self) -> None:
        while portion := self._portion():
            results: Sequence[str | Exception]
            try:
                results = self._cache.put_all([copy for copy, _ in portion])
            except Exception as error:
                # Unheard, their sources would wait for ever.
                results = [error] * len(portion)
            # A loop that has ended waits for nothing.
            with contextlib.suppress(RuntimeError):
                portion[0][1].get_loop().call_soon_threadsafe(_tell, portion, results)

    def _portion(self) -> list[tuple[bytes, Stored]]:
        with self._lock:
            portion, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._is_at_work = bool(portion)
        return portion


def _tell(portion: list[tuple[bytes, Stored]], results: Sequence[str | Exception]) -> None:
    for (_, stored), result in zip(portion, results, strict=True):
        if not stored.done():
            stored.set_result(result)
