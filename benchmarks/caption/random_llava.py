"""A LLaVA of any size with random weights, made on the device itself: for speed, where no weights are at hand.

The shapes, the tokens and the arithmetic are those of the real one; only the words are nonsense.  Captions never end
by themselves: the id that ends one belongs to a row of the head that is zero, so it never wins.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from etl.caption.model.loading import LoadedModel
from etl.caption.model.processors import LLAVA_CHAT_TEMPLATE

VOCABULARY = 32_064
"""Rows of LLaVA-1.5's embedding and head."""

PIECES = 32_000
"""Pieces of its tokenizer, before ``<image>`` and ``<pad>``."""

LEARNT_PIECES = 700
"""Pieces that are learnt from the prompts.

So few that prompts come out as long as with LLaMA's 32,000: those were learnt from all kinds of text, these from
nothing but prompts (`benchmarks/README.md` has the comparison).  The others only fill the vocabulary.
"""

_SPREAD = 0.02
"""Standard deviation of the weights: activations stay within a few tens through all layers."""


@dataclass(frozen=True)
class Size:
    """The sizes that differ between models; ``vision_layers`` counts all layers, the last is not used."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16


SIZES = {
    "7b": Size(4096, 11008, 32, 32),
    "13b": Size(5120, 13824, 40, 40),
    # Real pictures, prompts and tokens, but next to no arithmetic: what remains is everybody else's work.
    "thin": Size(64, 64, 1, 2, vision_hidden=32, vision_intermediate=32, vision_layers=2, vision_heads=2),
}


def build(size: Size, device: torch.device, dtype: torch.dtype, prompts: Iterable[str], seed: int = 0) -> LoadedModel:
    """Return a model of this size, ready to caption, with a tokenizer that is trained on the prompts."""
    processor = build_processor(train_tokenizer(prompts))
    config = config_of(size, processor.tokenizer)
    model = _random_model(config, device, dtype, seed)
    # The words of a head's zero row are never said, so this "end" never comes.
    ends = (processor.image_token_id,)
    pad = processor.tokenizer.pad_token_id
    return LoadedModel(
        name="random",
        revision=f"seed:{seed}",
        model=model,
        processor=processor,
        device=device,
        dtype=dtype,
        context=config.text_config.max_position_embeddings,
        eos=ends,
        pad=pad,
    )


def train_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE that splits these prompts about as finely as LLaMA's; each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT_PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    tokenizer = _filled(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens={"image_token": "<image>"},
    )


def _filled(tokenizer: Tokenizer) -> Tokenizer:
    """Give every id up to `PIECES` a piece, one that no prompt has, so that any caption can be decoded."""
    whole = json.loads(tokenizer.to_str())
    vocabulary = whole["model"]["vocab"]
    vocabulary |= {f"\u0120w{number:04x}": number for number in range(len(vocabulary), PIECES)}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.add_special_tokens(["<image>", "<pad>"])
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return LLaVA-1.5's own processor: 336 pixels, patches of 14, 576 tokens for a picture."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, resample=3
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT_TEMPLATE,
    )


def config_of(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Return the config of a LLaVA-1.5 of this size."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=size.vision_intermediate,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=False,
    )


def _random_model(config: LlavaConfig, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """Return the model in evaluation mode; nothing of its size is ever made on the host."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model = model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                # Scales of norms are 1; everything else with one dimension is a bias, or the class token.
                tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                tensor.normal_(0.0, _SPREAD, generator=generator)
        model.lm_head.weight[[0, 1, 2, *range(PIECES, VOCABULARY)]] = 0.0
    _restore_buffers(model, config)
    model.generation_config = GenerationConfig()
    return model


def _restore_buffers(model: Any, config: LlavaConfig) -> None:
    """Take the buffers, which to_empty() left undefined, from a model of one layer that was made as usual."""
    small = LlavaConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers = small.vision_config.num_hidden_layers = 1
    small.text_config.intermediate_size = small.text_config.vocab_size = 64
    small.text_config.pad_token_id = None
    found = dict(LlavaForConditionalGeneration(small).named_buffers())
    wanted = dict(model.named_buffers())
    if found.keys() != wanted.keys():
        raise RuntimeError(f"this transformers has other buffers: {sorted(found.keys() ^ wanted.keys())}")
    for name, buffer in wanted.items():
        if buffer.shape != found[name].shape:
            raise RuntimeError(f"this transformers has buffers that depend on the model's depth: {name}")
        # Positions and frequencies keep their own type: half precision would round them.
        holder, _, last = name.rpartition(".")
        model.get_submodule(holder)._buffers[last] = found[name].to(model.device)
