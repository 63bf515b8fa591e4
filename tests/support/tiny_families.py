"""The families of `support.tiny_models`: chat models here, captioners without a chat in `support.tiny_captioners`."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from support.tiny_captioners import CAPTIONERS
from support.tiny_models import LLAMA, TOWER, VICUNA, Maker, Tiny, chatml, clip, pixels, square, tokenizer, write
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig


def _llava(text: Any, tower: Any, images: dict[str, Any], special: list[str], template: str, **more: Any) -> Tiny:
    words = tokenizer(["<image>", *special], template="<s> $A", **more)
    clip_tower = tower.model_type == "clip_vision_model"
    choice = "default" if clip_tower else "full"
    config = hf.LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy=choice, image_seq_length=16, tie_word_embeddings=False,
    )  # fmt: skip
    settings = {
        "patch_size": 14, "vision_feature_select_strategy": choice, "num_additional_image_tokens": int(clip_tower),
        "image_token": "<image>",
    }  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config)
    return Tiny(
        model=model, tokenizer=words, images=images, processor="LlavaProcessor", settings=settings, template=template
    )


def llava() -> Tiny:
    return _llava(hf.LlamaConfig(**LLAMA), hf.CLIPVisionConfig(**TOWER), clip(), [], VICUNA)


def bakllava() -> Tiny:
    text = hf.MistralConfig(**{**LLAMA, "max_position_embeddings": 32768, "sliding_window": 4096})
    return _llava(text, hf.CLIPVisionConfig(**TOWER), clip(), [], VICUNA)


JOY = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'user' %}<image>{% endif %}{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Takes content as text alone, and places the picture itself."""


def joycaption() -> Tiny:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    text = hf.LlamaConfig(**{**LLAMA, "max_position_embeddings": 131072, "rope_parameters": rope})
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _llava(text, hf.SiglipVisionConfig(**TOWER), square("SiglipImageProcessor"), special, JOY)


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}[INST]{% for c in m.content %}{% if c.type == 'image' %}[IMG]"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}[/INST]{% endfor %}"
)


def _pixtral(merge: int) -> Tiny:
    words = tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"], template="<s> $A")
    tower = hf.PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14
    )
    text = hf.MistralConfig(**{**LLAMA, "head_dim": 16, "sliding_window": None})
    common = {
        "vision_config": tower, "text_config": text, "image_token_index": words.convert_tokens_to_ids("[IMG]"),
        "vision_feature_layer": -1, "tie_word_embeddings": False,
    }  # fmt: skip
    if merge == 1:
        model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(**common, vision_feature_select_strategy="full"))
    else:
        model = hf.Mistral3ForConditionalGeneration(hf.Mistral3Config(**common, spatial_merge_size=merge))
    images = {
        "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 112},
        "patch_size": {"height": 14, "width": 14},
    }  # fmt: skip
    settings = {"patch_size": 14, "spatial_merge_size": merge}
    return Tiny(
        model=model, tokenizer=words, images=images, processor="PixtralProcessor", settings=settings, template=MISTRAL
    )


def pixtral() -> Tiny:
    return _pixtral(1)


def mistral3() -> Tiny:
    return _pixtral(2)


PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def llava_next() -> Tiny:
    words = tokenizer(["<image>"], template="<s> $A")
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER), text_config=hf.MistralConfig(**{**LLAMA, "sliding_window": None}),
        image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_grid_pinpoints=PINPOINTS, tie_word_embeddings=False,
    )  # fmt: skip
    images = {**clip(), "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS}
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Tiny(
        model=hf.LlavaNextForConditionalGeneration(config), tokenizer=words, images=images,
        processor="LlavaNextProcessor", settings=settings,
        template=MISTRAL.replace("{{ bos_token }}", "").replace("[IMG]", "<image>\n"),
    )  # fmt: skip


def llava_onevision() -> Tiny:
    words = tokenizer(["<image>", "<video>", "<|im_start|>"], bos_token=None, eos_token="<|im_end|>")
    pins = [[56, 56], *PINPOINTS]
    number = words.convert_tokens_to_ids
    text = hf.Qwen2Config(**{**LLAMA, "bos_token_id": None, "eos_token_id": words.eos_token_id})
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER), text_config=text, image_token_index=number("<image>"),
        video_token_index=number("<video>"), vision_feature_layer=-1, vision_feature_select_strategy="full",
        image_grid_pinpoints=pins, vision_aspect_ratio="anyres_max_9", tie_word_embeddings=False,
    )  # fmt: skip
    return Tiny(
        model=hf.LlavaOnevisionForConditionalGeneration(config), tokenizer=words,
        images=square("LlavaOnevisionImageProcessor", image_grid_pinpoints=pins), processor="LlavaOnevisionProcessor",
        settings={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        video="LlavaOnevisionVideoProcessor", template=chatml("<image>\n"),
    )  # fmt: skip


QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_CHAT = chatml("<|vision_start|><|image_pad|><|vision_end|>")
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05}


