"""Those who do a loader's work, with processes or in a thread: each takes jobs and delivers outcomes, in any order."""

import contextlib
import json
import logging
import os
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

from etl.caption.pictures.loader_worker import KINDS, PREPARED
from etl.caption.pictures.plan import Plan
from etl.clock import now_ms
from etl.domain.items import CaptionItem
from etl.errors import (
    CaptionError,
    ChildEndedError,
    EtlError,
    ImageLoaderCrashedError,
)
from etl.images.working_copies import open_working_copy
from etl.processes import ChildProcess

log = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Pictures with one process: one in work and one at hand, so that it never waits for this side."""

_DEATHS = 2
"""So many processes may die on a picture before it is a failure."""

_FALSE_STARTS = 3
"""So often in a row each process may end before it is ready; the kernel may take all at once when memory is short."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture that is ready for the model, or the reason why it never will be.

    Attributes:
        item: as it was submitted.
        data: what the plan gives; ``None`` when there is an error.
        error: a `WorkingCopyError`, `GenerationError` for what the model's processor refuses, or
            `ImageLoaderCrashedError` when two processes died on the picture.
        started_at: when work on it began, Unix milliseconds.
    """

    item: CaptionItem
    data: bytes | None
    error: CaptionError | None
    started_at: int


@dataclass(eq=False, kw_only=True)
class Job:
    """One submitted item.

    Attributes:
        item: as it was submitted.
        path: of its working copy.
        text: the chat that the picture belongs to.
        started_at: when work on it began, Unix milliseconds.
        deaths: processes that died on it.
        dropped: nobody waits for it any more; set by the loader's thread, where the others are the server's.
    """

    item: CaptionItem
    path: Path
    text: str = ""
    started_at: int = 0
    deaths: int = 0
    dropped: bool = False

    def loaded(self, data: bytes) -> "tuple[Job, LoadedImage]":
        """Return the outcome of a job that went well."""
        return self, LoadedImage(self.item, data, None, self.started_at)

    def failed(self, error: CaptionError) -> "tuple[Job, LoadedImage]":
        """Return the outcome of a job that did not."""
        return self, LoadedImage(self.item, None, error, self.started_at)


Outcome = tuple[Job, LoadedImage] | EtlError
"""A job that is done; or why no job will be done any more."""


class Server(Protocol):
    """Does jobs until it is closed."""

    def submit(self, job: Job) -> None:
        """Take a job; never waits."""

    def close(self) -> None:
        """Leave all jobs and end; may be called twice."""


class ThreadServer:
    """Does the work in a thread; Pillow releases the interpreter's lock."""

    def __init__(self, plan: Plan, deliver: Callable[[Outcome], None]) -> None:
        self._plan = plan
        self._deliver = deliver
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="image loader", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._todo.put(job)

    def close(self) -> None:
        """End after the picture in work."""
        self._todo.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (job := self._todo.get()) is not None:
            if job.dropped:
                continue
            job.started_at = now_ms()
            try:
                self._deliver(job.loaded(self._plan.prepare(open_working_copy(job.path), job.text)))
            except CaptionError as error:
                self._deliver(job.failed(error))
            except Exception as error:
                # What would end a process must not end this thread: the engine would wait for ever.
                log.exception("preparing the picture of caption %d failed", job.item.id)
                self._deliver(job.failed(ImageLoaderCrashedError(f"preparing this picture failed: {error!r}")))


class _Worker(ChildProcess):
    """A process and what it was given, in the order in which it answers."""

    def __init__(self, plan: Plan, start_timeout_s: float) -> None:
        # One thread each: they are as many as there are processors for.
        one = {"OMP_NUM_THREADS": "1"}
        super().__init__("etl.caption.pictures.loader_worker:main", {}, name="loader process", env=one, confined=True)
        self.ready = self.deaf = False
        self.jobs: deque[Job] = deque()
        self.deadline: float | None = time.monotonic() + start_timeout_s
        with contextlib.suppress(ChildEndedError):
            # Its end is heard where it is waited for.
            self.send(pickle.dumps(plan))

    @property
    def takes_more(self) -> bool:
        """Whether to send it another job."""
        return self.ready and not self.deaf and len(self.jobs) < _IN_FLIGHT


