"""Which models the slot engine drives: by their own forward, or by an adapter and its line."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caption.conftest import Scenes
from caption.slots import remembering, tokens_one_by_one
from transformers import GenerationConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

from etl.caption.model.loading import LoadedModel
from etl.caption.slots.families import FAMILIES, Llava, family_of
from etl.caption.slots.family import Family
from etl.caption.slots.support import differs, why_not
from etl.settings import Settings


@pytest.fixture
def vip_llava(loaded: LoadedModel) -> LoadedModel:
    """Return a model of another family, of random weights: its pictures are seen by several layers at once."""
    demo = loaded.model.config
    config = VipLlavaConfig(
        vision_config=demo.vision_config.to_dict(),
        text_config=demo.text_config.to_dict(),
        image_token_index=demo.image_token_id,
        vision_feature_layers=[-1, -2],
    )
    torch.manual_seed(9)
    model = VipLlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Large enough that different prompts give different words.
                parameter.normal_(0, 0.15)
    model.generation_config = GenerationConfig()
    return dataclasses.replace(loaded, model=model)


@pytest.mark.parametrize("adapter", [None, Llava], ids=["its own forward", "an adapter"])
def test_one_more_family_is_at_most_a_line(
    vip_llava: LoadedModel, scenes: Scenes, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch,
    adapter: type[Family] | None,
) -> None:  # fmt: skip
    """A family that nobody has thought of is driven through its own forward, or by an adapter once it has a line."""
    if adapter is not None:
        monkeypatch.setitem(FAMILIES, vip_llava.model.config.model_type, adapter)
    assert type(family_of(vip_llava, 4.0)) is (adapter or Family)
    assert why_not(vip_llava) is None
    assert differs(vip_llava, 4.0) is None
    limits = {item.id: 3 + item.id for item in scenes.items}
    right = tokens_one_by_one(vip_llava, scenes, limits)
    assert len({tuple(tokens[:3]) for tokens in right.values()}) > 3
    with remembering(vip_llava, scenes, settings(slots=5), limits) as engine:
        engine.caption(scenes.items)
        assert engine.tokens == right


def test_an_adapter_that_is_wrong_is_found_out(vip_llava: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that are not the model's give other tokens, which the trial before captioning notices."""

    class Misplaced(Llava):
        def decode(self, token: torch.Tensor, position: torch.Tensor, *rest: Any, **attention: Any) -> torch.Tensor:
            return super().decode(token, position + 7, *rest, **attention)

    monkeypatch.setitem(FAMILIES, vip_llava.model.config.model_type, Misplaced)
    assert "is not the model's own" in (differs(vip_llava, 4.0) or "")
