"""A pool of confined decoder processes.

Each process has its own socket and one file at a time, so one that dies takes nothing with it but its picture.  Small
pictures that are in memory are decoded some at a time, since to say so costs more than to do it; those for which that
ends badly are decoded again, each alone.  A process has nothing to do with the cache: working copies come back, and are
stored by a thread of this process, so that a decoder need not wait for the disk.
"""

import asyncio
import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeGuard

from etl.domain.items import DecodedImage
from etl.errors import ChildEndedError, DecoderCrashedError, DecoderLimitError, EtlError
from etl.images.cache import ImageCache
from etl.images.cache_writer import CacheWriter
from etl.images.decoder_worker import WorkerConfig, decoded_or_raise, order, parts_in
from etl.images.portions import Portions
from etl.processes import ChildProcess

CPU_RESERVE_S = 30
"""Processor seconds that a picture may take beyond its time: the pool ends it first, unless the pool is gone."""

SMALL = 64 * 1024
"""Bytes of a picture in memory that may be decoded together with others."""

PORTION = 8
"""Small pictures that are decoded together, at most."""

GATHER_S = 0.02
"""Seconds for which the first of them waits for others."""

_START_TIMEOUT_S = 60.0
"""A start takes 0.2 s; a cold network disk on a loaded machine may need much longer."""

_STARTS = 3
"""Starts before the run is ended: one process may be killed for memory that others take, three are no accident."""

Decoded: TypeAlias = tuple[DecodedImage, bytes] | EtlError
"""What became of a picture and its working copy, or why there is none."""


