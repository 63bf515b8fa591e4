"""The decoding kernel is tried before it is used; whatever stops it costs one line and PyTorch's attention decodes."""

import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import pytest
import torch
from caption.conftest import Scenes
from caption.cuda_stand_in import StandIn

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.local import choose_engine
from etl.caption.model.loading import LoadedModel
from etl.caption.slots import kernel_check
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.kernel_check import exact_attention, probe, usable_kernel
from etl.domain.items import CaptionResult, ItemFailure
from etl.errors import ModelError
from etl.settings import Settings

MakeSettings = Callable[..., Settings]
CPU = torch.device("cpu")


class OutOfResources(Exception):
    """What Triton raises for too much shared memory; like all its errors, it is no RuntimeError."""


STOPS = (
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore"),
    OSError(30, "Read-only file system", "/root/.triton/cache"),
    OutOfResources("out of resource: shared memory, Required: 141312, Hardware limit: 101376"),
    torch.OutOfMemoryError("CUDA out of memory"),
)


class Kernels:
    """Stands in for the module of the Triton kernel."""

    BLOCK = 64

    def __init__(self, decode_attention: Callable[..., torch.Tensor]) -> None:
        self.decode_attention = decode_attention


def exact(query: Any, *arguments: Any) -> torch.Tensor:
    """Be a kernel that is right."""
    return exact_attention(query, *arguments).to(query.dtype)


@pytest.fixture(autouse=True)
def tried_anew() -> None:
    """Let each test try the kernel, which is done once a process."""
    usable_kernel.cache_clear()


def place(monkeypatch: pytest.MonkeyPatch, kernels: object) -> None:
    """Put a module in the place of the kernel's."""
    monkeypatch.setitem(sys.modules, "etl.caption.slots.decode_kernel", kernels)


@pytest.mark.parametrize("stop", STOPS, ids=["compiler", "cache", "resources", "memory"])
def test_what_stops_the_kernel_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, stop: Exception) -> None:
    """No compiler, a cache that cannot be written, too little shared memory, none at all: a reason, never an error."""

    def fail(*_: Any) -> Any:
        raise stop

    place(monkeypatch, Kernels(fail))
    reason = probe(CPU, heads=4, kv_heads=2, dim=32)
    assert reason is not None and reason.startswith(f"{type(stop).__name__}: ") and "\n" not in reason


def test_results_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is right serves in each type; one that is a little off, or gives NaN, or is missing does not."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        place(monkeypatch, Kernels(exact))
        assert probe(CPU, dtype, heads=4, kv_heads=2, dim=80) is None
        place(monkeypatch, Kernels(lambda *given: exact(*given) * (1 + 40 * torch.finfo(given[0].dtype).eps)))
        assert "off by" in str(probe(CPU, dtype, heads=4, kv_heads=2, dim=80))
    place(monkeypatch, Kernels(lambda *given: exact(*given) * torch.nan))
    assert "off by" in str(probe(CPU, heads=2, kv_heads=2, dim=32))
    place(monkeypatch, None)
    assert "decode_kernel" in str(probe(CPU))


def test_slots_go_on_without_the_kernel(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """With ``auto`` on a GPU whose kernel cannot be compiled the slots caption, with one line and the right words."""
    caplog.set_level(logging.WARNING)
    chosen = settings(slots=3, feeders=0, max_new_tokens=5)
    few = scenes.items[:4]
    right = {o.id: o.text for o in GenerateCaptioner(loaded, chosen, scenes.locate).caption(few) if is_caption(o)}
    StandIn().put(monkeypatch)
    called = []

    def broken(*given: Any) -> torch.Tensor:
        called.append(given)
        raise OutOfResources("out of resource: shared memory")

    for kernel, lines in ((broken, 1), (exact, 0)):
        usable_kernel.cache_clear()
        caplog.clear()
        place(monkeypatch, Kernels(kernel))
        captioner = choose_engine(loaded, chosen, scenes.locate, 1024)
        assert type(captioner) is SlotCaptioner
        assert {o.id: o.text for o in captioner.caption(few) if is_caption(o)} == right
        captioner.close()
        assert len([record for record in caplog.records if "Triton" in record.getMessage()]) == lines
    assert len(called) == 1


def is_caption(outcome: CaptionResult | ItemFailure) -> TypeGuard[CaptionResult]:
    """Return whether an outcome is a caption."""
    return isinstance(outcome, CaptionResult)


@pytest.mark.parametrize("fault", [*STOPS, ZeroDivisionError("no")], ids=lambda fault: type(fault).__name__)
def test_a_trial_that_fails_leaves_it_to_generate(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, fault: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Whatever the trial of a few words meets, ``auto`` captions with `generate()`, and the log says why."""

    def fail(*_: Any) -> Any:
        raise fault

    monkeypatch.setattr("etl.caption.slots.support.differs", fail)
    assert type(choose_engine(loaded, settings(), scenes.locate, 1024)) is GenerateCaptioner
    assert str(fault).splitlines()[0] in caplog.text
    with pytest.raises(ModelError, match="the slot engine cannot drive demo: the trial"):
        choose_engine(loaded, dataclasses.replace(settings(), engine="slots"), scenes.locate, 1024)


def test_the_kernel_is_tried_once() -> None:
    """A process tries a model's kernel once, and says once that it does not serve."""
    assert kernel_check.usable_kernel(CPU, torch.float16, 2, 2, 16) is None
    assert kernel_check.usable_kernel(CPU, torch.float16, 2, 2, 16) is None
    assert usable_kernel.cache_info().misses == 1
