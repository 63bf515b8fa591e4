"""What the tests of the slot engine share: many items, captioners that remember their tokens, other architectures."""

import contextlib
import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from caption.conftest import SIZES, Scenes
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from etl.caption.model.checkpoint import DEMO_CHECKPOINT
from etl.caption.model.loading import LoadedModel
from etl.caption.pictures.pixels import crop_aspect
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.tokens import PromptEncoder
from etl.demo.scenes import random_record, random_scene
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.ingest.prompts import PromptTemplate

Limits = dict[int, int]
"""Longest caption by item, in tokens."""


def make_scenes(folder: Path, count: int, *, seed: int, pictures: int = 40) -> Scenes:
    """Return so many items over fewer pictures, with prompts from one word to a long title."""
    rng, template, found = random.Random(seed), PromptTemplate(), Scenes(folder, [])
    hashes = []
    for number in range(min(count, pictures)):
        file = folder / "part"
        random_scene(rng).draw(*SIZES[number % len(SIZES)]).save(file, "JPEG", quality=90)
        hashes.append(hashlib.sha256(file.read_bytes()).hexdigest())
        file.rename(found.locate(hashes[-1]))
    prompts = ["Describe.", *(template.render(random_record(rng)) for _ in range(20))]
    prompts += [f"{prompts[3]} {'Mention the sky. ' * repeats}" for repeats in (3, 9)]
    found.items += [CaptionItem(n, rng.choice(hashes), rng.choice(prompts)) for n in range(1, count + 1)]
    return found


def tokens_one_by_one(
    loaded: LoadedModel, scenes: Scenes, limits: Limits, max_aspect: float = 4.0
) -> dict[int, list[int]]:
    """Return the tokens of `generate()` for each item alone, without padding, from the processor's own pixels."""
    encoder = PromptEncoder(loaded.processor, 1, None)
    found = {}
    for item in scenes.items:
        with Image.open(scenes.locate(item.working_sha256)) as file:
            picture = crop_aspect(file.convert("RGB"), max_aspect)
        inputs = loaded.processor(images=picture, text=encoder.encode(item.prompt).text, return_tensors="pt")
        config = loaded.generation_config(limits[item.id])
        if item.repetition_penalty is not None:
            config.repetition_penalty = item.repetition_penalty
        rows = loaded.model.generate(**inputs.to(loaded.dtype), generation_config=config)
        found[item.id] = rows[0, inputs["input_ids"].shape[1] :].tolist()
    return found


class Remembering:
    """A captioner that remembers the tokens of every caption, in the order in which they ended.

    Attributes:
        tokens: by item.
        captioner: the captioner.
    """

    def __init__(self, captioner: Any) -> None:
        self.captioner = captioner
        self.tokens: dict[int, list[int]] = {}
        result = captioner._detokenizer.result

        def remember(item: CaptionItem, ids: list[int], extra: tuple[str, ...] = ()) -> CaptionResult:
            assert item.id not in self.tokens, "a caption was finished twice"
            self.tokens[item.id] = ids
            made: CaptionResult = result(item, ids, extra)
            return made

        captioner._detokenizer.result = remember

    def caption(self, items: Iterable[CaptionItem | None], **options: Any) -> list[CaptionResult | ItemFailure]:
        """Caption the items and return all outcomes."""
        return list(self.captioner.caption(items, **options))


@contextlib.contextmanager
def remembering(
    loaded: LoadedModel, scenes: Scenes, settings: Any, limits: Limits | None = None
) -> Iterator[Remembering]:
    """Yield a captioner over the scenes; the model is given back as it was."""
    limit_of: Callable[[CaptionItem], int] | None = None if limits is None else lambda item: limits[item.id]
    captioner = SlotCaptioner(loaded, settings, scenes.locate, limit_of=limit_of)
    try:
        yield Remembering(captioner)
    finally:
        captioner.close()
    assert loaded.model.config.text_config._attn_implementation == "sdpa"


def other_architecture(folder: Path, **text: Any) -> Path:
    """Write a small LLaVA of random weights over another language model, with the demo's processor; return it."""
    shutil.copytree(DEMO_CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "*.md"))
    demo = LlavaConfig.from_pretrained(DEMO_CHECKPOINT)
    known = demo.text_config.to_dict() | {"num_hidden_layers": 2}
    kept = {
        name: known[name]
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size",
                     "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "head_dim")
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=demo.vision_config.to_dict(), text_config=kept | {"model_type": "llama"} | text,
        image_token_index=demo.image_token_id, vision_feature_layer=-2, image_seq_length=demo.image_seq_length,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # Large enough that different prompts give different words.
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    return folder


def with_penalty(items: Iterable[CaptionItem], penalty: float) -> list[CaptionItem]:
    """Return the items, to be decoded with a repetition penalty."""
    return [dataclasses.replace(item, repetition_penalty=penalty) for item in items]
