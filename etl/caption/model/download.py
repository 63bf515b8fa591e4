"""How far the download of a model has come: what huggingface_hub tells its bars, for whoever shows it."""

import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from etl.domain.views import Download

_WINDOW_S = 15.0
"""Seconds over which a rate is taken."""

_BYTES = "huggingface_hub.snapshot_download"
"""The name of the bar that counts, over all files, the bytes that are on the disk."""


def counting(on_progress: Callable[[Download], None]) -> type[Any]:
    """Return a class of bars that draw nothing; the one for all bytes tells how far they are, some times a second."""
    lock, moments = Lock(), deque[tuple[float, float]]()

    class Counting(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts = options.get("name") == _BYTES
            super().__init__(*arguments, **(options | {"disable": True}))  # type: ignore[no-untyped-call]
            self.total = options.get("total")

        def refresh(self, *_arguments: Any, **_options: Any) -> None:
            # What is to come is known before its first bytes are.
            self.update(0)

        def update(self, n: float | None = 1) -> None:
            if not self._counts:
                return
            with lock:
                self.n += n or 0
                now = time.monotonic()
                moments.append((now, self.n))
                while len(moments) > 1 and now - moments[0][0] > _WINDOW_S:
                    moments.popleft()
                took = now - moments[0][0]
                # What earlier runs left is told at once, and is no rate.
                rate = (self.n - moments[0][1]) / took if took > 0 else 0.0
                told = Download(int(self.n), int(max(self.n, self.total or 0)), rate)
            on_progress(told)

    return Counting
