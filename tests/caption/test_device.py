"""Which device captions, and what is said of a GPU that is there and cannot be used; nvidia-smi and /dev stand in."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import etl.gpu
from etl.caption.gpus.plan import plan_workers
from etl.caption.model.device import choose_device, choose_dtype, why_unusable
from etl.caption.model.loading import load
from etl.errors import ConfigError, ModelError

MakeSettings = Callable[..., Any]

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
LARGE = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Return what makes this a machine whose driver's tool says this, with these device files, and whose torch sees no
    GPU.
    """
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(etl.gpu, "NODES", tmp_path)

    def make(said: str = "", *, nodes: int = 1, cuda: str | None = "13.0") -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit 1\n")
        tool.chmod(0o755)
        for number in range(nodes):
            (tmp_path / f"nvidia{number}").touch()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", f"2.11.0+{'cpu' if cuda is None else 'cu' + cuda.replace('.', '')}")
        monkeypatch.setattr(torch.cuda, "init", lambda: fail("CUDA unknown error\nat line 3"))

    return make


def fail(message: str) -> None:
    raise RuntimeError(message)


def card(driver: str = "580.65", mig: str = "Disabled") -> str:
    return f"0, {UUID}, NVIDIA H200, {driver}, {mig}"


@pytest.mark.parametrize(
    ("said", "cuda", "expected"),
    [
        (card(), None, r"H200, driver 580\.65, is there but PyTorch 2\.11\.0\+cpu .* knows no CUDA; .*whl/cu130"),
        (card("550.90"), None, r"knows no CUDA; `.*pip install .*whl/cu126`"),
        (
            card("550.90"),
            "13.0",
            r"2\.11\.0\+cu130 .* CUDA 13\.0 asks for driver 580 or later; `.*pip .*/cu126`",
        ),
        (card("470.1"), "12.6", r"CUDA 12\.6 asks for driver 525 or later; update the driver to 580"),
        (card(mig="Enabled"), "13.0", r"MIG mode, without an instance .*; make one \(`nvidia-smi mig"),
        ("Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.", "13.0", r"GPU is lost.*Xid"),
        ("No devices were found", "13.0", r"a GPU, is there .*No devices were found; look for Xid in `dmesg`"),
        (card(), "13.0", r"CUDA unknown error; try `python -c"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error_with_its_cure(
    machine: Callable[..., None], settings: MakeSettings, said: str, cuda: str | None, expected: str
) -> None:
    """It names driver and build of PyTorch, and apart the cure, before anything is loaded; ``--device cpu`` goes on."""
    machine(said, cuda=cuda)
    for chosen in ("auto", "cuda", "cuda:0"):
        for begin in (plan_workers, load):
            with pytest.raises(ModelError) as caught:
                begin(settings(model=LARGE, device=chosen))
            said = f"{caught.value}; {caught.value.cure}"
            assert re.search(expected, said) and "\n" not in said
            assert caught.value.cure.endswith("or use --device cpu")
    assert choose_device("cpu", LARGE) == torch.device("cpu")
    assert plan_workers(settings(model=LARGE, device="cpu")) == []


def test_the_demo_goes_on_without_the_gpu(
    machine: Callable[..., None], settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The demo's model is quick on the CPU: what is wrong with the GPU is only said, unless it was asked for."""
    machine(card("550.90"))
    assert plan_workers(settings(device="auto")) == []
    assert "asks for driver 580" in caplog.text
    with pytest.raises(ModelError, match="asks for driver 580"):
        choose_device("cuda", "demo")


def test_device_files_that_may_not_be_opened(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission the file and the groups are named; one that is dead asks for a look at the kernel's log."""
    machine(card())
    refused: list[OSError] = [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(refused[0]))
    assert "may not open" in str(why_unusable()) and "nvidia0; ask for access" in str(why_unusable())
    refused.pop(0)
    assert "cannot be opened (Input/output error); look for Xid" in str(why_unusable())


def test_what_the_user_hides_is_not_there(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden GPUs are no trouble, a name that fits none is, and neither is a machine that has no GPU."""
    machine(card())
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert why_unusable() is None
        assert choose_device("auto", LARGE) == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert "CUDA_VISIBLE_DEVICES=4 names none of its GPUs" in str(why_unusable())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for path in Path(etl.gpu.NODES).glob("nvidia?"):
        path.unlink()
    machine("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", nodes=0)
    assert why_unusable() is None
    with pytest.raises(ModelError, match="'cuda:1' was asked for, but no GPU was found here; use --device cpu"):
        choose_device("cuda:1", LARGE)


def test_the_tool_s_words_are_a_stranger_s(machine: Callable[..., None]) -> None:
    """What the driver's tool prints is shown as one harmless line of bounded length."""
    machine("\x1b[2J\u202e" + "GPU is lost " * 200)
    said = str(why_unusable())
    assert "\\x1b" in said and "\x1b" not in said and "\u202e" not in said
    assert len(said) < 600


def test_a_gpu_that_is_too_old_for_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for which the build holds no code, where the first kernel would fail, is refused with one that does."""
    gpu = SimpleNamespace(name="Tesla V100", major=7, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_90"])
    with pytest.raises(ModelError, match=r"V100 has compute capability 7\.0, for which .* has no code\ntry .*cu126"):
        choose_device("auto", LARGE)
    for gpu.major, gpu.minor in ((7, 5), (8, 6), (9, 0), (12, 0)):
        assert choose_device("auto", LARGE).type == "cuda"
    with pytest.raises(ModelError, match="there are 1"):
        choose_device("cuda:1", LARGE)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("gpu", "did you mean cuda?"), ("cude", "did you mean cuda?"), ("CPU", "did you mean cpu?"),
                        ("cuda:x", "did you mean cuda?"), ("tpu", ""), ("", "")],
)  # fmt: skip
def test_unknown_devices(settings: MakeSettings, wrong: str, hint: str) -> None:
    """A device that nobody knows is a wrong setting, with the nearest name and all of them."""
    with pytest.raises(ConfigError, match="it must be one of auto, cpu, cuda, mps or cuda:N") as caught:
        settings(device=wrong)
    assert hint in str(caught.value)


def test_mps_is_looked_for(settings: MakeSettings) -> None:
    """Apple's GPU is refused where there is none, before a model is loaded."""
    if torch.backends.mps.is_available():
        pytest.skip("needs a machine without an Apple GPU")
    with pytest.raises(ModelError, match=r"'mps' was asked for, but .* finds no Apple GPU"):
        load(settings(device="mps"))


@pytest.mark.parametrize(
    ("stored", "on_gpu"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float16)],
)
def test_the_number_format_follows_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored: torch.dtype,
    on_gpu: torch.dtype,
) -> None:  # fmt: skip
    """On a GPU weights stored as bfloat16 stay so and all others become float16; on the CPU float32; a wish counts."""
    save_file({"weight": torch.ones(2, 2, dtype=stored)}, tmp_path / "model.safetensors")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    knows = [True]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows[0] or including_emulation)
    assert choose_dtype("auto", gpu, tmp_path) is on_gpu
    assert choose_dtype("auto", cpu, tmp_path) is torch.float32
    assert choose_dtype("bfloat16", cpu, tmp_path) is torch.bfloat16
    assert not caplog.messages
    knows[0] = False
    assert choose_dtype("auto", gpu, tmp_path) is torch.float16
    assert len(caplog.messages) == (stored is torch.bfloat16)
