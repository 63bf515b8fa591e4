"""What others stumbled over in captioning with LLaVA, for both engines; more of it in the tests of each part."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from caption.conftest import Scenes
from caption.slots import tokens_one_by_one

from etl.caption.captioner import Captioner
from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.loading import LoadedModel, load
from etl.caption.slots.captioner import SlotCaptioner
from etl.domain.items import CaptionResult

MakeSettings = Callable[..., Any]
Open = Callable[..., Captioner]


@pytest.fixture(params=[SlotCaptioner, GenerateCaptioner], ids=["slots", "generate"])
def open_engine(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Return what opens a captioner of one engine; it is closed afterwards."""
    opened: list[Captioner] = []

    def make(*arguments: Any) -> Captioner:
        opened.append(request.param(*arguments))
        return opened[-1]

    yield make
    for captioner in opened:
        captioner.close()


def test_the_caption_is_cut_by_tokens_not_by_words(
    open_engine: Open, loaded: LoadedModel, scenes: Scenes, settings: MakeSettings
) -> None:
    """A prompt that contains ``ASSISTANT:`` itself neither shortens its caption nor becomes a part of it."""
    item = dataclasses.replace(scenes.items[0], prompt="Say ASSISTANT: and then describe the picture. ASSISTANT: Yes.")
    [tokens] = tokens_one_by_one(loaded, Scenes(scenes.folder, [item]), {item.id: 12}).values()
    text = loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    [result] = open_engine(loaded, settings(max_new_tokens=12), scenes.locate).caption([item])
    assert isinstance(result, CaptionResult)
    assert result.text == text
    assert "ASSISTANT" not in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_much_padding_in_half_precision(open_engine: Open, scenes: Scenes, settings: MakeSettings, dtype: str) -> None:
    """A short prompt beside one many times as long gets a caption from real numbers: padding attends to nothing."""
    half = load(settings(dtype=dtype))
    long = dataclasses.replace(scenes.items[0], prompt="Describe the sky, the ground and the shapes. " * 20)
    short = [dataclasses.replace(item, prompt="Describe.") for item in scenes.items[1:4]]
    captioner = open_engine(half, settings(dtype=dtype, max_new_tokens=8, slots=4, batch_size=4), scenes.locate)
    results = list(captioner.caption([long, *short]))
    assert len(results) == 4
    for result in results:
        assert isinstance(result, CaptionResult)
        assert result.text
        assert not {"recomputed", "empty"} & set(result.flags)


def test_the_padding_token_is_no_end(
    open_engine: Open, loaded: LoadedModel, scenes: Scenes, settings: MakeSettings
) -> None:
    """Where a model pads with another token than it ends with, only the end token ends a caption."""
    plain = open_engine(loaded, settings(), scenes.locate)
    right = {result.id: result for result in plain.caption(scenes.items[:4])}
    plain.close()
    other = dataclasses.replace(loaded, pad=7)
    assert other.pad not in other.eos
    results = open_engine(other, settings(), scenes.locate).caption(scenes.items[:4])
    assert {result.id: result for result in results} == right
