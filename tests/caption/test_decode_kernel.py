"""The Triton kernel agrees with exact attention, and compiles for the cards that people rent; all of it on the CPU."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

WHY_NOT = "Triton comes with PyTorch for CUDA, and with the extra 'dev' on Linux"


def test_the_kernel_agrees_with_double_precision() -> None:
    """Multi-head and grouped, three types, heads of many sizes, windows, strided queries: within rounding, slot by
    slot, and nothing is read that a slot may not see."""
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 does not work with NumPy from 2.4 on")
    pytest.importorskip("triton", reason=WHY_NOT)
    # In a process of its own: whether Triton interprets is decided when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    script = Path(__file__).with_name("kernel_cases.py")
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 19
    assert all(line.endswith("agrees") for line in lines), lines


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_kernel_fits_into_shared_memory(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for cards that are not here, wide heads in groups take no more than one program may have."""
    pytest.importorskip("triton", reason=WHY_NOT)
    from caption.kernel_compiles import compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # What it is when unset, too, with a warning that this will change.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    lines = compiled(whole)
    assert all(line.endswith(" fits") for line in lines), lines
    assert len(lines) == (210 if whole else 3)