def qwen(
    text: dict[str, Any], config: Any, model: Any, tower: dict[str, Any], processor: str, patch: int, words: Any = None
) -> Tiny:
    """Return a Qwen-VL of these sizes, beside the usual ones; ``words`` is its tokenizer, if it is one of its own."""
    words = words or tokenizer(QWEN, bos_token=None, eos_token="<|im_end|>", words=("<think>", "</think>"))
    number = words.convert_tokens_to_ids
    ids = {f"{kind}_token_id": number(f"<|{kind}_pad|>") for kind in ("image", "video")}
    text = {**LLAMA, "bos_token_id": None, "eos_token_id": words.eos_token_id, "head_dim": 16, **text}
    tower = {"num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2, **tower}
    ids |= {f"vision_{end}_token_id": number(f"<|vision_{end}|>") for end in ("start", "end")}
    built = config(text_config=text, vision_config=tower, tie_word_embeddings=False, **ids)
    video = "Qwen2VLVideoProcessor" if patch == 14 else "Qwen3VLVideoProcessor"
    return Tiny(
        model=model(built), tokenizer=words, images=pixels(patch), processor=processor, video=video, template=QWEN_CHAT,
        generation=SAMPLED,
    )  # fmt: skip


_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def qwen2_vl() -> Tiny:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    text = {"rope_parameters": _ROPE}
    return qwen(text, hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, tower, "Qwen2VLProcessor", 14)


def qwen2_5_vl() -> Tiny:
    tower = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 56,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {"rope_parameters": _ROPE}
    return qwen(text, hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, tower, "Qwen2_5_VLProcessor", 14)


_TOWER3 = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 64}


def qwen3_vl() -> Tiny:
    tower = {**_TOWER3, "depth": 3, "deepstack_visual_indexes": [0, 1]}
    text = {"rope_parameters": {**_ROPE, "mrope_interleaved": True}}
    return qwen(text, hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, tower, "Qwen3VLProcessor", 16)


def qwen3_vl_thinking() -> Tiny:
    """The one whose chat always begins with reasoning."""
    tiny = qwen3_vl()
    tiny.template = QWEN_CHAT.replace("assistant\n", "assistant\n<think>\n")
    return tiny


THINKS = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n"
    "{% endif %}"
)


def qwen3_5() -> Tiny:
    """The one that reasons unless its chat template is told not to."""
    text = {
        "num_hidden_layers": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0], "mrope_interleaved": True,
                            "partial_rotary_factor": 0.25},
    }  # fmt: skip
    tower = {**_TOWER3, "depth": 2}
    tiny = qwen(text, hf.Qwen3_5Config, hf.Qwen3_5ForConditionalGeneration, tower, "Qwen3VLProcessor", 16)
    tiny.template = QWEN_CHAT.replace("assistant\n", "assistant\n" + THINKS)
    return tiny


