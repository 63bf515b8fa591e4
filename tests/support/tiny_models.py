"""Checkpoints of the families that people choose, a few layers small and of random weights: what they write is noise,
but they are loaded, asked and decoded as the real ones are.

No processor is made here: its files are written as the repositories have them, since some cannot be made without
torchvision.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

VOCABULARY = 420

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip

VICUNA = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}{% if c.type == 'image' %}<image>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(image: str) -> str:
    """Return the chat template of most families, with what stands for a picture in it."""
    return _CHATML.replace("IMAGE", image)


def tokenizer(special: Sequence[str] = (), *, template: str = "", words: Sequence[str] = (), **names: Any) -> Any:
    """Return a tokenizer of single bytes with these special tokens, and ``words`` of one token that are not special.

    ``names`` are those of the usual special tokens, where they have other ones, and ``extra_special_tokens``;
    ``template`` is what surrounds a text, such as ``<s> $A``.
    """
    usual = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | names
    known = [name for key, name in usual.items() if key.endswith("_token") and name]
    every = list(dict.fromkeys([*known, *special, *usual.get("extra_special_tokens", {}).values()]))
    vocabulary = dict.fromkeys([*every, *words, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(every)
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    if template:
        used = [token for token in every if token in template.split()]
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, made.token_to_id(token)) for token in used]
        )
    rest = [name for name in special if name not in known]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, padding_side="left", additional_special_tokens=rest,
        **{key: value for key, value in usual.items() if value},
    )  # fmt: skip


@dataclass(kw_only=True)
class Tiny:
    """What a checkpoint is made of.

    Attributes:
        model: with whatever weights; they are drawn anew.
        tokenizer: with every special token of its chat.
        images: the image processor's settings, its type among them.
        processor: the processor's class.
        settings: of the processor.
        video: the type of the video processor; empty without one.
        template: the chat template; empty without one.
        generation: for ``generation_config.json``, beside the usual tokens.
    """

    model: Any
    tokenizer: Any
    images: Mapping[str, Any]
    processor: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    video: str = ""
    template: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)


def write(tiny: Tiny, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of random weights in the layout of the hub's repositories; return its folder."""
    draw(tiny.model, tiny.tokenizer.eos_token_id)
    return save(tiny, folder, dtype)


def save(tiny: Tiny, folder: Path, dtype: torch.dtype) -> Path:
    """Write a checkpoint with the weights that it has."""
    folder.mkdir(parents=True)
    usual = {"bos_token_id": tiny.tokenizer.bos_token_id, "eos_token_id": tiny.tokenizer.eos_token_id}
    usual["pad_token_id"] = tiny.tokenizer.pad_token_id
    tiny.model.generation_config = hf.GenerationConfig(**{**usual, **tiny.generation})
    hf.logging.disable_progress_bar()
    tiny.model.to(dtype).save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    _json(folder / "preprocessor_config.json", {**tiny.images, "processor_class": tiny.processor})
    _json(folder / "processor_config.json", {**tiny.settings, "processor_class": tiny.processor})
    if tiny.video:
        _json(folder / "video_preprocessor_config.json", {"video_processor_type": tiny.video})
    if tiny.template:
        (folder / "chat_template.jinja").write_text(tiny.template)
    return folder


def draw(model: Any, eos: int) -> None:
    """Give a model weights by which its words depend on the picture, and by which it does not end by itself."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=source)
            if weight.dim() > 1:
                wide = any(part in name for part in ("lm_head", "embed_tokens", "word_embeddings", "shared"))
                weight.copy_(random * (0.35 if wide else 1.6 / max(1, weight[0].numel()) ** 0.5))
            elif "norm" not in name.lower():
                weight.copy_(random * 0.1)
        head = model.get_output_embeddings()
        if head is not None:
            head.weight[eos] = 0.0


def _json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values))


def clip(edge: int = 56) -> dict[str, Any]:
    """Return the settings of CLIP's image processor, which cuts a square out."""
    return {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": edge},
        "crop_size": {"height": edge, "width": edge},
    }  # fmt: skip


def square(kind: str, edge: int = 56, **more: Any) -> dict[str, Any]:
    """Return the settings of an image processor that makes pictures square."""
    return {"image_processor_type": kind, "size": {"height": edge, "width": edge}, **more}


def pixels(patch: int, **more: Any) -> dict[str, Any]:
    """Return the settings of Qwen's image processor, which counts all pixels."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch, "merge_size": 2, "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 40}, **more,
    }  # fmt: skip


Maker = Callable[[], Tiny]
"""Makes one family's checkpoint."""
