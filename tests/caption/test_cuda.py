"""What is asked of CUDA, as far as that can be seen without a card."""

import contextlib
from typing import Any

import pytest
import torch

from etl.caption.model import cuda

SECOND = torch.device("cuda:1")


class Card:
    """PyTorch's functions for a card, which note what they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.stream = "main"
        for name, answer in (("CUDAGraph", "graph"), ("graph_pool_handle", (0, 7)), ("Stream", "side"),
                             ("current_device", 1), ("set_device", None), ("is_available", True)):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, self._noting(name, answer))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._noting("end", None), raising=False)

    def _noting(self, name: str, answer: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.asked.append((name, named or arguments))
            return answer

        return call


def test_who_waits_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that are waited for let the core sleep; a spinning one would be missed by those who open pictures."""
    made = []

    class Event:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def record(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    cuda.mark()
    cuda.mark(timed=True)
    assert made == [{"enable_timing": False, "blocking": True}, {"enable_timing": True, "blocking": False}]


def test_a_device_is_used_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to a thread's own device goes to the one that was asked for; without a number it stays as it is."""
    card = Card(monkeypatch)
    cuda.use(torch.device("cuda"))
    cuda.use(SECOND)
    assert card.asked == [("set_device", (SECOND,))]


@pytest.mark.parametrize("where", ["in the step", "at its end"])
def test_a_failed_recording_is_put_away(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The step's own error is told, not that of ending the recording; stream and memory are those of before."""
    card = Card(monkeypatch)

    @contextlib.contextmanager
    def graph(*_: Any) -> Any:
        card.stream = "recording"
        try:
            yield
        finally:
            raise torch.AcceleratorError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", graph)

    def step() -> None:
        if where == "in the step":
            raise RuntimeError("the first error")

    expected = "the first error" if where == "in the step" else "previous error during capture"
    with pytest.raises(RuntimeError, match=expected) as caught:
        cuda.capture(step, SECOND)
    assert caught.value.__suppress_context__
    assert card.stream == "main"
    assert card.asked[-1] == ("end", (1, (0, 7)))


def test_giving_back_memory_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a lost device it does nothing; that a device is lost is told, not raised."""
    Card(monkeypatch)

    def fail(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    cuda.free_memory()
    assert not cuda.still_works(SECOND)
