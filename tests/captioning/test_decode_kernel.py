"""The Triton kernel agrees with PyTorch's own attention; on the CPU by Triton's interpreter."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("kernel_cases.py")


def test_the_kernel_agrees_with_pytorch() -> None:
    """Multi-head and grouped, three types, strided queries, lengths from 1 to all: within rounding, slot by slot."""
    pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA, and with the extra 'dev' on Linux")
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy from 2.4 on")
    # In a process of its own: whether Triton interprets is decided when it is imported.
    ended = subprocess.run(
        [sys.executable, CASES], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 6
    assert all(line.endswith("agrees") for line in lines), ended.stdout
