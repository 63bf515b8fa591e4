"""Which GPUs caption, decided from what the machine says of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from etl.caption.gpus.plan import WorkerPlan, plan_workers
from etl.caption.gpus.pool import _Worker
from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.model.loading import LoadedModel
from etl.caption.model.weights import stored_dtype, weight_bytes
from etl.errors import ConfigError, ModelError

MakeSettings = Callable[..., Any]
GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes this machine one with so many GPUs of so many bytes, as torch sees them."""

    def make(
        gpus: int, memory: int = 80 * GIB, visible: str | None = None, name: str = "Card", uuids: str = ""
    ) -> None:
        seen = [
            SimpleNamespace(name=name, uuid=uuids and f"{uuids[gpu] * 8}-0000-0000-0000-{uuids[gpu] * 12}",
                            total_memory=memory * (gpu + 1), major=9, minor=0)
            for gpu in range(gpus)
        ]  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_properties", seen.__getitem__)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
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
    machine(2, visible="5, GPU-7f")
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", "5"), WorkerPlan("cuda", "GPU-7f")]


def test_a_gpu_goes_by_its_uuid(machine: Callable[..., None], settings: MakeSettings) -> None:
    """Its UUID holds in whichever order CUDA counts, and when another GPU drops out; an instance keeps its name."""
    names = ["GPU-aaaaaaaa-0000-0000-0000-aaaaaaaaaaaa", "GPU-bbbbbbbb-0000-0000-0000-bbbbbbbbbbbb"]
    machine(2, visible="3,1", uuids="ab")
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", name) for name in names]
    assert plan_workers(settings(device="cuda", gpus="1")) == [WorkerPlan("cuda", names[1])]
    machine(1, visible="MIG-7f", uuids="a", name="NVIDIA A100 MIG 1g.5gb")
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", "MIG-7f")]
    machine(1, uuids="0")
    assert plan_workers(settings(device="auto")) == [WorkerPlan("cuda", "0")]


def test_the_allocator_is_set_before_python_starts(
    machine: Callable[..., None], settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's process is born with the allocator's variable; what the user set himself, by either name, stays."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    machine(1)
    wanted = {"CUDA_VISIBLE_DEVICES": "0", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert [plan.environment() for plan in plan_workers(settings(device="auto"))] == [wanted]
    told: list[dict[str, str]] = []
    monkeypatch.setattr("etl.caption.gpus.pool.ChildProcess", lambda *_, env, **__: told.append(env))
    _Worker(0, plan_workers(settings(device="auto"))[0], {"settings": {}})
    assert told == [wanted]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert plan_workers(settings(device="auto"))[0].environment() == {"CUDA_VISIBLE_DEVICES": "0"}


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
    machine(3, memory=needed // 2)
    assert plan_workers(settings(device="cuda")) == [WorkerPlan("cuda", "0,1,2", spread=True)]
    assert "larger than one GPU; dividing it among 3" in caplog.text
    with pytest.raises(ModelError, match="more than the GPUs have room for"):
        plan_workers(settings(device="cuda", gpus="0"))
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


def test_the_type_of_stored_weights_is_read(tmp_path: Path) -> None:
    """It is that of most values, not of most tensors; weights of no plain type, and none at all, have none."""
    assert stored_dtype(DEMO_CHECKPOINT) == "float16"
    assert stored_dtype(tmp_path) is None
    few = {f"norm.{n}": torch.ones(2) for n in range(3)}
    save_file(few | {"matrix": torch.ones(4, 4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == "bfloat16"
    save_file({"packed": torch.ones(4, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) is None
