"""The slot engine gives the words of `generate()`, whatever shares its slots."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from caption.slots import Remembering, make_scenes, other_architecture, remembering, tokens_one_by_one, with_penalty
from PIL import Image

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.local import choose_engine
from etl.caption.model.loading import LoadedModel, load
from etl.caption.pictures.normalise import Normaliser
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.state import Request, SlotState
from etl.caption.slots.support import differs
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason
from etl.images.working_copies import open_working_copy
from etl.settings import Settings

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Return thirty items with prompts of many lengths."""
    return make_scenes(tmp_path_factory.mktemp("many"), 30, seed=11)


@pytest.mark.parametrize("count", [36, pytest.param(500, marks=pytest.mark.soak)])
def test_many_captions_are_those_of_generate_one_by_one(
    loaded: LoadedModel, settings: MakeSettings, tmp_path: Path, count: int
) -> None:
    """For several numbers of slots and refill patterns, prompts and captions of mixed length: token for token."""
    scenes = make_scenes(tmp_path, count, seed=3)
    rng = random.Random(4)
    limits = {item.id: rng.choice((1, 2, 3, 5, 8, 13, 30)) for item in scenes.items}
    right = tokens_one_by_one(loaded, scenes, limits)
    assert len({len(tokens) for tokens in right.values()}) >= 10
    assert len({len(item.prompt) for item in scenes.items}) > 10

    for slots in (5, 31):
        with remembering(loaded, scenes, settings(slots=slots), limits) as engine:
            outcomes = engine.caption(scenes.items)
            assert len(outcomes) == count
            assert engine.tokens == right, f"{slots} slots"

    def hesitant() -> Iterator[CaptionItem | None]:
        """Give the items as a slow fetch would: a few, then nothing at the moment."""
        for item in scenes.items:
            if rng.random() < 0.2:
                yield None
            yield item

    with remembering(loaded, scenes, settings(slots=8), limits) as engine:
        source = hesitant()
        while len(engine.tokens) < count:
            before = len(engine.tokens)
            # A stop in the middle of captions; what was abandoned comes again, as from the queue.
            for _ in islice(engine.captioner.caption(source, should_stop=lambda: rng.random() < 0.02), 40):
                pass
            done = set(engine.tokens)
            if len(done) == before:
                source = iter([item for item in scenes.items if item.id not in done])
        assert engine.tokens == right, "stopped again and again"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_differs_only_where_rounding_decides(many: Scenes, settings: MakeSettings, dtype: str) -> None:
    """Each token is as good as the one that the model likes best after the same beginning, within four roundings, or
    within what its own batches do to theirs."""
    half = load(settings(dtype=dtype))
    some = Scenes(many.folder, many.items[:8])
    limits = {item.id: 30 for item in some.items}
    alone = tokens_one_by_one(half, some, limits)
    with remembering(half, some, settings(slots=7, dtype=dtype), limits) as engine:
        requests: dict[int, Request] = {}
        admit = engine.captioner._admit

        def noted(slots: Any, group: list[Request]) -> Any:
            requests.update({request.item.id: request for request in group})
            return admit(slots, group)

        engine.captioner._admit = noted
        engine.caption(some.items)
        tokens, normalise = engine.tokens, Normaliser.of(half.processor.image_processor)
    control = Remembering(GenerateCaptioner(half, settings(dtype=dtype, max_new_tokens=30), some.locate))
    control.caption(some.items)
    assert set(tokens) == set(limits) == set(control.tokens)
    same = [tokens[number] == alone[number] for number in tokens]
    assert sum(same) > len(same) / 2

    def worst(request: Request, ids: list[int]) -> float:
        """Return by how much a token of a caption is worse than the best one at its place, as a share of that."""
        sequence = torch.tensor([[*request.ids, *ids]])
        with torch.inference_mode():
            pixels = normalise(request.inputs["pixels"][None], half.dtype)
            logits = half.model(input_ids=sequence, pixel_values=pixels).logits[0, len(request.ids) - 1 : -1].float()
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        return float(((best - chosen) / best.abs()).max())

    allowed = 4 * torch.finfo(half.dtype).eps
    for number, ids in control.tokens.items():
        ended = control.captioner._detokenizer.ended_at(ids)
        allowed = max(allowed, worst(requests[number], ids if ended is None else ids[: ended + 1]))
    assert {number for number, ids in tokens.items() if worst(requests[number], ids) > allowed} == set()


