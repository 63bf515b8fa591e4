"""Attention of one new token per slot over that slot's own keys and values, as a Triton kernel for CUDA.

Masked SDPA reads every slot's whole row of the cache, however short its caption is; this kernel reads exactly the
positions that a slot has written, and of those only the last where a layer has a window.  Each program owns one slot
and one key/value head and goes through the positions in order, so a slot's result does not depend on its neighbours.
For one query head per key/value head it multiplies and adds on the CUDA cores: about one operation per byte is nothing
that tensor cores would speed up.  Grouped query heads share each load and go through `tl.dot`, whose smallest tile has
sixteen rows.

Heads whose size is no power of two are computed as the next one, with zeros behind their end.

Checked on the CPU in Triton's interpreter (TRITON_INTERPRET=1); online softmax after Milakov and Gimelshein, 2018.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64
"""Positions per turn of the loop."""

_SMALLEST_TILE = 16

_TILES = 32 * 1024
"""Most bytes of one turn's keys and values where tensor cores multiply.  Triton keeps two turns in shared memory, of
which the smallest cards since Ampere (sm_86, sm_89) give a program 101,376 bytes, and Turing, one turn, 65,536."""


@triton.jit  # type: ignore[untyped-decorator]
def _attend_one(  # type: ignore[no-untyped-def]  # compiled by Triton, which has types of its own
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, scale,
    q_slot, q_head, kv_slot, kv_pos, kv_head, out_slot, out_head,
    DIM: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths_ptr + slot)
    dim = tl.arange(0, TILE)
    inside = dim < DIM
    turn = tl.arange(0, BLOCK)
    q = tl.load(q_ptr + slot * q_slot + head * q_head + dim, mask=inside, other=0.0).to(tl.float32) * scale
    # 64 bits: 256 slots of 900 positions of 4096 values are 943 million.
    kv = slot.to(tl.int64) * kv_slot + head * kv_head
    highest = -float("inf")
    total = 0.0
    acc = tl.zeros([TILE], tl.float32)
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0)
    for start in range(first, length, BLOCK):
        pos = start + turn
        valid = pos < length
        cells = kv + pos[:, None] * kv_pos + dim[None, :]
        filled = valid[:, None] & inside[None, :]
        k = tl.load(k_ptr + cells, mask=filled, other=0.0).to(tl.float32)
        score = tl.where(valid, tl.sum(k * q[None, :], 1), -float("inf"))
        peak = tl.maximum(highest, tl.max(score, 0))
        decay = tl.exp(highest - peak)
        weight = tl.exp(score - peak)
        v = tl.load(v_ptr + cells, mask=filled, other=0.0).to(tl.float32)
        acc = acc * decay + tl.sum(weight[:, None] * v, 0)
        total = total * decay + tl.sum(weight, 0)
        highest = peak
    result = (acc / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + slot * out_slot + head * out_head + dim, result, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_group(  # type: ignore[no-untyped-def]  # compiled by Triton, which has types of its own
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, scale,
    q_slot, q_head, kv_slot, kv_pos, kv_head, out_slot, out_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths_ptr + slot)
    dim = tl.arange(0, TILE)
    inside = dim < DIM
    turn = tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    mine = (row < GROUP)[:, None] & inside[None, :]
    heads = head * GROUP + row
    q = tl.load(q_ptr + slot * q_slot + heads[:, None] * q_head + dim[None, :], mask=mine, other=0.0)
    kv = slot.to(tl.int64) * kv_slot + head * kv_head
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, TILE], tl.float32)
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0)
    for start in range(first, length, BLOCK):
        pos = start + turn
        valid = pos < length
        cells = kv + pos[:, None] * kv_pos + dim[None, :]
        filled = valid[:, None] & inside[None, :]
        k = tl.load(k_ptr + cells, mask=filled, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(valid[None, :], score, -float("inf"))
        peak = tl.maximum(highest, tl.max(score, 1))
        decay = tl.exp(highest - peak)
        weight = tl.exp(score - peak[:, None])
        v = tl.load(v_ptr + cells, mask=filled, other=0.0)
        acc = acc * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * decay + tl.sum(weight, 1)
        highest = peak
    cells = slot * out_slot + heads[:, None] * out_head + dim[None, :]
    tl.store(out_ptr + cells, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mine)


def turn_positions(tile: int, itemsize: int) -> int:
    """Return the positions per turn of grouped heads, so that their tiles of this width fit into shared memory."""
    return max(_SMALLEST_TILE, min(BLOCK, _TILES // (2 * tile * itemsize)))


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Return the attention of one query per slot, [slots, query heads, dim].

    Args:
        query: [slots, query heads, dim]; query heads are a multiple of the key/value heads, group by group.
        keys, values: [slots, positions, heads, dim], equally laid out, the last dimension contiguous.
        lengths: [slots] int32, how many positions of each slot count; at least 1.
        scale: of the scores.
        window: the last so many of a slot's positions count; ``None`` for all.
    """
    slots, query_heads, dim = query.shape
    heads = keys.shape[2]
    group = query_heads // heads
    query = query if query.stride(-1) == 1 else query.contiguous()
    assert keys.stride() == values.stride() and keys.stride(-1) == 1
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    strides = (
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), keys.stride(2), out.stride(0), out.stride(1),
    )  # fmt: skip
    arguments = (query, keys, values, lengths, out, scale, *strides)
    tile = max(_SMALLEST_TILE, triton.next_power_of_2(dim))
    if group == 1:
        _attend_one[(slots, heads)](*arguments, DIM=dim, TILE=tile, BLOCK=BLOCK, WINDOW=window or 0, num_warps=4)
        return out
    rows = max(_SMALLEST_TILE, triton.next_power_of_2(group))
    block = turn_positions(tile, keys.element_size())
    sizes = {"GROUP": group, "ROWS": rows, "DIM": dim, "TILE": tile, "BLOCK": block, "WINDOW": window or 0}
    _attend_group[(slots, heads)](*arguments, **sizes, num_warps=4)
    return out
