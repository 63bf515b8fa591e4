"""The Triton kernel agrees with exact attention, and compiles for the cards that people rent; all of it on the CPU."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *arguments: str, **environment: str) -> list[str]:
    """Run a script of this directory, which must succeed; return the lines that it prints."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA, and with the extra 'dev' on Linux")
    # In a process of its own: whether Triton interprets is decided when it is imported.
    ended = subprocess.run(
        [sys.executable, HERE / script, *arguments], env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def test_the_kernel_agrees_with_double_precision() -> None:
    """Multi-head and grouped, three types, heads of many sizes, strided queries: within rounding, slot by slot."""
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy from 2.4 on")
    lines = run("kernel_cases.py", TRITON_INTERPRET="1")
    assert len(lines) == 14
    assert all(line.endswith("agrees") for line in lines), lines


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_kernel_fits_into_shared_memory(whole: bool, tmp_path: Path) -> None:
    """Compiled for cards that are not here, wide heads in groups take no more than one program may have."""
    lines = run("kernel_compiles.py", *["--whole"] * whole, TRITON_CACHE_DIR=str(tmp_path))
    assert all(line.endswith(" fits") for line in lines), lines
    assert len(lines) == (126 if whole else 2)
