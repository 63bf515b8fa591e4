"""Captioning through `generate()`: equal to one by one, and unmoved by bad items, memory limits and stops."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from caption.conftest import Scenes
from PIL import Image

from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.generate.guards import FiniteGuard, without_padding
from etl.caption.model.loading import LoadedModel, load
from etl.caption.tokens import PromptEncoder
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason
from etl.settings import Settings

MakeSettings = Callable[..., Settings]


def one_by_one(loaded: LoadedModel, scenes: Scenes, max_new_tokens: int = 40, **more: Any) -> dict[int, str]:
    """Caption the scenes as transformers' documentation does it, each alone and unpadded; ``more`` decides how."""
    texts = {}
    for item in scenes.items:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}]
        prompt = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
        with Image.open(scenes.locate(item.working_sha256)) as picture:
            inputs = loaded.processor(images=picture, text=prompt, return_tensors="pt")
        rows = loaded.model.generate(
            **inputs.to(loaded.model.dtype), do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=loaded.eos[0],
            pad_token_id=loaded.pad, **more,
        )  # fmt: skip
        new = rows[0, inputs["input_ids"].shape[1] :]
        texts[item.id] = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return texts


@pytest.fixture(scope="module")
def oracle(loaded: LoadedModel, scenes: Scenes) -> dict[int, str]:
    """Return the right caption of every scene."""
    return one_by_one(loaded, scenes)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call ``hook(module, args, kwargs)`` before each forward pass of the module."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def split(outcomes: list[CaptionResult | ItemFailure]) -> tuple[dict[int, str], dict[int, ItemFailure]]:
    """Return the texts and the failures by item."""
    texts = {outcome.id: outcome.text for outcome in outcomes if isinstance(outcome, CaptionResult)}
    return texts, {outcome.id: outcome for outcome in outcomes if isinstance(outcome, ItemFailure)}


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_batches_equal_one_by_one(
    batch_size: int, loaded: LoadedModel, scenes: Scenes, oracle: dict[int, str], settings: MakeSettings
) -> None:
    """Captions do not depend on the batch in which a picture was captioned."""
    captioner = GenerateCaptioner(loaded, settings(batch_size=batch_size), scenes.locate)

    outcomes = list(captioner.caption(scenes.items))

    texts, failures = split(outcomes)
    assert (texts, failures) == (oracle, {})
    assert len(set(texts.values())) > 1
    [sample] = captioner.samples()
    assert (sample.captions, sample.in_use) == (len(texts), 0)
    assert sample.tokens == sum(outcome.tokens for outcome in outcomes if isinstance(outcome, CaptionResult))


STRONG = 10.0
"""A repetition penalty that the demo model, which is very sure of its words, gives way to."""


@pytest.fixture(scope="module")
def penalised(loaded: LoadedModel, scenes: Scenes, oracle: dict[int, str]) -> dict[float | None, dict[int, str]]:
    """Return the right caption of every scene, by repetition penalty."""
    return {None: oracle} | {p: one_by_one(loaded, scenes, repetition_penalty=p) for p in (5.0, STRONG)}


@pytest.mark.parametrize("batch_size", [5, 12])
def test_each_item_is_decoded_with_its_own_penalty(
    batch_size: int, loaded: LoadedModel, scenes: Scenes, settings: MakeSettings,
    penalised: dict[float | None, dict[int, str]],
) -> None:  # fmt: skip
    """In mixed batches each caption is what `generate()` gives alone with that item's repetition penalty."""
    penalties = list(penalised)
    items = [dataclasses.replace(i, repetition_penalty=penalties[i.id % 3]) for i in scenes.items]
    captioner = GenerateCaptioner(loaded, settings(batch_size=batch_size), scenes.locate)

    texts, failures = split(list(captioner.caption(items)))

    assert (texts, failures) == ({i.id: penalised[i.repetition_penalty][i.id] for i in items}, {})
    assert len({tuple(found.values()) for found in penalised.values()}) == 3, "a penalty changes no word"


