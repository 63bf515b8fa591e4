"""Captioners without a chat, for `support.tiny_families`."""

from typing import Any

import transformers as hf
from support.tiny_models import LLAMA, TOWER, VOCABULARY, Maker, Tiny, clip, square, tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
TINY_TOWER = {**SMALL, "image_size": 56, "patch_size": 14}


def paligemma() -> Tiny:
    words = tokenizer([f"<loc{n:04d}>" for n in range(4)], extra_special_tokens={"image_token": "<image>"})
    text = hf.GemmaConfig(**{**LLAMA, "head_dim": 16})
    config = hf.PaliGemmaConfig(
        text_config=text, vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False), projection_dim=64,
        image_token_index=words.convert_tokens_to_ids("<image>"), hidden_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    return Tiny(
        model=hf.PaliGemmaForConditionalGeneration(config), tokenizer=words,
        images=square("SiglipImageProcessor", image_seq_length=16), processor="PaliGemmaProcessor",
    )  # fmt: skip


def _bert(bos: str) -> Any:
    """Return a tokenizer as BERT's: a start token before each text, and one that ends it behind."""
    return tokenizer(
        bos_token=bos, eos_token="[SEP]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        template="[CLS] $A [SEP]",
    )  # fmt: skip


def blip() -> Tiny:
    words = _bert("[DEC]")
    text = {
        **SMALL, "vocab_size": VOCABULARY, "encoder_hidden_size": 32, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id, "sep_token_id": words.sep_token_id, "pad_token_id": words.pad_token_id,
        "max_position_embeddings": 256,
    }  # fmt: skip
    config = hf.BlipConfig(vision_config=TINY_TOWER, text_config=text)
    return Tiny(
        model=hf.BlipForConditionalGeneration(config), tokenizer=words, images=square("BlipImageProcessor"),
        processor="BlipProcessor",
    )  # fmt: skip


def blip2() -> Tiny:
    words = tokenizer(["<image>"], bos_token="</s>", template="</s> $A")
    text = hf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=512, pad_token_id=0, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config={**TOWER, "num_hidden_layers": 2}, text_config=text, num_query_tokens=8,
        qformer_config={**SMALL, "vocab_size": VOCABULARY, "encoder_hidden_size": 48},
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return Tiny(
        model=hf.Blip2ForConditionalGeneration(config), tokenizer=words, images=square("BlipImageProcessor"),
        processor="Blip2Processor", settings={"num_query_tokens": 8},
    )  # fmt: skip


def git() -> Tiny:
    words = _bert("[CLS]")
    config = hf.GitConfig(
        vision_config=TINY_TOWER, vocab_size=VOCABULARY, max_position_embeddings=256, bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id, pad_token_id=words.pad_token_id, **SMALL,
    )  # fmt: skip
    return Tiny(model=hf.GitForCausalLM(config), tokenizer=words, images=clip(), processor="GitProcessor")


def kosmos2() -> Tiny:
    special = ["<image>", "</image>", "<grounding>", "<phrase>", "</phrase>", "<object>", "</object>"]
    # The ids behind <unk> stand for a picture.
    words = tokenizer(["<unk>", *(f"<picture_{n}>" for n in range(64)), *special], unk_token="<unk>")
    text = {
        "vocab_size": 600, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2,
        "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip
    config = hf.Kosmos2Config(
        text_config=text, vision_config=TINY_TOWER, latent_query_num=64, tie_word_embeddings=False
    )
    return Tiny(
        model=hf.Kosmos2ForConditionalGeneration(config), tokenizer=words, images=clip(), processor="Kosmos2Processor",
        settings={"num_patch_index_tokens": 16},
    )  # fmt: skip


def florence2() -> Tiny:
    words = tokenizer(template="<s> $A </s>", extra_special_tokens={"image_token": "<image>"})
    text = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    tower = {
        "embed_dim": [16, 16, 16, 32], "num_heads": [2, 2, 2, 4], "num_groups": [2, 2, 2, 4], "depths": [1, 1, 1, 1],
        "window_size": 2, "projection_dim": 32,
    }  # fmt: skip
    config = hf.Florence2Config(
        text_config=text, vision_config=tower, image_token_id=words.convert_tokens_to_ids("<image>")
    )
    return Tiny(
        model=hf.Florence2ForConditionalGeneration(config), tokenizer=words,
        images=square("CLIPImageProcessor", 64, do_center_crop=False, image_seq_length=5),
        processor="Florence2Processor",
        generation={"decoder_start_token_id": 2, "forced_bos_token_id": 1, "num_beams": 3, "no_repeat_ngram_size": 3},
    )  # fmt: skip


CAPTIONERS: dict[str, Maker] = {made.__name__: made for made in (paligemma, blip, blip2, git, kosmos2, florence2)}
"""By a name of ours."""
