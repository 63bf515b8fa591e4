"""A pool of confined decoder processes.

Each process has its own socket and one picture at a time, so one that dies takes nothing with it but its
picture.  (`pebble.ProcessPool` shares pipes and locks between its workers: when an idle one is killed, as the
kernel does when memory is short, the whole pool is lost.  `multiprocessing` runs the parent's main module again
in every child.)
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from etl.errors import DecoderCrashedError, DecoderLimitError, EtlError
from etl.imaging.worker import WorkerConfig, decoded_or_raise
from etl.models import DecodedImage

_START_TIMEOUT_S = 60.0
"""A start takes 0.2 s; a cold network disk on a loaded machine may need much longer."""

_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from etl.imaging.worker import main
main(sys.argv[2])
"""


class DecoderPool:
    """Decodes pictures in up to ``processes`` child processes, which start when they are first needed.

    Args:
        cache_root: directory of the image cache.
        processes: how many pictures are decoded at once.
        memory_bytes: address space of one process.
        longest_edge: of the working copies, in pixels.
        max_pixels: largest accepted picture.
        timeout_s: seconds for one picture, from when a process takes it; waiting for a process does not count.
    """

    def __init__(
        self,
        cache_root: Path,
        *,
        processes: int,
        memory_bytes: int,
        longest_edge: int,
        max_pixels: int,
        timeout_s: float = 120.0,
    ) -> None:
        self._config = WorkerConfig(-1, str(cache_root), memory_bytes, longest_edge, max_pixels)
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="decoder")
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
            decoder = self._new_decoder()
            with self._lock:
                self._idle.append(decoder)

    def _new_decoder(self) -> "_Decoder":
        """Start a process and wait until it is ready."""
        with self._lock:
            if self._closed:
                raise EtlError(_CLOSED)
            self._all.add(decoder := _Decoder(self._config))
        with self._dropped_on_error(decoder):
            decoder.wait_until_ready()
        return decoder

    async def decode(self, path: Path) -> DecodedImage:
        """Decode the file into the cache.

        Raises:
            ImageError: the picture cannot be had from these bytes.
            DecoderLimitError: it took too long or too much memory.
            DecoderCrashedError: its process died.
            LocalFileError: the file cannot be read.
            DiskFullError, StateError: the cache cannot be written.
            EtlError: no decoder process can be started, or the pool was closed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, path)

    def close(self) -> None:
        """End all processes at once; a picture in work is left (its `decode` raises `EtlError`)."""
        with self._lock:
            self._closed = True
            for decoder in self._all:
                decoder.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._all:
            decoder.discard()
        self._all.clear()
        self._idle.clear()

    def _decode(self, path: Path) -> DecodedImage:
        decoder = self._hand_over(path)
        with self._dropped_on_error(decoder):
            answer = decoder.answer(self._timeout_s)
        with self._lock:
            self._idle.append(decoder)
        return decoded_or_raise(answer)

    def _hand_over(self, path: Path) -> "_Decoder":
        """Return a decoder that has taken the picture: the last one used, so that no more start than are needed.

        An idle process may have died unnoticed; that is not the picture's fault, and the next one gets it.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise EtlError(_CLOSED)
                idle = self._idle.pop() if self._idle else None
            decoder = idle or self._new_decoder()
            with self._dropped_on_error(decoder):
                if decoder.takes(path, self._timeout_s):
                    return decoder
                if idle is None:
                    raise EtlError(f"a decoder process ended right after its start: {decoder.how_it_ended()}")
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


class _Decoder:
    """One child process and the parent's end of its socket."""

    def __init__(self, config: WorkerConfig) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            config = dataclasses.replace(config, fd=theirs.fileno())
            self._process = _start(config, theirs, self._connection)

    def wait_until_ready(self) -> None:
        """Return when the process takes pictures; raises EtlError when it does not come up."""
        try:
            if self._connection.poll(_START_TIMEOUT_S):
                self._connection.recv_bytes()
                return
            reason = f"it was not ready after {_START_TIMEOUT_S:g} s"
        except (EOFError, OSError):
            reason = self.how_it_ended()
        raise EtlError(f"a decoder process cannot be started: {reason}")

    def takes(self, path: Path, timeout_s: float) -> bool:
        """Offer one picture and return whether the process lived to take it; raises as `answer` for the time."""
        try:
            self._connection.send_bytes(json.dumps(str(path)).encode())
            if self._connection.poll(timeout_s):
                self._connection.recv_bytes()
                return True
        except (EOFError, OSError):
            return False
        raise _overdue(timeout_s)

    def answer(self, timeout_s: float) -> bytes:
        """Return what became of the picture; after an error the process is of no more use.

        Raises `DecoderCrashedError` when the process dies and `DecoderLimitError` when the time is over.
        """
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise DecoderCrashedError(f"the decoder process died on this picture: {self.how_it_ended()}") from error
        raise _overdue(timeout_s)

    def kill(self) -> None:
        self._process.kill()

    def discard(self) -> None:
        """End the process, if it still lives, and free what it held."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def how_it_ended(self) -> str:
        """Return the signal or exit code of a process that is gone, for people."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its socket"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _overdue(timeout_s: float) -> DecoderLimitError:
    return DecoderLimitError(f"decoding took longer than {timeout_s:g} s")


def _start(config: WorkerConfig, theirs: Connection, ours: Connection) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-c", _BOOT, json.dumps(sys.path), json.dumps(dataclasses.asdict(config))]
    # Until the child ignores them itself, it inherits this mask: a Ctrl-C must not print tracebacks of its start.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            # One arena per thread would reserve address space that the limit counts.
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        )
    except OSError as error:
        ours.close()
        raise EtlError(f"a decoder process cannot be started: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
