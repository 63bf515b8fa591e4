"""Train the tiny Qwen3-VL of the tests, from nothing.

    PYTHONPATH=tests python -m support.tiny_qwen.train OUTPUT_DIR [--steps N] [--scenes N] [--seed N]

It learns the scenes of `etl.demo.scenes`, drawn over pictures of any shape from 1:2 to 2:1, which it sees whole.  Its
prompt is nearly always the same, and its pictures are of several numbers of tokens, so what it knows of where its
words are rests on the positions that Qwen's models count: a picture takes as many as it is wide or high, not as many as
it has tokens.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from support.tiny_families import QWEN, qwen
from support.tiny_models import Tiny, save

from etl.caption.model.loading import LoadedModel, load
from etl.demo.scenes import COLOURS, KINDS, QUADRANTS, Scene, random_scene
from etl.demo.scenes import SIZES as SHAPE_SIZES
from etl.demo.tiny_llava.train import WANTED, byte_level, labelled, train
from etl.images.decode import working_copy_image
from etl.settings import Settings

PATCH, MERGE = 14, 2
PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 7200}
"""Of a picture as the model sees it: at most nine tokens."""

SIZES = ((168, 168), (168, 112), (112, 168), (224, 112), (112, 224))
"""Drawn, in pixels: 3 x 3, 3 x 2, 2 x 3, 4 x 2 and 2 x 4 tokens."""

WORDS = (tuple(SHAPE_SIZES), tuple(COLOURS), KINDS)

GROUNDS = ("white", "black")
"""Colours of backgrounds; shapes have the others."""

LEFT_OUT = "square"
"""A small one and a small circle differ by a few of eleven pixels, which takes twice the training."""

PROMPTS = ("Describe the picture.", "What is shown?")
VOCABULARY = 640
"""Tokens at most; fewer are found, as every word becomes one."""

WIDTH = 128
"""Of the language model."""

INIT = 0.05
"""Deviation of the first weights: the usual 0.02 is for layers ten times as wide."""


def wrap(prompt: str, pictures: int = 1) -> str:
    """Return the prompt as the chat template gives it, with so many tokens for the picture."""
    picture = f"<|vision_start|>{'<|image_pad|>' * pictures}<|vision_end|>"
    return f"<|im_start|>user\n{picture}{prompt}<|im_end|>\n<|im_start|>assistant\n"


def few_shapes(rng: random.Random) -> Scene:
    """Draw the words of a scene of one or two colourful shapes, circles and triangles."""
    while True:
        scene = random_scene(rng)
        unfit = [shape.colour in GROUNDS or shape.kind == LEFT_OUT for shape in scene.shapes]
        if len(unfit) < 3 and scene.background in GROUNDS and not any(unfit):
            return scene


def build() -> Tiny:
    """Return the untrained checkpoint."""
    rng = random.Random(0)
    corpus = [random_scene(rng).caption for _ in range(2000)] + [wrap(prompt) for prompt in PROMPTS] * 100
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(corpus, ["<pad>", *QWEN], VOCABULARY), pad_token="<pad>", eos_token="<|im_end|>",
        padding_side="left", additional_special_tokens=QWEN,
    )  # fmt: skip
    text = {
        "vocab_size": len(words), "pad_token_id": words.pad_token_id, "hidden_size": WIDTH, "intermediate_size": 256,
        "head_dim": 32, "max_position_embeddings": 512, "initializer_range": INIT,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True,
        },
    }  # fmt: skip
    tower = {
        "depth": 3, "hidden_size": 64, "intermediate_size": 160, "out_hidden_size": WIDTH,
        "num_position_embeddings": 36, "deepstack_visual_indexes": [1], "initializer_range": INIT,
    }  # fmt: skip
    tiny = qwen(
        text, hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, tower, "Qwen3VLProcessor", PATCH, words
    )  # fmt: skip
    tiny.images, tiny.video = {**tiny.images, "size": PIXELS}, "Qwen3VLVideoProcessor"
    with torch.no_grad():
        # As large beside each other as they are to count: a plain patch is a sum of a thousand equal values.
        tiny.model.model.visual.pos_embed.weight.normal_(0, 0.5)
        tiny.model.model.visual.patch_embed.proj.weight.normal_(0, 0.012)
    return tiny


class Scenes:
    """Scenes drawn once in one size.

    Attributes:
        pixels: as the processor gives them, without the second frame.
        grid: of patches, for the model.
        drawn: what is where, [scenes, rows, columns, kinds of words], in tokens: numbers of `WORDS` from 1, else 0.
        of: rows of the scenes of one and of two shapes.
    """

    def __init__(self, processor: Any, size: tuple[int, int], count: int, rng: random.Random) -> None:
        self.scenes = [few_shapes(rng) for _ in range(count)]
        held = []
        for scene in self.scenes:
            picture = working_copy_image(scene.draw(*size, whole=True))
            made = processor.image_processor(images=picture, return_tensors="pt")
            held.append(made["pixel_values"].unflatten(1, (3, 2, -1))[:, :, 0].half())
        self.grid = made["image_grid_thw"]
        self.pixels = torch.stack(held)
        high, wide = (self.grid[0, 1:] // MERGE).tolist()
        self.drawn = torch.zeros(count, high, wide, len(WORDS), dtype=torch.long)
        for row, scene in enumerate(self.scenes):
            for shape in scene.shapes:
                x, y = QUADRANTS[shape.place]
                said = zip(WORDS, (shape.size, shape.colour, shape.kind), strict=True)
                self.drawn[row, int(y * high), int(x * wide)] = torch.tensor(
                    [1 + words.index(word) for words, word in said]
                )
        rows = range(count)
        self.of = {shapes: [row for row in rows if len(self.scenes[row].shapes) == shapes] for shapes in (1, 2)}

    def pixel_values(self, rows: list[int]) -> torch.Tensor:
        """Return the pixels of some scenes, [patches of all, values]."""
        frames = self.pixels[rows].float().unsqueeze(3).expand(-1, -1, -1, 2, -1)
        return frames.flatten(0, 1).flatten(1)


class Pointing(torch.nn.Module):
    """The model with a second task beside its captions: to say of each of a picture's tokens what is drawn there.

    Without it thousands of batches pass before the model finds out that captions have to do with pictures.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 1 + len(words)) for words in WORDS)
        model.model.visual.merger.register_forward_hook(self._see)

    def _see(self, _module: Any, _given: Any, seen: torch.Tensor) -> None:
        self._seen = seen

    def forward(self, drawn: torch.Tensor, **inputs: Any) -> Any:
        """Return the output with the loss of both tasks; ``drawn`` is [tokens of all pictures, kinds of words]."""
        made = self.model(**inputs)
        for head, words in zip(self._heads, drawn.T, strict=True):
            made.loss = made.loss + 0.3 * F.cross_entropy(head(self._seen), words)
        return made


