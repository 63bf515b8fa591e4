"""What is tried of a device before captions are made on it, on the CPU: that it finds what it is for."""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig

from etl.caption.gpus import checks as gpu_checks
from etl.caption.gpus import report as gpu_report
from etl.caption.gpus.checks import Finding, check_attention, check_device, check_engine, check_kernel, fault_at_start
from etl.caption.gpus.roofline import Shapes
from etl.caption.local import choose_engine
from etl.caption.model.loading import LoadedModel
from etl.caption.slots import kv_cache as slot_cache
from etl.caption.slots import state as slot_state
from etl.errors import ModelError

MakeSettings = Callable[..., Any]

CPU = torch.device("cpu")
LLAVA = LlavaConfig()


@pytest.fixture(autouse=True)
def demo(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trials use the model that is loaded already."""
    monkeypatch.setattr(gpu_checks, "load", lambda _: loaded)


def test_a_sound_device(loaded: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is tried, nothing is found, and the log has it in one line."""
    caplog.set_level(logging.INFO)
    found = {one.name: one for one in check_device(CPU, torch.float32, LLAVA.text_config)}
    assert list(found) == ["kernel", "slots", "slots, penalised", "allocator", "attention"]
    assert {one.verdict for one in found.values()} == {"ok", "note"}
    assert found["slots"].detail == "36 tokens of 3 captions are those of generate()"
    assert found["slots, penalised"] == dataclasses.replace(found["slots"], name="slots, penalised")
    assert fault_at_start(loaded) is None
    assert len([text for text in caplog.messages if text.startswith("tried cpu in ")]) == 1


def test_a_penalty_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a penalty the engine still agrees; with one it does not, and the place is named."""
    monkeypatch.setattr(slot_state, "penalise", lambda scores, *_: scores)
    plain, penalised = check_engine(CPU, torch.float32)
    assert plain.verdict == "ok"
    assert penalised.verdict == "fail" and "of a trial caption is not that of generate()" in penalised.detail


def test_attention_over_other_slots_words_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that attends to a position too many writes other words than the model."""
    right = slot_state.SlotState.next_position

    def wrong(state: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        place, position, lengths = right(state)
        return place, position, lengths // 2 + 1

    monkeypatch.setattr(slot_state.SlotState, "next_position", wrong)
    assert [one.verdict for one in check_engine(CPU, torch.float32)] == ["fail", "fail"]


def test_an_engine_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the trial raises is said in one line; nothing is raised."""

    def breaks(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    monkeypatch.setattr(slot_cache.SlotLayer, "update", breaks)
    for one in check_engine(CPU, torch.float32):
        assert (one.verdict, one.detail) == ("fail", "RuntimeError: operation not permitted when stream is capturing")


def test_a_faulty_device_is_captioned_without_slots(
    loaded: LoadedModel, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a GPU's start a trial that fails makes way for `generate()`, with its reason; slots alone are refused."""
    monkeypatch.setattr(gpu_checks, "check_device", lambda *_: [Finding("slots", "fail", "token 3 is another")])
    on_gpu = dataclasses.replace(loaded, device=torch.device("cuda"))
    captioner = choose_engine(on_gpu, settings(), Path, 1024)
    assert captioner.recipe.engine == "generate"
    assert "captioning demo with generate(), not with slots: slots: token 3 is another" in caplog.text
    with pytest.raises(ModelError, match="cannot drive demo: slots: token 3 is another"):
        choose_engine(on_gpu, settings(engine="slots"), Path, 1024)


def test_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention that PyTorch takes is named; the kernel is ours where it agrees, and its reason where not."""
    found = check_attention(CPU, torch.float32, LLAVA.text_config, kernel=True)
    assert found.verdict == "ok" and found.detail.endswith("decoding through the decoding kernel")
    assert "prefill through" in found.detail
    for reason, verdict in ((None, "ok"), ("RuntimeError: Failed to find C compiler", "note")):
        monkeypatch.setattr(gpu_checks, "probe", lambda *_, reason=reason, **__: reason)
        kernel = check_kernel(torch.device("cuda"), torch.float16, LLAVA.text_config)
        assert kernel.verdict == verdict
        assert (reason or "agrees with double precision") in kernel.detail


def test_what_is_to_be_expected(settings: MakeSettings) -> None:
    """A report ends with a rate and the hours for what is to do; a model that is not here is taken for LLaVA-1.5-7B."""
    said = {one.name: one.detail for one in gpu_report.report(settings(), 10**6)}
    assert "captions/s of 20 tokens expected (estimated" in said["speed"]
    assert re.search(r"; 1,000,000 to do: \d+\w", said["speed"])
    first = next(iter(gpu_report.report(settings(model="./none"), 0)))
    assert first.name == "model" and first.detail.endswith("what follows is for LLaVA-1.5-7B")


@pytest.mark.parametrize(
    ("gib", "fits"),
    [(141, "room for 225 slots of 960"), (24, "room for 11 slots of 960"), (14, "no room for a single caption")],
)
def test_the_slots_that_fit(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, gib: int, fits: str) -> None:
    """Free memory less the weights, which need not be there, gives the slots; none is a failure."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gib * 10**9, gib * 10**9))
    model = gpu_report._Model(LLAVA, torch.float16, None)
    shapes = Shapes.of(LLAVA)
    found, slots = gpu_report._memory(settings(max_new_tokens=200), torch.device("cuda"), model, shapes)
    assert "weights 13.2 GiB as float16" in found.detail
    assert fits in found.detail
    assert (slots == 0) == (found.verdict == "fail")
