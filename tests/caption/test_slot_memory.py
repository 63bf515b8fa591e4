"""What happens when memory runs out: the slot engine goes on with less, and loses and fails nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from caption.slots import Remembering, make_scenes, remembering, tokens_one_by_one
from caption.test_generate import hooked

from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots import capacity
from etl.caption.slots.kv_cache import slot_cache
from etl.caption.slots.state import EngineConfig, Request
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.errors import ModelError

MakeSettings = Callable[..., Any]
LIMIT = 14
FULL = "CUDA out of memory. Tried to allocate 1.00 GiB"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Return twenty-four items."""
    return make_scenes(tmp_path_factory.mktemp("memory"), 24, seed=21)


@pytest.fixture(scope="module")
def right(loaded: LoadedModel, scenes: Scenes) -> dict[int, list[int]]:
    """Return the tokens of `generate()`, at most `LIMIT` of them."""
    return tokens_one_by_one(loaded, scenes, {item.id: LIMIT for item in scenes.items})


def rows_of(kwargs: dict[str, Any]) -> tuple[int, int]:
    """Return rows and tokens of a call of the language model."""
    return kwargs["inputs_embeds"].shape[0], kwargs["inputs_embeds"].shape[1]


def all_right(engine: Remembering, scenes: Scenes, right: dict[int, list[int]]) -> bool:
    """Caption everything; return whether each came out once and as it should."""
    outcomes = engine.caption(scenes.items)
    return len(outcomes) == len(scenes.items) and engine.tokens == right


def test_prefills_become_smaller_first(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Where only two pictures can be prefilled at once, no slot is given up, and each halving is said once."""

    def limit(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        rows, tokens = rows_of(kwargs)
        if tokens > 1 and rows > 2:
            raise torch.OutOfMemoryError(FULL)

    with remembering(loaded, scenes, settings(slots=9, max_new_tokens=LIMIT)) as engine:
        with hooked(loaded.model.model.language_model, limit):
            assert all_right(engine, scenes, right)
        assert engine.captioner.sample().slots == 9
    said = [record.args for record in caplog.records]
    assert said[-1][1] == 2  # type: ignore[index]
    assert len(said) == len(set(said)) <= 3


def test_slots_become_fewer_in_the_middle(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """When decoding itself runs out of memory, the slots are halved and their captions begun anew, each once."""
    steps = 0

    def limit(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        nonlocal steps
        rows, tokens = rows_of(kwargs)
        steps += tokens == 1
        if tokens == 1 and rows > 3 and steps > 20:
            raise torch.OutOfMemoryError(FULL)

    with remembering(loaded, scenes, settings(slots=12, max_new_tokens=LIMIT)) as engine:
        with hooked(loaded.model.model.language_model, limit):
            assert all_right(engine, scenes, right)
        assert engine.captioner.sample().slots == 3
    assert [record.args for record in caplog.records] == [(12, 6), (6, 3)]


def test_fewer_slots_than_wished_at_the_start(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """When the cache cannot be had, it is tried with half the slots, and the model attends as before meanwhile."""

    def scarce(config: Any, where: Any, slots: int, *more: Any) -> Any:
        if slots > 4:
            raise torch.OutOfMemoryError(FULL)
        return slot_cache(config, where, slots, *more)

    monkeypatch.setattr("etl.caption.slots.engine.slot_cache", scarce)
    with remembering(loaded, scenes, settings(slots=16, max_new_tokens=LIMIT)) as engine:
        assert all_right(engine, scenes, right)
        assert engine.captioner.sample().slots == 4


def test_one_picture_that_does_not_fit(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """Where not even one picture can be prefilled in a single slot, it fails as an item and the run goes on."""

    def refuse(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if rows_of(kwargs)[1] > 1:
            raise torch.OutOfMemoryError(FULL)

    with (
        remembering(loaded, scenes, settings(slots=2)) as engine,
        hooked(loaded.model.model.language_model, refuse),
    ):
        outcomes = engine.caption(scenes.items[:3])
    assert [(o.slug, o.retryable, o.message) for o in outcomes if isinstance(o, ItemFailure)] == [
        ("generation", True, FULL)
    ] * 3


def test_a_fault_in_the_model_is_isolated(
    loaded: LoadedModel, scenes: Scenes, right: dict[int, list[int]], settings: MakeSettings
) -> None:
    """When one picture makes the prefill fail, its group is done one by one and only that picture fails."""
    bad = dataclasses.replace(scenes.items[0], id=99, prompt="Describe the fault.")
    faulty = [False]

    def fail(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if rows_of(kwargs)[1] > 1 and faulty[0]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with remembering(loaded, scenes, settings(slots=6, max_new_tokens=LIMIT)) as engine:
        admit = engine.captioner._admit

        def watched(slots: Any, group: Any) -> Any:
            faulty[0] = any(request.item.id == 99 for request in group)
            return admit(slots, group)

        engine.captioner._admit = watched
        with hooked(loaded.model.model.language_model, fail):
            outcomes = engine.caption([*scenes.items[:2], bad, *scenes.items[2:5]])
        assert engine.tokens == {item.id: right[item.id] for item in scenes.items[:5]}
    assert [(o.id, o.slug) for o in outcomes if isinstance(o, ItemFailure)] == [(99, "generation")]


def test_overflow_in_half_precision_is_recomputed(settings: MakeSettings, scenes: Scenes) -> None:
    """Captions whose fp16 logits are not finite are those of float32, flagged, and the fp16 weights come back."""
    half = load(settings(dtype="float16"))
    with torch.no_grad():
        for layer in half.model.model.language_model.layers:
            layer.mlp.down_proj.weight *= 60_000 / float(layer.mlp.down_proj.weight.abs().max())
    before = [parameter.clone() for parameter in half.model.parameters()]
    few = Scenes(scenes.folder, scenes.items[:5])

    with remembering(half, few, settings(dtype="float16", slots=2, max_new_tokens=LIMIT)) as engine:
        results = engine.caption(few.items)

    assert half.model.dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(before, half.model.parameters(), strict=True))
    assert sorted(result.id for result in results) == [item.id for item in few.items]
    assert all(isinstance(result, CaptionResult) and "recomputed" in result.flags for result in results)
    half.model.float()
    wide = dataclasses.replace(half, dtype=torch.float32)
    tokens = tokens_one_by_one(wide, few, {item.id: LIMIT for item in few.items})
    decode = half.processor.tokenizer.decode
    texts = {number: decode(ids, skip_special_tokens=True).strip() for number, ids in tokens.items()}
    assert {result.id: result.text for result in results if isinstance(result, CaptionResult)} == texts


def test_output_that_is_no_number_fails(scenes: Scenes, settings: MakeSettings) -> None:
    """Logits that are NaN in float32 make failures, never empty captions, and do not stop the others."""
    broken = load(settings())
    with torch.no_grad():
        broken.model.lm_head.weight[5] = torch.nan
    with remembering(broken, scenes, settings(slots=2)) as engine:
        outcomes = engine.caption(scenes.items[:3])
    assert [getattr(outcome, "slug", None) for outcome in outcomes] == ["generation"] * 3


class Card:
    """A GPU's memory, as far as choosing slots asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_gib: float, total_gib: float) -> None:
        answer = (round(free_gib * 2**30), round(total_gib * 2**30))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: answer)