def internvl() -> Tiny:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    words = tokenizer(["<|im_start|>"], bos_token=None, eos_token="<|im_end|>", extra_special_tokens=names)
    tower = hf.InternVLVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=[56, 56],
        patch_size=[14, 14],
    )  # fmt: skip
    text = hf.Qwen2Config(**{**LLAMA, "bos_token_id": None, "eos_token_id": words.eos_token_id})
    config = hf.InternVLConfig(
        text_config=text, vision_config=tower, image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4, downsample_ratio=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return Tiny(
        model=hf.InternVLForConditionalGeneration(config), tokenizer=words,
        images=square("GotOcr2ImageProcessor", crop_to_patches=True, min_patches=1, max_patches=6),
        processor="InternVLProcessor", settings={"image_seq_length": 4}, video="InternVLVideoProcessor",
        template=chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip


GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3() -> Tiny:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer(["<start_of_turn>", "<end_of_turn>"], template="<s> $A", extra_special_tokens=names)
    number = words.convert_tokens_to_ids
    text = hf.Gemma3TextConfig(
        **{**LLAMA, "head_dim": 16, "sliding_window": 64, "num_hidden_layers": 6, "query_pre_attn_scalar": 16}
    )
    config = hf.Gemma3Config(
        text_config=text, vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False), mm_tokens_per_image=16,
        image_token_index=number("<image_soft_token>"), boi_token_index=number("<start_of_image>"),
        eoi_token_index=number("<end_of_image>"), tie_word_embeddings=False,
    )  # fmt: skip
    return Tiny(
        model=hf.Gemma3ForConditionalGeneration(config), tokenizer=words, images=square("Gemma3ImageProcessor"),
        processor="Gemma3Processor", settings={"image_seq_length": 16}, template=GEMMA,
        generation={"do_sample": True, "top_k": 64, "top_p": 0.95},
    )  # fmt: skip


def gemma4() -> Tiny:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    special = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|video|>"]
    words = tokenizer(special, template="<s> $A", extra_special_tokens=names)
    number = words.convert_tokens_to_ids
    text = {
        **LLAMA, "num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 16, "sliding_window": 64,
        "vocab_size_per_layer_input": LLAMA["vocab_size"], "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    }  # fmt: skip
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 16, "pooling_kernel_size": 3,
        "position_embedding_size": 256,
    }  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text, vision_config=tower, audio_config=None, boi_token_id=number("<|image>"),
        eoi_token_id=number("<image|>"), image_token_id=number("<|image|>"), video_token_id=number("<|video|>"),
        boa_token_id=number("<|audio>"), eoa_token_index=number("<audio|>"), audio_token_id=number("<|audio|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    hearing = {"feature_extractor_type": "Gemma4AudioFeatureExtractor"}
    template = GEMMA.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
    return Tiny(
        model=hf.Gemma4ForConditionalGeneration(config), tokenizer=words,
        images={"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 70}, processor="Gemma4Processor",
        settings={"image_seq_length": 70, "feature_extractor": hearing},
        video="Gemma4VideoProcessor", template=template.replace("<start_of_image>", "<|image|>"),
    )  # fmt: skip


SMOL = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for c in m.content %}{% if c.type == 'image' %}"
    "<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _idefics(config: Any, model: Any, kind: str, video: str = "") -> Tiny:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(
        ["<image>", "<fake_token_around_image>", "<global-img>", *places], bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
    )  # fmt: skip
    built = config(
        vision_config={**TOWER, "num_hidden_layers": 2}, text_config=hf.LlamaConfig(**LLAMA), scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    images = {
        "image_processor_type": f"{kind}ImageProcessor", "size": {"longest_edge": 112},
        "max_image_size": {"longest_edge": 56},
    }  # fmt: skip
    return Tiny(
        model=model(built), tokenizer=words, images=images, processor=f"{kind}Processor",
        settings={"image_seq_len": 4}, video=video, template=SMOL,
    )  # fmt: skip


def idefics3() -> Tiny:
    return _idefics(hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, "Idefics3")


def smolvlm() -> Tiny:
    return _idefics(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, "SmolVLM", "SmolVLMVideoProcessor")


def lfm2_vl() -> Tiny:
    names = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
             "image_thumbnail": "<|img_thumbnail|>"}  # fmt: skip
    words = tokenizer(["<|im_start|>"], eos_token="<|im_end|>", template="<s> $A", extra_special_tokens=names)
    text = hf.Lfm2Config(
        vocab_size=LLAMA["vocab_size"], hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"],
        max_position_embeddings=8192,
    )  # fmt: skip
    tower = hf.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=16, num_patches=64
    )
    config = hf.Lfm2VlConfig(
        vision_config=tower, text_config=text, image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32, downsample_factor=2, tie_word_embeddings=False,
    )  # fmt: skip
    images = {
        "image_processor_type": "Lfm2VlImageProcessorFast", "tile_size": 128, "max_num_patches": 256,
        "max_image_tokens": 64, "min_image_tokens": 4, "encoder_patch_size": 16, "downsample_factor": 2,
    }  # fmt: skip
    return Tiny(
        model=hf.Lfm2VlForConditionalGeneration(config), tokenizer=words, images=images, processor="Lfm2VlProcessor",
        template="{{- bos_token -}}" + chatml("<image>"),
    )  # fmt: skip


def mllama() -> Tiny:
    words = tokenizer(["<|image|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], template="<s> $A")
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    # Its table of words has eight places more than there are words to choose from.
    size = LLAMA["vocab_size"] - 8
    text = MllamaTextConfig(
        **{**LLAMA, "vocab_size": size, "num_hidden_layers": 3, "cross_attention_layers": [1], "rope_parameters": rope}
    )
    tower = MllamaVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_global_layers=1, attention_heads=2,
        image_size=56, patch_size=14, intermediate_layers_indices=[0], vision_output_dim=64, max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )  # fmt: skip
    config = hf.MllamaConfig(
        text_config=text, vision_config=tower, image_token_index=words.convert_tokens_to_ids("<|image|>")
    )
    return Tiny(
        model=hf.MllamaForConditionalGeneration(config), tokenizer=words,
        images=square("MllamaImageProcessor", max_image_tiles=2), processor="MllamaProcessor",
        template=MISTRAL.replace("[INST]", "<|start_header_id|>").replace("[/INST]", "<|eot_id|>")
        .replace("[IMG]", "<|image|>"),
    )  # fmt: skip


CHATS: dict[str, Maker] = {
    made.__name__: made
    for made in (
        llava, bakllava, joycaption, pixtral, mistral3, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl,
        qwen3_vl_thinking, qwen3_5, internvl, gemma3, gemma4, smolvlm, idefics3, lfm2_vl, mllama,
    )
}  # fmt: skip

FAMILIES = CHATS | CAPTIONERS
"""Every family, by a name of ours."""

NEED_TORCHVISION = ("pixtral", "mistral3", "lfm2_vl")
"""Those whose pictures transformers itself prepares with torchvision alone."""

NEED_NUM2WORDS = ("smolvlm",)


def checkpoint(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a small checkpoint of a family; return its folder, which has the family's name."""
    return write(FAMILIES[family](), folder / family, dtype)
