"""Train the tiny LLaVA that ships with the project, from nothing.

    python -m etl.demo.tiny_llava.train OUTPUT_DIR [--steps N] [--scenes N] [--show-wrong]

The model is a `LlavaForConditionalGeneration` of 1.2 M parameters with its own byte-level BPE
tokenizer.  It learns the scenes of `etl.demo.scenes` under the product's default prompt, with and without
title and date, from pictures that went through the product's own working copy.  Everything is seeded.
About 20 minutes on two cores.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from etl.demo.scenes import DRAWN_SIZES, LARGE_SIZES, Scene, random_record, random_scene
from etl.images.decode import working_copy_image
from etl.ingest.prompts import PromptTemplate

IMAGE_EDGE = 56
"""Pixels of the model's square input: the least at which sizes and kinds are told apart."""

PATCH = 14
"""Pixels of a patch's edge, as in LLaVA-1.5's own vision tower; 16 patches here."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's own conversation format."""

VOCABULARY = 768
"""Tokens: 256 bytes, 4 special ones, and what the prompts' and captions' words need."""


def wrap(prompt: str) -> str:
    """Return the prompt as the chat template gives it."""
    return f"USER: <image>\n{prompt} ASSISTANT:"


def byte_level(corpus: Iterable[str], special: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of so many tokens; the special ones come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on prompts and captions; `VOCABULARY` tokens, every byte sequence encodable."""
    template = PromptTemplate()
    corpus = [wrap(template.render(random_record(rng))) for _ in range(1500)]
    corpus += [" " + random_scene(rng).caption for _ in range(3000)]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(corpus, ["<pad>", "<s>", "</s>", "<image>"], VOCABULARY),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor as LLaVA-1.5's own, at 56 pixels: resize the short edge, centre crop, normalise."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_EDGE}, crop_size={"height": IMAGE_EDGE, "width": IMAGE_EDGE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return the untrained model."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_EDGE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_EDGE // PATCH) ** 2,
    )
    return LlavaForConditionalGeneration(config)


class Scenes:
    """Scenes drawn once, held as the processor's own pixel values."""

    def __init__(self, processor: LlavaProcessor, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.scenes: list[Scene] = [random_scene(rng) for _ in range(count)]
        pixels = []
        for scene in self.scenes:
            size = rng.choice(LARGE_SIZES if rng.random() < 0.02 else DRAWN_SIZES)
            picture = working_copy_image(scene.draw(*size))
            pixels.append(processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0].half())
        self.pixels = torch.stack(pixels)


def labelled(tokenizer: PreTrainedTokenizerFast, prompts: list[str], answers: list[str]) -> dict[str, torch.Tensor]:
    """Return the tokens of a batch, padded on the left, with labels on the answers' alone."""
    inputs = tokenizer([p + a for p, a in zip(prompts, answers, strict=True)], return_tensors="pt", padding=True)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        length = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}


def batches(scenes: Scenes, tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random) -> Iterator[Any]:
    """Yield endless training batches: model inputs with labels on the caption tokens alone."""
    template = PromptTemplate()
    tokens = "<image>" * (IMAGE_EDGE // PATCH) ** 2
    while True:
        rows = [rng.randrange(len(scenes.scenes)) for _ in range(size)]
        prompts = [wrap(template.render(random_record(rng))).replace("<image>", tokens) for _ in rows]
        answers = [f" {scenes.scenes[row].caption}</s>" for row in rows]
        yield {**labelled(tokenizer, prompts, answers), "pixel_values": scenes.pixels[rows].float()}


def train(
    model: Any, data: Iterator[Any], steps: int, peak_rate: float, look: Callable[[], object] = lambda: None
) -> None:
    """Run AdamW with warm-up and a cosine to zero; ``look`` is called every 500 steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, step / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
    )
    model.train()
    started = time.monotonic()
    for step in range(steps):
        loss = model(**next(data)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s", flush=True)
        if step % 500 == 499:
            look()
            model.train()


@torch.inference_mode()
def evaluate(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, *, count: int = 200, show_wrong: bool = False
) -> float:
    """Return the share of unseen scenes that are captioned word for word, by plain `generate()`."""
    model.eval()
    rng = random.Random(99)
    template = PromptTemplate()
    right = 0
    for _ in range(count // 20):
        scenes = [random_scene(rng) for _ in range(20)]
        inputs = processor(
            images=[working_copy_image(scene.draw(*rng.choice(DRAWN_SIZES))) for scene in scenes],
            text=[wrap(template.render(random_record(rng))) for _ in scenes],
            return_tensors="pt",
            padding=True,
        )
        output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for text, scene in zip(texts, scenes, strict=True):
            if text.strip() == scene.caption:
                right += 1
            elif show_wrong:
                print(f"wrong: {text.strip()}\nright: {scene.caption}", flush=True)
    return right / (count // 20 * 20)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output: Path) -> None:
    """Write the checkpoint in half precision."""
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    for file in output.iterdir():
        # The weights would otherwise be readable by their owner alone, wherever they are installed.
        file.chmod(0o644)


WANTED = 0.98
"""Share of exact captions below which a checkpoint is of no use to the demo and the tests."""


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for the checkpoint")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--scenes", type=int, default=30_000, help="scenes to draw once and learn from")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the scenes")
    parser.add_argument("--show-wrong", action="store_true", help="print the wrong captions of the evaluation")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer(random.Random(0))
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens", flush=True)
    scenes = Scenes(processor, options.scenes, seed=1)
    print(f"{options.scenes:,} scenes drawn", flush=True)
    train(
        model, batches(scenes, tokenizer, options.batch, random.Random(2 + options.seed)), options.steps, options.rate
    )
    share = evaluate(model, processor, show_wrong=options.show_wrong)
    print(f"exact captions on unseen scenes: {share:.1%}")
    save(model, processor, options.output)
    if share < WANTED:
        sys.exit(f"fewer than {WANTED:.0%}: the training got stuck, as it may; try another --seed")


if __name__ == "__main__":
    main()
