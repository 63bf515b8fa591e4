"""Whether the decoding kernel works on this machine: tried on a tiny case before anything depends on it.

Triton compiles when a kernel is first launched, and for that needs a C compiler, Python's headers, a cache that can be
written, and enough shared memory on the card.  What it lacks, it says in exceptions of many kinds.
"""

import functools
import logging
from collections.abc import Callable

import torch

from etl.caption.model import cuda
from etl.caption.model.checkpoint import one_line

log = logging.getLogger(__name__)

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, int | None], torch.Tensor]
"""The signature of `etl.caption.slots.decode_kernel.decode_attention`."""

_TOLERANCE_EPS = 16
"""Roundings by which the kernel may differ from the exact result.  A kernel that is wrong is off by far more."""


def probe(
    device: torch.device, dtype: torch.dtype = torch.float16, *,
    heads: int = 32, kv_heads: int = 32, dim: int = 128, windowed: bool = False,
) -> str | None:  # fmt: skip
    """Return why the decoding kernel does not serve on this device, in one line; ``None`` when it gives right results.

    ``heads``, ``kv_heads`` and ``dim`` are a model's; LLaVA-1.5-7B's unless given; with ``windowed`` a window is tried.
    The first call compiles, which takes seconds.  Raises nothing, whatever is missing or fails.
    """
    try:
        off = _error(device, dtype, heads, kv_heads, dim, windowed)
    except Exception as error:
        message = f"{type(error).__name__}: {one_line(error)}"
    else:
        if off <= _TOLERANCE_EPS * torch.finfo(dtype).eps:
            return None
        return f"its results are off by {off:.2g}"
    cuda.free_memory()
    return message


@functools.cache
def usable_kernel(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, windowed: bool = False
) -> Kernel | None:
    """Return the kernel for a layer's heads on a GPU, or ``None`` where it does not serve; the log says why, once."""
    if (reason := probe(device, dtype, heads=heads, kv_heads=kv_heads, dim=dim, windowed=windowed)) is not None:
        log.warning("decoding with PyTorch's attention, not with the Triton kernel: %s", reason)
        return None
    from etl.caption.slots.decode_kernel import decode_attention

    return decode_attention


def exact_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Return on the host, in double precision, what the kernel is to give; the arguments are those of `Kernel`."""
    # Not on the device, which may round products of float32 to TF32.
    query, keys, values, lengths = (each.cpu() for each in (query, keys, values, lengths))
    group = query.shape[1] // keys.shape[2]
    keys, values = (each.double().repeat_interleave(group, 2) for each in (keys, values))
    scores = torch.einsum("shd,sphd->shp", query.double(), keys) * scale
    behind = lengths[:, None] - torch.arange(keys.shape[1])
    scores.masked_fill_(((behind <= 0) | (behind > (window or keys.shape[1])))[:, None], -torch.inf)
    return torch.einsum("shp,sphd->shd", scores.softmax(-1), values)


def _error(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, windowed: bool) -> float:
    """Return the kernel's largest error on a tiny case, as a share of the largest value."""
    from etl.caption.slots.decode_kernel import BLOCK, decode_attention

    if cuda.serves(device):
        # Triton launches on the thread's own device.
        cuda.use(device)
    generator = torch.Generator().manual_seed(1)
    # One position; one turn of the kernel's loop and one position more; two turns and one more.
    lengths = torch.tensor([1, BLOCK + 1, 2 * BLOCK + 1], dtype=torch.int32)
    slots, positions = len(lengths), int(lengths.max())
    query = torch.randn(slots, heads, dim, generator=generator).to(dtype)
    keys, values = torch.randn(2, slots, positions, kv_heads, dim, generator=generator).to(dtype)
    # A window that begins and ends inside a turn, and is longer than one.
    scale, window = dim**-0.5, BLOCK + BLOCK // 2 if windowed else None
    right = exact_attention(query, keys, values, lengths, scale, window)
    got = decode_attention(query.to(device), keys.to(device), values.to(device), lengths.to(device), scale, window)
    # NaN must not pass for a small error.
    return float(torch.nan_to_num(got.cpu().double() - right, nan=torch.inf).abs().max() / right.abs().max())
