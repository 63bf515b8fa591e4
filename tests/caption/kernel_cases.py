"""Compares the decoding kernel with attention in double precision; prints a line a case.  On a GPU it tests the GPU."""

import os
import sys

import torch

from etl.caption.slots.decode_kernel import decode_attention
from etl.caption.slots.kernel_check import exact_attention, probe

CASES = (
    # slots, positions, query heads, key/value heads, dimension, type, tolerance
    (3, 150, 2, 2, 16, torch.float32, 1e-6),
    (4, 200, 4, 4, 128, torch.float32, 1e-6),
    (4, 130, 2, 2, 64, torch.float16, 1e-3),
    (2, 70, 4, 4, 128, torch.bfloat16, 8e-3),
    (3, 140, 8, 2, 32, torch.float32, 1e-6),
    (3, 90, 4, 1, 128, torch.float16, 2e-3),
    (2, 65, 32, 1, 64, torch.bfloat16, 8e-3),
    # Sizes that are no power of two, and the widest that grouped heads may have.
    (3, 90, 3, 3, 80, torch.float32, 1e-6),
    (2, 70, 2, 2, 96, torch.float16, 1e-3),
    (3, 67, 2, 2, 112, torch.float32, 1e-6),
    (3, 90, 6, 2, 80, torch.float32, 1e-6),
    (2, 66, 4, 2, 96, torch.float16, 2e-3),
    (3, 80, 4, 1, 112, torch.float32, 1e-6),
    (3, 80, 4, 1, 256, torch.float32, 1e-6),
)

WINDOWED = (
    # as above, and the positions that a window shows: within a turn, over more than one, more than there are.
    (4, 200, 2, 2, 32, torch.float32, 1e-6, 12),
    (4, 200, 4, 2, 32, torch.float32, 1e-6, 100),
    (3, 130, 4, 1, 64, torch.float16, 2e-3, 64),
    (3, 90, 2, 2, 80, torch.float16, 1e-3, 4096),
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def fenced(cache: torch.Tensor, lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return keys or values with NaN where a kernel must not read: around what a slot may see, behind the last head."""
    slots, positions, heads, dim = cache.shape
    around = torch.full((slots, positions, heads + 1, dim), torch.nan, dtype=cache.dtype, device=cache.device)
    for slot, length in enumerate(lengths.tolist()):
        first = max(0, length - (window or length))
        around[slot, first:length, :heads] = cache[slot, first:length]
    return around[:, :, :heads]


def main() -> int:
    """Return 0 when all cases agree."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    wrong = 0
    # Triton's interpreter takes the bits of bfloat16 for integers in its matrix product; a GPU does not.
    cases = [
        case
        for case in (*((*case, None) for case in CASES), *WINDOWED)
        if not (INTERPRETED and case[2] > case[3] and case[5] is torch.bfloat16)
    ]
    for slots, positions, heads, kv_heads, dim, dtype, tolerance, window in cases:

        def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        # As the model gives them: one token of [slots, heads, tokens, dim].
        query = random(slots, heads, 3, dim)[:, :, 1]
        keys, values = random(slots, positions, kv_heads, dim), random(slots, positions, kv_heads, dim)
        lengths = torch.tensor([1, positions, 64, 65][:slots], dtype=torch.int32, device=device)
        right = exact_attention(query, keys, values, lengths, dim**-0.5, window)
        keys, values = fenced(keys, lengths, window), fenced(values, lengths, window)
        got = decode_attention(query, keys, values, lengths, dim**-0.5, window)
        rows = [slice(slot, slot + 1) for slot in range(slots)]
        alone = torch.cat([
            decode_attention(query[row], keys[row], values[row], lengths[row], dim**-0.5, window) for row in rows
        ])  # fmt: skip
        off = float((got.cpu().double() - right).abs().max())
        agrees = off <= tolerance and torch.equal(alone, got) and got.dtype == dtype
        wrong += not agrees
        words = "agrees" if agrees else f"is off by {off:g}"
        print(f"{heads} heads over {kv_heads} of {dim}, {positions} positions, window {window}, {dtype}: {words}")
    for windowed in (False, True):
        reason = probe(torch.device(device), torch.float32, heads=4, kv_heads=2, dim=80, windowed=windowed)
        wrong += reason is not None
        print(f"its own check: {reason or 'agrees'}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