@pytest.mark.parametrize(
    "text",
    [
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "num_hidden_layers": 3},
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    ],
    ids=["grouped", "one-head", "mistral"],
)
def test_other_architectures(tmp_path: Path, many: Scenes, settings: MakeSettings, text: dict[str, object]) -> None:
    """Grouped query heads, and BakLLaVA's Mistral, give the tokens of `generate()`, and are chosen for slots."""
    chosen = settings(model=str(other_architecture(tmp_path / "other", **text)), slots=5)
    model = load(chosen)
    assert type(choose_engine(model, chosen, many.locate, 1024)) is SlotCaptioner
    items = many.items[:15]
    limits = {item.id: 4 + item.id % 20 for item in items}
    right = tokens_one_by_one(model, Scenes(many.folder, items), limits)
    assert len({tuple(tokens) for tokens in right.values()}) > 5
    with remembering(model, many, chosen, limits) as engine:
        engine.caption(items)
        assert engine.tokens == right


def test_a_repetition_penalty_is_generate_s(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """Items with a penalty of their own get the tokens of `generate()` with it, beside others without one."""
    items = [*with_penalty(many.items[:5], 1.3), *many.items[5:10], *with_penalty(many.items[10:13], 2.0)]
    mixed = Scenes(many.folder, items)
    limits = {item.id: 40 for item in items}
    right = tokens_one_by_one(loaded, mixed, limits)
    plain = tokens_one_by_one(loaded, Scenes(many.folder, many.items[:5]), limits)
    assert any(right[number] != tokens for number, tokens in plain.items()), "the penalty changes something"
    with remembering(loaded, mixed, settings(slots=6), limits) as engine:
        engine.caption(items)
        assert engine.tokens == right


def test_padding_instead_of_cropping(many: Scenes, settings: MakeSettings) -> None:
    """With ``pad_to_square`` the model sees whole pictures; words and recipe are others, and those of `generate()`."""
    chosen = settings(pad_to_square=True, slots=6)
    padded, cropped = load(chosen), load(settings())
    items = many.items[:12]
    limits = {item.id: 20 for item in items}
    right = tokens_one_by_one(padded, Scenes(many.folder, items), limits)
    few = tokens_one_by_one(cropped, Scenes(many.folder, items[:6]), limits)
    assert any(right[number] != tokens for number, tokens in few.items())
    with remembering(padded, many, chosen, limits) as engine:
        engine.caption(items)
        assert engine.tokens == right
        assert engine.captioner.recipe.preprocessing["do_pad"] is True
        assert engine.captioner.recipe.sha256 != cropped.recipe(settings(), engine="slots").sha256


def test_a_longer_prompt_gets_longer_slots(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """A prompt that fits no slot waits until longer ones can be made; one that fits no context fails alone."""
    short = [dataclasses.replace(item, prompt="Describe.") for item in many.items[:12]]
    long = dataclasses.replace(many.items[12], prompt="Describe the sky, the ground and the shape. " * 25)
    endless = dataclasses.replace(many.items[13], prompt="Describe the sky. " * 900)
    items = [*short[:6], long, endless, *short[6:]]
    limits = {item.id: 12 for item in items}
    right = tokens_one_by_one(loaded, Scenes(many.folder, [item for item in items if item is not endless]), limits)
    with remembering(loaded, many, settings(slots=4), limits) as engine:
        outcomes = engine.caption(items)
        assert engine.tokens == right
    assert [(o.id, o.slug) for o in outcomes if isinstance(o, ItemFailure)] == [(endless.id, "prompt_too_long")]


def test_bad_items_leave_their_neighbours_alone(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """A missing file, a broken file and a prompt that spells a special token fail alone, each with its class."""
    many.locate("b" * 64).write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    good = many.items[:4]
    bad = [
        CaptionItem(101, "a" * 64, "Describe."),
        CaptionItem(102, "b" * 64, "Describe."),
        CaptionItem(103, good[0].working_sha256, "Describe.</s>"),
        CaptionItem(104, good[0].working_sha256, "<image> Describe."),
    ]
    limits = {item.id: 10 for item in [*good, *bad]}
    right = tokens_one_by_one(loaded, Scenes(many.folder, good), limits)
    with remembering(loaded, many, settings(slots=2), limits) as engine:
        outcomes = engine.caption([bad[0], good[0], bad[1], good[1], bad[2], good[2], bad[3], good[3]])
        assert engine.tokens == right
    assert {o.id: o.slug for o in outcomes if isinstance(o, ItemFailure)} == {
        101: "working_copy", 102: "working_copy", 103: "caption", 104: "caption"
    }  # fmt: skip


def test_the_token_limit_and_the_end_token(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """At the limit the reason is ``length``, flagged; an end token counts and is not shown; without one all are cut."""
    items = [item for item in many.items if item.prompt.endswith("the setting.")][:6]
    limits = {item.id: 3 for item in items[:3]} | {item.id: 40 for item in items[3:]}
    with remembering(loaded, many, settings(slots=4), limits) as engine:
        results = {o.id: o for o in engine.caption(items) if isinstance(o, CaptionResult)}
    for item in items[:3]:
        assert (results[item.id].finish_reason, results[item.id].tokens) == (FinishReason.LENGTH, 3)
        assert "truncated" in results[item.id].flags
    ended = [results[item.id] for item in items[3:] if results[item.id].finish_reason is FinishReason.STOP]
    assert ended
    assert all("</s>" not in result.text and result.tokens > 3 for result in ended)

    endless = dataclasses.replace(loaded, eos=())
    with remembering(endless, many, settings(slots=4, max_new_tokens=50)) as engine:
        outcomes = engine.caption(items)
    assert [(o.tokens, o.finish_reason) for o in outcomes if isinstance(o, CaptionResult)] == [
        (50, FinishReason.LENGTH)
    ] * 6


def test_items_are_pulled_only_a_little_ahead(loaded: LoadedModel, settings: MakeSettings, tmp_path: Path) -> None:
    """What is in flight at a crash is what the slots hold, and the pictures for those that will be free next."""
    scenes = make_scenes(tmp_path, 30, seed=8, pictures=10)
    pulled = 0

    def source() -> Iterator[CaptionItem]:
        nonlocal pulled
        for item in scenes.items:
            pulled += 1
            yield item

    with remembering(loaded, scenes, settings(slots=4, max_new_tokens=30)) as engine:
        captions = engine.captioner.caption(source())
        next(captions)
        assert pulled <= 4 + 16
        sample = engine.captioner.sample()
        assert (sample.slots, sample.captions) == (4, 1)
        assert sample.in_use + sample.waiting + sample.captions <= pulled
        assert len(list(captions)) == 29
        sample = engine.captioner.sample()
        assert (sample.in_use, sample.waiting, sample.captions) == (0, 0, 30)


def test_nothing_is_yielded_after_a_stop(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """A stop between two polls abandons what is unfinished; the next call begins with empty slots."""
    endless = dataclasses.replace(loaded, eos=())
    with remembering(endless, many, settings(slots=4)) as engine:
        polls = iter(range(1000))
        assert engine.caption(many.items, should_stop=lambda: next(polls) >= 3) == []
        assert engine.captioner.sample().in_use == 0
        outcomes = engine.caption(many.items[:5])
    assert sorted(outcome.id for outcome in outcomes) == [item.id for item in many.items[:5]]


def test_a_model_that_slots_cannot_drive(
    tmp_path: Path, many: Scenes, settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A position embedding that grows with the longest sequence is left to `generate()`, with a word."""
    rope = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    chosen = settings(model=str(other_architecture(tmp_path / "rope", **rope)), max_new_tokens=4)
    captioner = choose_engine(load(chosen), chosen, many.locate, 1024)
    assert type(captioner) is GenerateCaptioner
    [record] = caplog.records
    assert record.getMessage().endswith("its position embedding (dynamic) depends on the longest sequence")
    assert len(list(captioner.caption(many.items[:2]))) == 2
    with pytest.raises(Exception, match="longest sequence; use --engine auto or generate"):
        choose_engine(load(chosen), dataclasses.replace(chosen, engine="slots"), many.locate, 1024)


def test_the_trial_finds_a_model_that_is_driven_wrongly(
    loaded: LoadedModel, settings: MakeSettings, many: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the slots would give other words than the model itself, `generate()` captions, and the log says so."""
    assert differs(loaded, 4.0) is None
    advance = "etl.caption.slots.state.SlotState.advance"
    monkeypatch.setattr(advance, lambda _: None)
    reason = differs(loaded, 4.0)
    assert reason is not None
    assert "trial" in reason
    assert type(choose_engine(loaded, settings(), many.locate, 1024)) is GenerateCaptioner


def test_the_engine_is_a_matter_of_the_recipe(loaded: LoadedModel, many: Scenes, settings: MakeSettings) -> None:
    """Slots and `generate()` make captions of different recipes; the number of slots makes no difference."""
    with remembering(loaded, many, settings(slots=2)) as one, remembering(loaded, many, settings(slots=9)) as other:
        assert one.captioner.recipe == other.captioner.recipe
        assert one.captioner.recipe.engine == "slots"
        generate = GenerateCaptioner(loaded, settings(), many.locate).recipe
        assert dataclasses.replace(generate, engine="slots") == one.captioner.recipe


def test_a_picture_that_kills_its_loader_counts_as_a_crash(
    loaded: LoadedModel, many: Scenes, settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is charged a crash, so that the queue tries it again, alone if need be; its neighbours are captioned."""
    bad = many.items[2]

    def deadly(path: Path) -> Image.Image:
        if path == many.locate(bad.working_sha256):
            raise RuntimeError("what ends a process")
        return open_working_copy(path)

    monkeypatch.setattr("etl.caption.pictures.loader_pool.open_working_copy", deadly)
    items = [item for item in many.items if item is bad or item.working_sha256 != bad.working_sha256][:6]
    with remembering(loaded, many, settings(slots=2, max_new_tokens=3)) as engine:
        outcomes = engine.caption(items)
    assert len(engine.tokens) == len(items) - 1
    [failure] = [outcome for outcome in outcomes if isinstance(outcome, ItemFailure)]
    assert (failure.id, failure.slug, failure.crashed) == (bad.id, "feeder_crashed", True)


@pytest.mark.parametrize("off", [0.0, 2.0])
def test_the_trial_is_judged_beside_a_batch(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    """Where batches change a model's logits as much as slots do, slots serve; where they change nothing, not."""
    forward, append_tokens = type(loaded.model).forward, SlotState.append_tokens

    @functools.wraps(forward)
    def batches(model: Any, **named: Any) -> Any:
        out = forward(model, **named)
        out.logits[..., 7] += off if len(out.logits) > 1 else 0.0
        return out

    def second_best(state: SlotState, slots: torch.Tensor, logits: torch.Tensor) -> None:
        # The second-best word is chosen where it is a little worse.
        two = logits.topk(2).values
        close = (two[:, 0] - two[:, 1] < 3.0)[:, None] & (logits == two[:, :1])
        append_tokens(state, slots, torch.where(close, logits - 3.0, logits))

    monkeypatch.setattr(type(loaded.model), "forward", batches)
    assert differs(loaded, 4.0) is None
    monkeypatch.setattr(SlotState, "append_tokens", second_best)
    assert (differs(loaded, 4.0) is None) == (off > 0)
