"""Stands in for `etl.caption.model.cuda` on the CPU, so that the engine takes the ways that it takes on a GPU.

Nothing runs beside anything else; everything is done at once, in the order in which it is asked for.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from etl.caption.model import cuda

SITES = (
    "use", "memory", "to_device", "to_host", "new_stream", "current_stream", "on_stream", "follow", "wait_on", "mark",
    "is_past", "wait", "seconds_between", "synchronize", "capture", "replay",
)  # fmt: skip
"""The calls that may fail.  A new one in `etl.caption.model.cuda` belongs here, or among `SAFE`."""

SAFE = ("serves", "still_works", "free_memory")
"""What never raises."""

GIB = 1024**3


@dataclass
class StandIn:
    """A GPU that is the CPU.

    Attributes:
        fails: asked before each call with its name and how often that was called; raises where that is wanted.
        calls: how often each was called.
        fatal: whether everything fails after the first failure, as after an illegal access.
        lost: whether that has happened.
        free: bytes of memory that it says are free.
    """

    fails: Callable[[str, int], None] = lambda _, __: None
    calls: Counter[str] = field(default_factory=Counter)
    fatal: bool = False
    lost: bool = False
    free: int = 4 * GIB

    def put(self, monkeypatch: pytest.MonkeyPatch) -> "StandIn":
        """Put it in the place of CUDA for a test."""
        for name in SITES:
            monkeypatch.setattr(cuda, name, self._watched(name, getattr(self, f"_{name}")))
        monkeypatch.setattr(cuda, "serves", lambda _: True)
        return self

    def _watched(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            if self.lost:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            try:
                self.fails(name, self.calls[name])
            except Exception:
                self.lost = self.fatal
                raise
            return do(*arguments, **named)

        return call

    def _use(self, _: Any) -> None:
        pass

    def _memory(self, _: Any) -> tuple[int, int]:
        return self.free, 8 * GIB

    def _to_device(self, tensor: torch.Tensor, _: Any) -> torch.Tensor:
        return tensor.clone()

    def _to_host(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in tensors]

    def _new_stream(self, _: Any, *, first: bool = False) -> object:  # noqa: ARG002
        return object()

    _current_stream = _new_stream

    def _on_stream(self, _: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _follow(self, *_: Any) -> None:
        pass

    _wait_on = _wait = _synchronize = _follow

    def _mark(self, *, timed: bool = False) -> object:  # noqa: ARG002 -- the signature of what it stands for
        return object()

    def _is_past(self, _: Any) -> bool:
        return True

    def _seconds_between(self, *_: Any) -> float:
        return 0.0

    def _capture(self, step: Callable[[], None], _: Any, *, first: bool = False) -> Callable[[], None]:  # noqa: ARG002
        step()
        return step

    def _replay(self, graph: Callable[[], None]) -> None:
        graph()


@contextlib.contextmanager
def failing_launches(number: int, error: Exception) -> Iterator[None]:
    """Let the so-manieth operation on tensors raise, once: a launch, or an allocation."""
    counter = itertools.count(1)

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if next(counter) == number:
                raise error
            return func(*args, **(kwargs or {}))

    with Mode():  # type: ignore[no-untyped-call]
        yield
    assert next(counter) > number, "there were not so many"
