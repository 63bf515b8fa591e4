"""Where the time of a captioning engine goes."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from etl.caption.model import cuda

PHASES = ("feed", "vision", "prefill", "decode")
"""Waiting for pictures; the vision tower; the prompt's first pass; the tokens after the first."""


MOST_OPEN = 200
"""Blocks whose end on the GPU may be unknown before it is asked for; each holds two events of the driver."""


class Timings:
    """Adds up seconds by phase: on a GPU those of its streams, elsewhere the host's.

    Phases on different streams overlap, so their sum may exceed the time that has passed.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = cuda.serves(device)
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, cuda.Event, cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, phase: str, *, host: bool = False) -> Iterator[None]:
        """Time a block on the current stream, or on the ``host`` where the GPU has no part in it.

        A block that fails on the GPU is not counted: what is asked of CUDA after an error would hide it.
        """
        if host or not self._on_gpu:
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[phase] += time.perf_counter() - begun
            return
        begin = cuda.mark(timed=True)
        yield
        self._open.append((phase, begin, cuda.mark(timed=True)))
        if len(self._open) >= MOST_OPEN:
            self.seconds()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of what has ended by now."""
        still = []
        for phase, begin, end in self._open:
            if cuda.is_past(end):
                self._seconds[phase] += cuda.seconds_between(begin, end)
            else:
                still.append((phase, begin, end))
        self._open = still
        return dict(self._seconds)
