"""The few things that are asked of CUDA directly; PyTorch leaves most of them untyped."""

import gc

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream beside the current one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def mark(*, timed: bool = False) -> torch.cuda.Event:
    """Return an event at this point of the current stream."""
    event = torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
    event.record()
    return event


def is_past(event: torch.cuda.Event) -> bool:
    """Tell whether the device has got to an event."""
    return bool(event.query())  # type: ignore[no-untyped-call]


def seconds_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """Return the device's time between two events that are past and were timed."""
    return float(begin.elapsed_time(end)) / 1000


def free_memory() -> None:
    """Return what nobody holds any more to the card.  Call it outside of ``except``: an exception holds its frames.

    Without a card it does nothing: looking through all objects of torch takes a third of a second.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