def test_padding_bears_no_penalty(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """Where padding is the token that ends a caption, the rows that are padded end where they would alone."""
    tokenizer = loaded.processor.tokenizer
    # A word that competes with others stands in for the end of the sequence, of which the model is too sure.
    end = "\u0120background"
    early = dataclasses.replace(loaded, eos=(tokenizer.convert_tokens_to_ids(end),), pad=tokenizer.eos_token_id)
    expected = one_by_one(early, scenes, repetition_penalty=STRONG)
    pad = tokenizer.pad_token
    tokenizer.pad_token = end
    try:
        captioner = GenerateCaptioner(early, settings(batch_size=12), scenes.locate)
        items = [dataclasses.replace(item, repetition_penalty=STRONG) for item in scenes.items]
        texts, failures = split(list(captioner.caption(items)))
    finally:
        tokenizer.pad_token = pad
    assert failures == {}
    assert texts == {item: text.partition(" background")[0] for item, text in expected.items()}
    assert any("background" in text for text in expected.values())


def test_padding_gives_way_to_what_the_prompt_says() -> None:
    """Each row's padding becomes its last token; where nothing is padded nothing changes."""
    ids = torch.tensor([[2, 2, 7, 8], [5, 6, 7, 9]])
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert without_padding(ids, attention).tolist() == [[8, 8, 7, 8], [5, 6, 7, 9]]


def test_penalties_survive_a_batch_that_is_done_in_parts(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings
) -> None:
    """After memory has run out the smaller batches are decoded as the whole one would have been."""

    def limit(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    items = [dataclasses.replace(item, repetition_penalty=STRONG) for item in scenes.items[:5]]
    captioner = GenerateCaptioner(loaded, settings(batch_size=5), scenes.locate)
    with hooked(loaded.model, limit):
        texts, failures = split(list(captioner.caption(items)))
    alone = one_by_one(loaded, Scenes(scenes.folder, scenes.items[:5]), repetition_penalty=STRONG)
    assert (texts, failures) == (alone, {})


def test_bad_items_leave_their_neighbours_alone(
    loaded: LoadedModel, scenes: Scenes, oracle: dict[int, str], settings: MakeSettings
) -> None:
    """A missing file, a broken file, an endless prompt and one with a special token fail alone, each with its class."""
    scenes.locate("b" * 64).write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    good = scenes.items[:3]
    bad = [
        CaptionItem(101, "a" * 64, "Describe."),
        CaptionItem(102, "b" * 64, "Describe."),
        CaptionItem(103, good[0].working_sha256, "word " * 2000),
        CaptionItem(104, good[0].working_sha256, "Describe.</s>"),
    ]
    captioner = GenerateCaptioner(loaded, settings(batch_size=12), scenes.locate)

    texts, failures = split(list(captioner.caption([bad[0], good[0], bad[1], good[1], bad[2], bad[3], good[2]])))

    assert texts == {item.id: oracle[item.id] for item in good}
    assert {id_: (failure.slug, failure.retryable) for id_, failure in failures.items()} == {
        101: ("working_copy", True),
        102: ("working_copy", True),
        103: ("prompt_too_long", False),
        104: ("caption", False),
    }


def test_a_batch_of_bad_items_only(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """A batch in which nothing can be captioned yields its failures and the run goes on."""
    items = [CaptionItem(1, "a" * 64, "x"), CaptionItem(2, "a" * 64, "x"), dataclasses.replace(scenes.items[0], id=3)]
    outcomes = list(GenerateCaptioner(loaded, settings(batch_size=2), scenes.locate).caption(items))
    assert [type(outcome) for outcome in outcomes] == [ItemFailure, ItemFailure, CaptionResult]


def test_token_limit(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """At the token limit the finish reason is ``length``, the count is the limit, and the caption is flagged."""
    captioner = GenerateCaptioner(loaded, settings(max_new_tokens=3), scenes.locate)
    (result,) = captioner.caption(scenes.items[:1])
    assert isinstance(result, CaptionResult)
    assert (result.finish_reason, result.tokens) == (FinishReason.LENGTH, 3)
    assert "truncated" in result.flags
    assert result.text == one_by_one(loaded, Scenes(scenes.folder, scenes.items[:1]), 3)[result.id]


def test_end_of_sequence_is_counted_and_not_shown(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """A row that ends early is ``stop``, counts its end token, and keeps no padding while its neighbours go on."""
    items = scenes.items[:3]
    with Image.open(scenes.locate(items[0].working_sha256)) as picture:
        text = PromptEncoder(loaded.processor, 12, None).encode(items[0].prompt).text
        inputs = loaded.processor(images=picture, text=text, return_tensors="pt")
    rows = loaded.model.generate(**inputs, generation_config=loaded.generation_config(12))
    new = rows[0, inputs["input_ids"].shape[1] :].tolist()
    # The model's third token stands in for the end of the sequence, so that the row is sure to end there.
    early = dataclasses.replace(loaded, eos=(new[2],))

    outcomes = list(GenerateCaptioner(early, settings(max_new_tokens=12), scenes.locate).caption(items))

    result = next(outcome for outcome in outcomes if outcome.id == items[0].id)
    end = new.index(new[2])
    assert isinstance(result, CaptionResult)
    assert (result.finish_reason, result.tokens) == (FinishReason.STOP, end + 1)
    assert result.text == loaded.processor.tokenizer.decode(new[:end], skip_special_tokens=True).strip()


def test_items_are_pulled_lazily(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """At the first result no more than the next batch has been taken, so that little is in flight at a crash."""
    pulled = []

    def source() -> Iterator[CaptionItem]:
        for item in scenes.items:
            pulled.append(item.id)
            yield item

    captions = GenerateCaptioner(loaded, settings(batch_size=2, max_new_tokens=2), scenes.locate).caption(source())
    next(captions)
    assert len(pulled) == 4
    assert len(list(captions)) == 11


def test_stop_abandons_what_is_unfinished(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """A stop between two tokens ends the generation, and neither that batch nor the next is yielded or failed."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    # The end token is one that is never generated first, so no row is finished when the stop comes.
    endless = dataclasses.replace(loaded, eos=(loaded.pad,), pad=loaded.pad)
    captioner = GenerateCaptioner(endless, settings(batch_size=4), scenes.locate)
    with hooked(loaded.model, count):
        outcomes = list(captioner.caption(scenes.items, should_stop=lambda: steps >= 5))
    assert outcomes == []
    assert steps == 5


def test_stop_keeps_what_is_finished(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """Results before the stop are yielded, and nothing is pulled after it."""
    captioner = GenerateCaptioner(loaded, settings(batch_size=2, max_new_tokens=2), scenes.locate)
    outcomes: list[CaptionResult | ItemFailure] = []
    source = iter(scenes.items)
    for outcome in captioner.caption(source, should_stop=lambda: bool(outcomes)):
        outcomes.append(outcome)
    assert [outcome.id for outcome in outcomes] == [1, 2]
    assert next(source).id == 5


def test_out_of_memory_halves_the_batch(
    loaded: LoadedModel, scenes: Scenes, oracle: dict[int, str], settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """When only two pictures fit, all are captioned, none is failed, and each halving is logged once."""

    def limit(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    captioner = GenerateCaptioner(loaded, settings(batch_size=9), scenes.locate)
    with hooked(loaded.model, limit), caplog.at_level(logging.WARNING):
        texts, failures = split(list(captioner.caption(scenes.items)))

    assert (texts, failures) == (oracle, {})
    assert captioner.batch_size == 2
    assert [record.args for record in caplog.records] == [(9, 5), (5, 3), (3, 2)]


def test_out_of_memory_with_one_picture(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """A picture that does not fit alone fails; it does not loop."""

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with hooked(loaded.model, refuse):
        outcomes = list(GenerateCaptioner(loaded, settings(), scenes.locate).caption(scenes.items[:2]))
    assert [(outcome.slug, outcome.message) for outcome in outcomes if isinstance(outcome, ItemFailure)] == [
        ("generation", "CUDA out of memory.")
    ] * 2


def test_a_fault_in_the_model_is_isolated(
    loaded: LoadedModel, scenes: Scenes, oracle: dict[int, str], settings: MakeSettings
) -> None:
    """When one picture makes the model fail, its batch is done again one by one and only that picture fails."""
    Image.new("RGB", (64, 64)).save(scenes.locate("c" * 64))

    def fail_on_black(_: Any, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (pixels,) = [value for value in (*arguments, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if any(float(picture.std()) < 0.3 for picture in pixels):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    items = [*scenes.items[:2], CaptionItem(99, "c" * 64, "Describe."), *scenes.items[2:4]]
    captioner = GenerateCaptioner(loaded, settings(batch_size=5), scenes.locate)
    with hooked(loaded.model.model.vision_tower, fail_on_black):
        texts, failures = split(list(captioner.caption(items)))

    assert texts == {item.id: oracle[item.id] for item in scenes.items[:4]}
    assert [(f.id, f.slug, f.retryable) for f in failures.values()] == [(99, "generation", True)]
    assert captioner.batch_size == 5


def test_overflow_in_half_precision_is_recomputed(scenes: Scenes, settings: MakeSettings) -> None:
    """Captions whose fp16 logits are not finite are those of float32, flagged, and the fp16 weights come back."""
    half = load(settings(dtype="float16"))
    with torch.no_grad():
        for layer in half.model.model.language_model.layers:
            # Finite weights close to float16's limit of 65504, whose products are not.
            layer.mlp.down_proj.weight *= 60_000 / float(layer.mlp.down_proj.weight.abs().max())
    before = [parameter.clone() for parameter in half.model.parameters()]
    subset = Scenes(scenes.folder, scenes.items[:3])

    results = list(GenerateCaptioner(half, settings(dtype="float16"), scenes.locate).caption(subset.items))

    assert half.model.dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(before, half.model.parameters(), strict=True))
    assert all(isinstance(result, CaptionResult) and "recomputed" in result.flags for result in results)
    half.model.float()
    assert split(results)[0] == one_by_one(half, subset)


def test_output_that_is_no_number_fails(scenes: Scenes, settings: MakeSettings) -> None:
    """Logits that are NaN in float32 make failures, never empty captions."""
    broken = load(settings())
    with torch.no_grad():
        broken.model.lm_head.weight[5] = torch.nan
    outcomes = list(GenerateCaptioner(broken, settings(), scenes.locate).caption(scenes.items[:2]))
    assert [getattr(outcome, "slug", None) for outcome in outcomes] == ["generation", "generation"]


def test_ended_rows_are_not_judged() -> None:
    """A row that has ended may give NaN beside its neighbours; a live one is marked for good and ended."""
    guard = FiniteGuard((2,), torch.device("cpu"))
    prompt_and_new = torch.tensor([[2, 9, 9, 5, 2], [2, 9, 9, 5, 6], [2, 9, 9, 5, 6]])
    guard(prompt_and_new[:, :3], torch.zeros(3, 10))
    assert guard.prompt_length == 3
    scores = torch.zeros(3, 10)
    scores[0, 1] = scores[1, 1] = torch.nan
    ended = guard(prompt_and_new, scores)
    guard(prompt_and_new, torch.zeros(3, 10))
    assert guard.overflowed is not None
    assert guard.overflowed.tolist() == [False, True, False]
    assert (int(ended[1].argmax()), bool(ended[1].isfinite().sum() == 1)) == (2, True)
    assert torch.equal(ended[2], scores[2])


def test_nothing_is_printed(
    loaded: LoadedModel, scenes: Scenes, settings: MakeSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even with transformers' warnings on, neither loading nor captioning writes to the terminal."""
    load(settings())
    transformers.logging.set_verbosity_warning()
    try:
        list(GenerateCaptioner(loaded, settings(max_new_tokens=4), scenes.locate).caption(scenes.items[:3]))
    finally:
        transformers.logging.set_verbosity_error()
    assert capfd.readouterr() == ("", "")


def test_recipe_is_what_decides_the_words(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """The batch size leaves the recipe as it is; token limit, crop and working copies' size do not."""
    plain = GenerateCaptioner(loaded, settings(), scenes.locate).recipe
    assert plain == GenerateCaptioner(loaded, settings(batch_size=2), scenes.locate).recipe
    assert plain.source.startswith("demo@sha256:")
    others = [settings(max_new_tokens=41), settings(max_aspect=2.0), settings(longest_edge=512)]
    hashes = {GenerateCaptioner(loaded, other, scenes.locate).recipe.sha256 for other in others}
    assert len(hashes | {plain.sha256}) == 4


def test_close_twice(loaded: LoadedModel, scenes: Scenes, settings: MakeSettings) -> None:
    """Closing again is harmless."""
    captioner = GenerateCaptioner(loaded, settings(), scenes.locate)
    captioner.close()
    captioner.close()
