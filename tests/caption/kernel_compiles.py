"""Compiles the decoding kernel for cards that are not here, with the compiler that Triton brings; a line for each."""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from etl.caption.slots import decode_kernel

SHARED_MEMORY = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}
"""Bytes that one program may take, by compute capability (CUDA C++ Programming Guide, technical specifications)."""

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def shared_bytes(arch: int, dtype: str, dim: int, group: int, window: int) -> int:
    """Compile for heads of ``dim`` in groups of ``group``, and return the shared memory that it takes."""
    tile = triton.next_power_of_2(dim)
    constants = {"DIM": dim, "TILE": tile, "BLOCK": decode_kernel.BLOCK, "WINDOW": window}
    kernel: Any = decode_kernel._attend_one
    if group > 1:
        kernel = decode_kernel._attend_group
        constants |= {"GROUP": group, "ROWS": max(16, triton.next_power_of_2(group))}
        constants["BLOCK"] = decode_kernel.turn_positions(tile, TYPES[dtype].itemsize)
    kinds = {name: "constexpr" for name in constants} | {"lengths_ptr": "*i32", "scale": "fp32"}
    kinds |= {name: f"*{dtype}" for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr")}
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={name: kinds.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # Triton finds this out at a launch: all strides of a cache are multiples of 16.
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if n not in constants and n != "scale"},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    return int(compiled.metadata.shared)


def compiled(whole: bool) -> list[str]:
    """Return a line for each case; without ``whole``, only for those that were too large once, for the cards they were.

    Where kernels are kept is up to ``TRITON_CACHE_DIR``.
    """
    cases = [(86, "fp16", 256, 4, 0), (89, "fp32", 128, 4, 0), (86, "fp16", 256, 4, 1024)]
    if whole:
        cases = [
            (arch, dtype, dim, group, window)
            for arch in SHARED_MEMORY
            for dtype in TYPES
            for dim in (80, 128, 256)
            for group, window in ((1, 0), (1, 1024), (4, 0), (4, 1024), (32, 0))
            if (arch, dtype) != (75, "bf16")
        ]
    lines = []
    for arch, dtype, dim, group, window in cases:
        shared = shared_bytes(arch, dtype, dim, group, window)
        fits = "fits" if shared <= SHARED_MEMORY[arch] else "is too much"
        lines.append(f"sm_{arch} {dtype} {dim} {group} window {window}: {shared} {fits}")
    return lines