class ProcessServer:
    """Keeps the processes at work, in a thread that nobody else's work can hold up."""

    def __init__(
        self,
        plan: Plan,
        processes: int,
        start_timeout_s: float,
        picture_timeout_s: float,
        deliver: Callable[[Outcome], None],
    ) -> None:
        self._plan = plan
        self._count = processes
        self._start_timeout_s = start_timeout_s
        self._picture_timeout_s = picture_timeout_s
        self._deliver = deliver
        self._todo: deque[Job] = deque()
        self._workers: list[_Worker] = []
        self._false_starts = 0
        self._closed = False
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._thread = threading.Thread(target=self._serve, name="image loader", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._todo.append(job)
        self._wake()

    def close(self) -> None:
        """End the processes at once."""
        if self._closed:
            return
        self._closed = True
        for worker in list(self._workers):
            worker.kill()
        self._wake()
        self._thread.join()
        os.close(self._bell)
        os.close(self._ring)

    def _wake(self) -> None:
        # A pipe that is full has not been looked at yet: it will wake the thread all the same.
        with contextlib.suppress(BlockingIOError):
            os.write(self._ring, b"!")

    def _serve(self) -> None:
        try:
            while not self._closed:
                while len(self._workers) < self._count:
                    self._workers.append(_Worker(self._plan, self._start_timeout_s))
                self._dispatch()
                self._listen()
        except EtlError as error:
            self._deliver(error)
        except Exception as error:
            # Unheard, the engine would wait for ever.
            log.exception("the image loader failed")
            self._deliver(EtlError(f"the image loader failed: {error!r}"))
        finally:
            for worker in self._workers:
                worker.discard()

    def _dispatch(self) -> None:
        """Give each process that is ready something to do, those first that have the least."""
        while self._todo:
            ready = [worker for worker in self._workers if worker.takes_more]
            if not ready:
                return
            job = self._todo.popleft()
            if job.dropped:
                continue
            worker = min(ready, key=lambda worker: len(worker.jobs))
            try:
                worker.send(json.dumps([str(job.path), job.text]).encode())
            except ChildEndedError:
                # Its end is heard after what it has said before; then another one takes its place.
                self._todo.appendleft(job)
                worker.deaf = True
                continue
            job.started_at = job.started_at or now_ms()
            if not worker.jobs:
                worker.deadline = time.monotonic() + self._picture_timeout_s
            worker.jobs.append(job)

    def _listen(self) -> None:
        """Wait until something comes from anywhere, or a process is overdue."""
        workers = {worker.fileno(): worker for worker in self._workers}
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        heard = wait([self._bell, *workers], timeout)
        if self._bell in heard:
            os.read(self._bell, 65536)
        for descriptor, worker in workers.items():
            if descriptor in heard:
                self._receive(worker)
            elif worker.deadline is not None and worker.deadline <= time.monotonic():
                self._replace(worker, "it took too long")

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.recv()
        except ChildEndedError:
            self._replace(worker, worker.how_it_ended())
            return
        if worker.ready:
            job = worker.jobs.popleft()
            if message.startswith(PREPARED):
                self._deliver(job.loaded(message[1:]))
            else:
                kind = next(kind for kind, byte in KINDS.items() if message.startswith(byte))
                self._deliver(job.failed(kind(message[1:].decode())))
        worker.ready = True
        worker.deadline = time.monotonic() + self._picture_timeout_s if worker.jobs else None
        self._false_starts = 0

    def _replace(self, worker: _Worker, how: str) -> None:
        """Take back what a process had, but for the picture that two have died on; the next look starts another.

        Raises `EtlError` when processes end before they are ready again and again.
        """
        worker.discard()
        self._workers.remove(worker)
        if self._closed:
            return
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts == _FALSE_STARTS * self._count:
                raise EtlError(f"an image loader cannot be started: {how}")
        elif worker.jobs:
            # The others only lay beside the picture in work.
            suspect = worker.jobs[0]
            suspect.deaths += 1
            if suspect.deaths == _DEATHS:
                worker.jobs.popleft()
                error = ImageLoaderCrashedError(f"the image loader died on this picture, again: {how}")
                self._deliver(suspect.failed(error))
        self._todo.extendleft(reversed(worker.jobs))
