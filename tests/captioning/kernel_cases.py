"""Compares the decoding kernel with PyTorch's attention; prints a line a case.  Run on a GPU it tests the GPU."""

import os
import sys

import torch

from etl.captioning.decode_kernel import decode_attention

CASES = (
    # slots, positions, query heads, key/value heads, dimension, type, tolerance
    (3, 150, 2, 2, 16, torch.float32, 1e-6),
    (4, 200, 4, 4, 128, torch.float32, 1e-6),
    (4, 130, 2, 2, 64, torch.float16, 1e-3),
    (2, 70, 4, 4, 128, torch.bfloat16, 8e-3),
    (3, 140, 8, 2, 32, torch.float32, 1e-6),
    (3, 90, 4, 1, 128, torch.float16, 2e-3),
    (2, 65, 32, 1, 64, torch.bfloat16, 8e-3),
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def main() -> int:
    """Return 0 when all cases agree."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    wrong = 0
    # Triton's interpreter takes the bits of bfloat16 for integers in its matrix product; a GPU does not.
    cases = [case for case in CASES if not (INTERPRETED and case[2] > case[3] and case[5] is torch.bfloat16)]
    for slots, positions, heads, kv_heads, dim, dtype, tolerance in cases:

        def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        # As the model gives them: one token of [slots, heads, tokens, dim].
        query = random(slots, heads, 3, dim)[:, :, 1]
        keys, values = random(slots, positions, kv_heads, dim), random(slots, positions, kv_heads, dim)
        lengths = torch.tensor([1, positions, 64, 65][:slots], dtype=torch.int32, device=device)
        got = decode_attention(query, keys, values, lengths, dim**-0.5)
        valid = torch.arange(positions, device=device)[None, :] < lengths[:, None]
        right = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, None].float(), keys.transpose(1, 2).float(), values.transpose(1, 2).float(),
            attn_mask=valid[:, None, None], enable_gqa=True,
        )[:, :, 0]  # fmt: skip
        alone = torch.cat([
            decode_attention(query[s : s + 1], keys[s : s + 1], values[s : s + 1], lengths[s : s + 1], dim**-0.5)
            for s in range(slots)
        ])  # fmt: skip
        off = float((got.float() - right).abs().max())
        agrees = off <= tolerance and torch.equal(alone, got) and got.dtype == dtype
        wrong += not agrees
        words = "agrees" if agrees else f"is off by {off:g}"
        print(f"{heads} heads over {kv_heads} of {dim}, {positions} positions, {dtype}: {words}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
