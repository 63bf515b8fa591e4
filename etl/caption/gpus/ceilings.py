"""What a device reaches in a large matrix product and in a copy: the ceilings that a roofline is made of."""

import time
from collections.abc import Callable

import torch

from etl.caption.gpus.roofline import Ceilings
from etl.caption.model import cuda


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure on random data; on a CPU with sizes that take a fraction of a second.

    Zeros would be faster than any model: the chip draws less power for them and holds a higher clock.
    """
    on_gpu = device.type == "cuda"
    flops = _flops(8192 if on_gpu else 1024, device, dtype)
    # Two of these must fit beside whatever is there.
    size = min(4 * 2**30, cuda.memory(device)[0] // 8) if on_gpu else 64 * 2**20
    bandwidth = _bandwidth(size, device)
    if not on_gpu:
        return Ceilings(flops, bandwidth, 0)
    cuda.free_memory()
    return Ceilings(flops, bandwidth, cuda.memory(device)[1])


def _flops(edge: int, device: torch.device, dtype: torch.dtype) -> float:
    one, two = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(one)
    return 2 * edge**3 / _seconds(lambda: torch.mm(one, two, out=product), device)


def _bandwidth(size: int, device: torch.device) -> float:
    source = torch.randint(0, 127, (size,), device=device, dtype=torch.int8)
    target = torch.empty_like(source)
    # Each byte is read once and written once.
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Return the mean seconds of one call, after three to warm up."""
    for _ in range(3):
        work()
    if device.type != "cuda":
        begun = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - begun) / repeats
    begin = cuda.mark(timed=True)
    for _ in range(repeats):
        work()
    end = cuda.mark(timed=True)
    cuda.synchronize(device)
    return cuda.seconds_between(begin, end) / repeats