def batches(model: Any, drawn: list[Scenes], words: Any, size: int, rng: random.Random) -> Iterator[Any]:
    """Yield endless training batches, each of pictures of one shape, one prompt and one number of sentences.

    So all rows are of one length and have the same positions, which are counted once.
    """
    while True:
        scenes, prompt, shapes = rng.choice(drawn), rng.choice(PROMPTS), rng.choice((1, 2))
        rows = [rng.choice(scenes.of[shapes]) for _ in range(size)]
        answers = [f"{scenes.scenes[row].caption}<|im_end|>" for row in rows]
        made = labelled(words, [wrap(prompt, int(scenes.grid.prod()) // MERGE**2)] * size, answers)
        assert bool(made.pop("attention_mask").all())
        first, grid = made["input_ids"][:1], scenes.grid
        positions, _ = model.model.get_rope_index(first, (first == model.config.image_token_id).int(), grid)
        yield {
            **made, "pixel_values": scenes.pixel_values(rows), "image_grid_thw": grid.expand(size, -1),
            "position_ids": positions.expand(-1, size, -1), "drawn": scenes.drawn[rows].flatten(0, 2),
        }  # fmt: skip


@torch.inference_mode()
def evaluate(loaded: LoadedModel, *, count: int = 200, show_wrong: bool = False) -> float:
    """Return the share of unseen scenes that are captioned word for word, by plain `generate()`."""
    loaded.model.eval()
    rng, right, batch = random.Random(99), 0, 20
    for _ in range(count // batch):
        scenes = [few_shapes(rng) for _ in range(batch)]
        inputs = loaded.processor(
            images=[working_copy_image(scene.draw(*rng.choice(SIZES), whole=True)) for scene in scenes],
            text=[wrap(rng.choice(PROMPTS)) for _ in scenes], return_tensors="pt", padding=True,
        )  # fmt: skip
        output = loaded.model.generate(**inputs, generation_config=loaded.generation_config(48))
        texts = loaded.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for text, scene in zip(texts, scenes, strict=True):
            right += text == scene.caption
            if show_wrong and text != scene.caption:
                print(f"wrong: {text}\nright: {scene.caption}", flush=True)
    return right / (count // batch * batch)


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory for the checkpoint, which must not be there")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to draw once and learn from, of each size")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the scenes and their order")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    save(build(), options.output, torch.float32)
    loaded = load(Settings(model=str(options.output), device="cpu", dtype="float32"))
    words = loaded.processor.tokenizer
    print(f"{sum(each.numel() for each in loaded.model.parameters()):,} parameters, {len(words)} tokens")
    rng = random.Random(100 + options.seed)
    drawn = [Scenes(loaded.processor, size, options.scenes, rng) for size in SIZES]
    print([scenes.grid.tolist() for scenes in drawn], flush=True)
    data = batches(loaded.model, drawn, words, options.batch, random.Random(2 + options.seed))
    look = lambda: print(f"right: {evaluate(loaded, count=40):.0%}", flush=True)  # noqa: E731
    train(Pointing(loaded.model.requires_grad_(True)), data, options.steps, options.rate, look)
    share = evaluate(loaded, show_wrong=True)
    print(f"exact captions on unseen scenes: {share:.1%}")
    loaded.model.half().save_pretrained(options.output)
    if share < WANTED:
        sys.exit(f"fewer than {WANTED:.0%}; try another --seed")


if __name__ == "__main__":
    main()