def test_slots_follow_the_memory(loaded: LoadedModel, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """More free memory gives more slots, up to a limit; a smaller share, longer slots and a penalty give fewer."""
    on_gpu = dataclasses.replace(loaded, device=torch.device("cuda"))

    def slots(free: float, positions: int = 448, *, penalised: bool = False, **changes: object) -> int:
        Card(monkeypatch, free, 2.0)
        return capacity.choose_slots(on_gpu, settings(**changes), positions, penalised=penalised)

    assert slots(1.9) == capacity.MOST_SLOTS
    assert 1 < slots(1.21) < slots(1.22) < capacity.MOST_SLOTS
    assert slots(1.22, gpu_memory_fraction=0.917) < slots(1.22)
    assert slots(1.22, 896) < slots(1.22)
    assert slots(1.35, penalised=True) < slots(1.35) < capacity.MOST_SLOTS
    assert slots(0.1) == 1
    assert slots(0.1, slots=7) == 7
    # Two of keys and values, 3 layers, 4 heads of 32 values of 4 bytes.
    assert capacity.slot_bytes(loaded, 100, settings(), penalised=False) >= 101 * 2 * 3 * 4 * 32 * 4


def test_slots_have_some_room_and_never_more_than_the_context() -> None:
    """A slot is longer than the longest request so far, so that the next one needs no new engine."""
    assert capacity.max_seq_len_for(886, 4096) == 1024
    assert capacity.max_seq_len_for(886, 900) == 900
    assert capacity.max_seq_len_for(886, None) == 1024


def test_what_a_shape_holds() -> None:
    """A request needs its length, its limit and, if it asks for a penalty, an engine that knows penalties."""
    config = EngineConfig(slots=2, max_seq_len=20, limit=8)
    item, inputs = CaptionItem(1, "", ""), {"pixels": torch.zeros(1)}
    assert config.holds(Request(item, (1,) * 12, inputs, 8))
    assert not config.holds(Request(item, (1,) * 13, inputs, 8))
    assert not config.holds(Request(item, (1,), inputs, 9))
    assert not config.holds(Request(item, (1,), inputs, 8, penalty=1.2))
    assert dataclasses.replace(config, penalised=True).holds(Request(item, (1,), inputs, 8, penalty=1.2))


def test_a_step_that_fails_otherwise_ends_the_run(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """A fault while all slots decode has no culprit: the run ends with one line, and the model is given back."""

    def fail(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if rows_of(kwargs)[1] == 1:
            raise RuntimeError("the kernel is gone")

    with (
        remembering(loaded, scenes, settings(slots=2)) as engine,
        hooked(loaded.model.model.language_model, fail),
        pytest.raises(ModelError, match="while writing captions: the kernel is gone"),
    ):
        engine.caption(scenes.items[:3])
