"""The model that stands in for weights that are not at hand."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.caption.inputs import photographs, prompts_of, read_records
from benchmarks.caption.random_llava import SIZES, build, build_processor, config_of, train_tokenizer
from etl.caption.gpus.roofline import Shapes
from etl.caption.model.loading import LoadedModel
from etl.caption.tokens import PromptEncoder

PROMPTS = prompts_of(read_records(None))


@pytest.fixture(scope="module")
def thin() -> LoadedModel:
    """Return the smallest model, in float32."""
    return build(SIZES["thin"], torch.device("cpu"), torch.float32, [f"USER: \n{prompt}" for prompt in PROMPTS])


def test_a_model_made_on_the_device_computes_what_an_ordinary_one_does(thin: LoadedModel) -> None:
    """Weights that are put into a model made by transformers itself give the same logits: no buffer is undefined."""
    ordinary = LlavaForConditionalGeneration(thin.model.config).eval()
    ordinary.load_state_dict(thin.model.state_dict())
    inputs = thin.processor(images=next(photographs(1)), text="USER: <image>\nWhat?", return_tensors="pt")
    with torch.inference_mode():
        mine, its = (model(**inputs).logits for model in (thin.model, ordinary))
    assert torch.equal(mine, its)
    assert mine.isfinite().all() and mine.std() > 0.1


def test_special_tokens_are_never_the_likeliest(thin: LoadedModel) -> None:
    """Their rows of the head are zero, so a caption cannot end before its length."""
    tokenizer = thin.processor.tokenizer
    special = tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    assert thin.model.lm_head.weight[special].count_nonzero() == 0
    assert thin.eos == (thin.processor.image_token_id,)


def test_ids_are_those_of_llava(thin: LoadedModel) -> None:
    """The placeholder and the padding have LLaVA's ids, a picture takes 576 tokens, and every id can be decoded."""
    tokenizer = thin.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>", "<pad>"]) == [1, 2, 32000, 32001]
    assert PromptEncoder(thin.processor, 200, thin.context).image_tokens == 576
    assert all(tokenizer.decode([number]) for number in range(300, 32000, 1000))


def test_prompts_have_the_lengths_that_llama_would_give_them(thin: LoadedModel) -> None:
    """A word takes about 1.5 tokens, as it does with a vocabulary of 32,000 pieces of general text."""
    tokens = sum(len(ids) for ids in thin.processor.tokenizer(PROMPTS)["input_ids"])
    words = sum(len(prompt.split()) for prompt in PROMPTS)
    assert 1.4 < tokens / words < 1.6


@pytest.mark.parametrize(("size", "billions"), [("7b", 7.06), ("13b", 13.35)])
def test_full_sizes_are_llavas(size: str, billions: float) -> None:
    """They have as many parameters as the published checkpoints, and the shapes that the bounds were made for."""
    config = config_of(SIZES[size], build_processor(train_tokenizer(PROMPTS[:100])).tokenizer)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    assert sum(one.numel() for one in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    shapes = Shapes.of(config)
    assert (shapes.vision_layers, shapes.vision_tokens, shapes.image_tokens) == (23, 577, 576)
    assert (shapes.head_dim, shapes.patch_values, shapes.vocabulary) == (128, 588, 32064)
