"""Every call to CUDA that the captioning of one device makes, and nothing else; PyTorch leaves most of them untyped.

Any of them may raise what an earlier piece of work ended with: `torch.AcceleratorError`, a RuntimeError.  Callers use
them through the module (`cuda.mark()`), so that a test can put others in their place.
"""

import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch

Stream = Any
Event = Any
Graph = Any
"""Handles of CUDA's: opaque to those who call this module."""


def serves(device: torch.device) -> bool:
    """Return whether a device is driven by CUDA."""
    return device.type == "cuda"


def use(device: torch.device) -> None:
    """Make a device this thread's own: events, recordings and Triton's kernels go there, whatever they are given."""
    if device.index is not None:
        torch.cuda.set_device(device)


def memory(device: torch.device) -> tuple[int, int]:
    """Return the free bytes and all bytes of a device."""
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host without waiting for the device; also where no CUDA serves."""
    if not serves(device):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Begin to copy tensors to the host; they are whole once an event behind this is past."""
    copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    return copies


def new_stream(device: torch.device, *, first: bool = False) -> Stream:
    """Return a stream beside the current one; ``first`` lets its work go before that of others."""
    return torch.cuda.Stream(device, -1 if first else 0)  # type: ignore[no-untyped-call]


def on_stream(stream: Stream) -> contextlib.AbstractContextManager[object]:
    """Put on this stream what is begun in the context."""
    return torch.cuda.stream(stream)


def follow(stream: Stream, leader: Stream) -> None:
    """Let a stream wait for what has been put on another one."""
    stream.wait_stream(leader)


def current_stream(device: torch.device) -> Stream:
    """Return the stream that work is put on now."""
    return torch.cuda.current_stream(device)


def wait_on(stream: Stream, event: Event, tensors: Sequence[torch.Tensor]) -> None:
    """Let a stream wait for an event, and use tensors made before that on another stream."""
    stream.wait_event(event)
    for tensor in tensors:
        # Their memory must not be used anew on the other stream before this one has read it.
        tensor.record_stream(stream)


def mark(*, timed: bool = False) -> Event:
    """Return an event at this point of the current stream.  Who waits for one that is not timed sleeps."""
    event = torch.cuda.Event(enable_timing=timed, blocking=not timed)  # type: ignore[no-untyped-call]
    event.record()
    return event


def is_past(event: Event) -> bool:
    """Return whether the device has got to an event."""
    return bool(event.query())


def wait(event: Event) -> None:
    """Sleep until the device has got to an event."""
    event.synchronize()


def seconds_between(begin: Event, end: Event) -> float:
    """Return the device's time between two events that are past and were timed."""
    return float(begin.elapsed_time(end)) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until a device is at rest."""
    torch.cuda.synchronize(device)


def capture(step: Callable[[], None], device: torch.device, *, first: bool = False) -> Graph:
    """Record a step, which must have been done before, and return its graph; for ``first`` see `new_stream`.

    Where that fails, the error is the step's own, and the device can be used as before, unless it is lost.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    before = current_stream(device)
    failed: list[BaseException] = []
    try:
        # Other threads (a fetch beside us has none, a second engine might) must not break the recording.
        with torch.cuda.graph(graph, pool, new_stream(device, first=first), "thread_local"):
            try:
                step()
            except BaseException as error:
                failed.append(error)
                raise
    except BaseException as error:
        # A recording that cannot be ended leaves PyTorch on its stream and in its pool of memory.
        torch.cuda.set_stream(before)
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise (failed.pop() if failed else error) from None
    return graph


def replay(graph: Graph) -> None:
    """Do a recorded step once more."""
    graph.replay()


def still_works(device: torch.device) -> bool:
    """Return whether a device can go on after an error; one that is lost fails at everything."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def free_memory() -> None:
    """Return what nobody holds any more to the card.  Call it outside of ``except``: an exception holds its frames.

    Without a card it does nothing: looking through all objects of torch takes a third of a second.  It raises nothing:
    a device that is lost says so at the next call that matters.
    """
    if torch.cuda.is_available():
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
