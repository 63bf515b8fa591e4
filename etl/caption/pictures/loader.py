"""Loads pictures for a caption engine: worker processes turn working copies into what the vision tower is given.

The engine's thread submits items well ahead and takes what is ready; a thread of the loader's own talks to the
processes (`etl.caption.pictures.loader_pool`), so that they go on while the engine is busy elsewhere.
"""

import contextlib
import queue
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from etl.caption.pictures.loader_pool import Job, LoadedImage, Outcome, ProcessServer, Server, ThreadServer
from etl.caption.pictures.plan import Plan
from etl.domain.items import CaptionItem
from etl.errors import EtlError

__all__ = ["ImageLoader", "LoadedImage"]


class ImageLoader:
    """Turns working copies into pixels, in any order, ahead of the engine; a context manager.

    One thread uses it.  It holds the pixels of all that is pending and ready, so the caller bounds `pending`:
    336 x 336 pixels are 339 kB.  The processes start at once, beside the caller.

    Args:
        plan: how pictures become pixels.
        locate: maps a working copy's hash to its file.
        processes: how many; 0 to work in a thread of this process, for small jobs.
        start_timeout_s: seconds after which a process that is not ready will not become so.
        picture_timeout_s: seconds after which a process is ended that hangs on one picture.
    """

    def __init__(
        self,
        plan: Plan,
        locate: Callable[[str], Path],
        *,
        processes: int,
        start_timeout_s: float = 60.0,
        picture_timeout_s: float = 60.0,
    ) -> None:
        self._locate = locate
        self._pending: set[Job] = set()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._fault: EtlError | None = None
        self._closed = False
        self._server: Server
        if processes:
            self._server = ProcessServer(plan, processes, start_timeout_s, picture_timeout_s, self._done.put)
        else:
            self._server = ThreadServer(plan, self._done.put)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Items that were submitted and neither taken nor discarded."""
        return len(self._pending)

    def submit(self, item: CaptionItem, text: str = "") -> None:
        """Ask for the item's picture, for a plan that reads the chat with its ``text``; never waits.

        Raises `EtlError` when the image loader was closed.
        """
        if self._closed:
            raise EtlError("the image loader was closed")
        job = Job(item=item, path=self._locate(item.working_sha256), text=text)
        self._pending.add(job)
        self._server.submit(job)

    def take(self, timeout_s: float) -> list[LoadedImage]:
        """Return all that is ready now; where nothing is, wait for the first, at most so many seconds.

        Returns an empty list when nothing is pending or became ready.  Raises `EtlError` when no process can be
        started any more, once what was ready has been taken.
        """
        deadline = time.monotonic() + timeout_s
        taken: list[LoadedImage] = []
        while self._pending and not self._fault:
            try:
                entry = self._done.get(timeout=0 if taken else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return taken
            if isinstance(entry, EtlError):
                self._fault = entry
            elif entry[0] in self._pending:
                self._pending.remove(entry[0])
                taken.append(entry[1])
        if self._pending and self._fault and not taken:
            raise self._fault
        return taken

    def discard(self) -> None:
        """Forget all that is pending; what is in work is dropped when it is done."""
        for job in self._pending:
            job.dropped = True
        self._pending.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._done.get_nowait()
                if isinstance(entry, EtlError):
                    self._fault = entry

    def close(self) -> None:
        """Forget what is pending and end the processes at once.  May be called twice."""
        self._closed = True
        self.discard()
        self._server.close()