class DecoderPool:
    """Decodes pictures in up to ``processes`` child processes, which start when they are first needed.

    Attributes:
        in_memory: small pictures in hand, which take no disk.

    Args:
        cache_root: directory of the image cache that `decode` puts working copies into.
        cache_made: all directories in it are there already; see `ImageCache`.
        processes: how many pictures are decoded at once.
        memory_bytes: address space of one process.
        longest_edge: of the working copies, in pixels.
        max_pixels: largest accepted picture.
        accept_truncated: part of its pixels that a picture which is cut short must have.
        timeout_s: seconds for one picture, or for small ones together, from when a process takes them; waiting for a
            process does not count.
    """

    def __init__(
        self,
        cache_root: Path,
        *,
        processes: int,
        memory_bytes: int,
        longest_edge: int,
        max_pixels: int,
        accept_truncated: float = 1.0,
        timeout_s: float = 120.0,
        cache_made: bool = False,
    ) -> None:
        self._writer = CacheWriter(ImageCache(cache_root, made=cache_made))
        self._config = WorkerConfig(
            memory_bytes=memory_bytes,
            longest_edge=longest_edge,
            max_pixels=max_pixels,
            accept_truncated=accept_truncated,
            cpu_s=math.ceil(timeout_s) + CPU_RESERVE_S,
        )
        self._timeout_s = timeout_s
        # One for each process: it waits for what that has to say.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decoder")
        self._together = Portions(PORTION, GATHER_S, self._decode_together)
        self.in_memory = 0
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, processes: int) -> None:
        """Let so many processes start now, beside the caller, instead of at their first pictures."""
        for _ in range(processes):
            self._threads.submit(self._start_one)

    def _start_one(self) -> None:
        # What goes wrong here goes wrong again at the first picture, where there is somebody to be told.
        with contextlib.suppress(EtlError):
            with self._lock:
                if self._idle:
                    return
            decoder = self._new_decoder()
            with self._lock:
                self._idle.append(decoder)

    def _new_decoder(self) -> "_Decoder":
        """Start a process and wait until it is ready; one that dies meanwhile is replaced a few times."""
        for starts_left in reversed(range(_STARTS)):
            with self._lock:
                if self._closed:
                    raise EtlError(_CLOSED)
                self._all.add(decoder := _Decoder(self._config, self._timeout_s))
            try:
                with self._dropped_on_error(decoder):
                    decoder.wait_until_ready(_START_TIMEOUT_S)
                return decoder
            except ChildEndedError:
                if not starts_left:
                    raise
        raise AssertionError("the last start returns or raises")

    async def decode(self, original: Path | bytes) -> DecodedImage:
        """Decode a file, or a small picture itself, into the cache.

        Raises:
            ImageError: the picture cannot be had from these bytes.
            DecoderLimitError: it took too long or too much memory.
            DecoderCrashedError: its process died.
            LocalFileError: the file cannot be read.
            DiskFullError, StateError: the cache cannot be written.
            EtlError: no decoder process can be started, or the pool was closed.
        """
        is_small = _is_small(original)
        self.in_memory += is_small
        try:
            decoded, data = await self.working_copy(original)
            # A decoder that a picture has taken over may say what it likes; the hash is of what it gave.
            stored = dataclasses.replace(decoded.working, sha256=await self._writer.put(data), size=len(data))
        finally:
            self.in_memory -= is_small
        return dataclasses.replace(decoded, working=stored)

    async def working_copy(self, original: Path | bytes) -> tuple[DecodedImage, bytes]:
        """Decode a picture; return what became of it and its working copy, which goes nowhere else.

        Raises as `decode`, but for what is the cache's.
        """
        if _is_small(original):
            decoded = await self._together.add(original)
        else:
            (decoded,) = await asyncio.get_running_loop().run_in_executor(self._threads, self._decoded, [original])
        if isinstance(decoded, EtlError):
            raise decoded
        return decoded

    def _decode_together(self, originals: list[bytes]) -> asyncio.Future[Sequence[Decoded]]:
        return asyncio.get_running_loop().run_in_executor(self._threads, self._decoded, originals)

    def close(self) -> None:
        """End all processes at once; a picture in work is left (its `decode` raises `EtlError`)."""
        with self._lock:
            self._closed = True
            for decoder in self._all:
                decoder.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._writer.close()
        for decoder in self._all:
            decoder.discard()
        self._all.clear()
        self._idle.clear()

    def _decoded(self, originals: Sequence[Path | bytes]) -> Sequence[Decoded]:
        """Decode one picture, or small ones together.  Raises an `EtlError` that is no picture's."""
        try:
            decoded = self._answers(originals)
        except (DecoderCrashedError, DecoderLimitError) as error:
            decoded = [error] * len(originals)
        if len(originals) == 1:
            return decoded
        # Whose fault it was, and whether there is memory without the others, each alone tells.
        return [
            self._decoded([original])[0] if isinstance(each, DecoderLimitError) else each
            for original, each in zip(originals, decoded, strict=True)
        ]

    def _answers(self, originals: Sequence[Path | bytes]) -> list[Decoded]:
        decoder = self._dispatch(order(originals))
        with self._dropped_on_error(decoder):
            answers = decoder.answers(len(originals), self._timeout_s)
        with self._lock:
            self._idle.append(decoder)
        return answers

    def _dispatch(self, ordered: bytes) -> "_Decoder":
        """Return a decoder that has taken the order: the last one used, so that no more start than are needed.

        A process may have died before it took the order; that is no picture's fault, and the next one gets it.
        """
        starts_left = _STARTS
        while True:
            with self._lock:
                if self._closed:
                    raise EtlError(_CLOSED)
                idle = self._idle.pop() if self._idle else None
            decoder = idle or self._new_decoder()
            with self._dropped_on_error(decoder):
                if decoder.accepts(ordered, self._timeout_s):
                    return decoder
                starts_left -= idle is None
                if not starts_left:
                    raise EtlError(f"decoder processes end right after their start: {decoder.how_it_ended()}")
            self._drop(decoder)

    @contextlib.contextmanager
    def _dropped_on_error(self, decoder: "_Decoder") -> Iterator[None]:
        try:
            yield
        except EtlError as error:
            self._drop(decoder)
            if self._closed:
                raise EtlError(_CLOSED) from error
            raise

    def _drop(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._all.discard(decoder)
        decoder.discard()


_CLOSED = "the decoder pool was closed"


class _Decoder(ChildProcess):
    """A process that is given one order at a time."""

    def __init__(self, config: WorkerConfig, timeout_s: float) -> None:
        super().__init__(
            "etl.images.decoder_worker:main",
            dataclasses.asdict(config),
            name="decoder process",
            # One arena per thread would reserve address space that the limit counts.
            env={"MALLOC_ARENA_MAX": "1"},
            confined=True,
            stall_s=timeout_s,
        )

    def accepts(self, ordered: bytes, timeout_s: float) -> bool:
        """Offer pictures and return whether the process lived to take it; raises as `answers` for the time."""
        try:
            self.send(ordered)
            if self.poll(timeout_s):
                self.recv()
                return True
        except ChildEndedError:
            return False
        raise _overdue(timeout_s)

    def answers(self, pictures: int, timeout_s: float) -> list[Decoded]:
        """Return what became of so many pictures; after an error the process is of no more use.

        Raises `DecoderCrashedError` when the process dies or talks nonsense, and `DecoderLimitError` when the time is
        over.
        """
        try:
            if self.poll(timeout_s):
                answers = [_decoded(part) for part in parts_in(self.recv())]
                if len(answers) != pictures:
                    raise ValueError(f"{len(answers)} answers for {pictures} pictures")
                return answers
        except ChildEndedError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise _overdue(timeout_s) from error
            raise DecoderCrashedError(f"the decoder process died on this picture: {self.how_it_ended()}") from error
        except (ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
            said = f"{type(error).__name__}: {error}"
            raise DecoderCrashedError(f"the decoder process gave no answer to this picture: {said}"[:500]) from error
        raise _overdue(timeout_s)


def _decoded(answer: bytes) -> Decoded:
    try:
        return decoded_or_raise(answer)
    except EtlError as error:
        return error


def _is_small(original: Path | bytes) -> TypeGuard[bytes]:
    return isinstance(original, bytes) and len(original) <= SMALL


def _overdue(timeout_s: float) -> DecoderLimitError:
    return DecoderLimitError(f"decoding took longer than {timeout_s:g} s")
