"""Which GPUs caption, decided from what the machine says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from etl.captioning.checkpoint import DEMO_CHECKPOINT
from etl.captioning.gpus import WorkerPlan, plan_workers, weight_bytes
from etl.captioning.loading import LoadedModel
from etl.errors import ConfigError, ModelError

MakeSettings = Callable[..., Any]
GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes this machine one with so many GPUs of so many bytes."""

    def make(gpus: int, memory: int = 80 * GIB, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr("etl.captioning.gpus.memory_totals", lambda: dict.fromkeys(range(gpus), memory))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def test_no_gpu_no_process(machine: Callable[..., None], settings: MakeSettings) -> None:
    """On the CPU, by choice or for want of a GPU, captions are made in this process."""
    machine(4)
    assert plan_workers(settings(device="cpu")) == []
    machine(0)
    assert plan_workers(settings(device="auto")) == []


def test_each_gpu_gets_a_process_that_sees_it_alone(machine: Callable[..., None], settings: MakeSettings) -> None:
    """All, the named ones or a single device; numbers count among those that the user lets us see."""
    machine(3)
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", name) for name in "012"]
    assert plan_workers(settings(device="cuda", gpus="2,0,2")) == [WorkerPlan("cuda", "2"), WorkerPlan("cuda", "0")]
    assert plan_workers(settings(device="cuda:1")) == [WorkerPlan("cuda", "1")]
    machine(2, visible="5,GPU-7f")
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", "5"), WorkerPlan("cuda", "GPU-7f")]


@pytest.mark.parametrize("chosen", [{"gpus": "0,3"}, {"device": "cuda:9"}])
def test_a_gpu_that_is_not_there(machine: Callable[..., None], settings: MakeSettings, chosen: dict[str, str]) -> None:
    """A number beyond the last GPU is refused before anything is started."""
    machine(2)
    with pytest.raises(ModelError, match=r"was asked for, but there are 2"):
        plan_workers(settings(**{"device": "cuda"} | chosen))


@pytest.mark.parametrize("gpus", ["", "0,", "one", "-1", "0;1"])
def test_gpus_are_numbers(settings: MakeSettings, gpus: str) -> None:
    """Anything but ``all`` or numbers is refused with what is accepted."""
    with pytest.raises(ConfigError, match="must be 'all' or numbers"):
        settings(gpus=gpus)


def test_a_model_larger_than_a_card_is_divided(
    machine: Callable[..., None], settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """One process over all GPUs when one has no room for the weights; one line when all of them have none."""
    needed = weight_bytes(DEMO_CHECKPOINT, "float32")
    machine(3, memory=needed)
    assert plan_workers(settings(device="cuda")) == [WorkerPlan("cuda", "0,1,2", spread=True)]
    assert "larger than one GPU; dividing it among 3" in caplog.text
    with pytest.raises(ModelError, match="more than the GPUs have room for"):
        plan_workers(settings(device="cuda", gpus="1"))
    machine(3, memory=2 * needed)
    assert len(plan_workers(settings(device="cuda"))) == 3


def test_weights_are_measured_by_their_headers(loaded: LoadedModel, tmp_path: Path) -> None:
    """The size is that of all tensors in the type that is asked for; a file without a header is refused."""
    values = sum(tensor.numel() for tensor in loaded.model.state_dict().values())
    assert weight_bytes(DEMO_CHECKPOINT, "float32") == 4 * values
    assert weight_bytes(DEMO_CHECKPOINT, "auto") == 2 * values
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"weights model\.safetensors are corrupt"):
        weight_bytes(tmp_path, "auto")
