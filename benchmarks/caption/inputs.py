"""What the captioning benchmarks caption: working copies in a cache, prompts as records give them, drawn lengths."""

import gzip
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from etl.demo.scenes import random_record, random_scene
from etl.domain.items import CaptionItem
from etl.images.cache import ImageCache
from etl.images.decode import encode_working_copy, working_copy_image
from etl.ingest.prompts import PromptTemplate

PICTURE_SIZES = ((1024, 768), (768, 1024), (1024, 683), (1024, 1024), (1024, 811))
"""Pixels of the working copies: the long side is the product's default, the shapes are those of photographs."""

GRAIN_SIGMA = 6
"""Of the noise that makes a drawing as heavy to decode as a photograph: 0.28 bytes a pixel in a working copy."""


def read_records(manifest: Path | None, seed: int = 0) -> list[dict[str, Any]]:
    """Return the records that the product would select, shuffled.

    Without a manifest they are made up: titles and dates shaped like the archive's.
    """
    rng = random.Random(seed)
    if manifest is None:
        records = [random_record(rng) for _ in range(5000)]
    else:
        # Not through etl.ingest: that would need packages that a borrowed GPU machine may lack.
        opener: Callable[..., Any] = gzip.open if manifest.suffix == ".gz" else open
        with opener(manifest, "rt", encoding="utf-8") as file:
            every = (json.loads(line) for line in file)
            records = [one for one in every if "synthetic" in one.get("description_source", "synthetic")]
    rng.shuffle(records)
    return records


def prompts_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what the default template asks of each record."""
    template = PromptTemplate()
    return [template.render(record) for record in records]


def draw_lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    """Return caption lengths in tokens: gamma-distributed around half of ``longest``, never above it.

    With 200 their mean is 99 and their standard deviation 43.
    """
    rng = random.Random(seed)
    return [min(longest, max(1, round(rng.gammavariate(5.0, longest / 10)))) for _ in range(count)]


def photographs(count: int, seed: int = 0) -> Iterator[Image.Image]:
    """Yield so many different pictures, as heavy as photographs."""
    rng = random.Random(seed)
    # Pillow's noise has no seed: two caches differ, but not in what they cost.
    grain = Image.effect_noise((1400, 1400), GRAIN_SIGMA)
    for number in range(count):
        width, height = PICTURE_SIZES[number % len(PICTURE_SIZES)]
        left, top = rng.randrange(grain.width - width), rng.randrange(grain.height - height)
        noise = grain.crop((left, top, left + width, top + height)).convert("RGB")
        # Grain is centred on 128.
        yield ImageChops.add(random_scene(rng).draw(width, height), noise, offset=-128)


@dataclass(frozen=True)
class Workload:
    """Endless caption items over given pictures, prompts and lengths.

    Attributes:
        pictures: hashes of working copies.
        prompts: at least one.
        lengths: longest caption of item ``n``, in tokens; taken in turn, as pictures and prompts are.
        locate: maps a hash to its file.
    """

    pictures: list[str]
    prompts: list[str]
    lengths: list[int]
    locate: Callable[[str], Path]

    @classmethod
    def make(cls, cache: ImageCache, pictures: int, prompts: list[str], longest: int, seed: int = 0) -> "Workload":
        """Draw pictures and lengths.

        The first item has the longest prompt and the longest caption, so that whatever is sized by what was seen
        so far is sized once, during the warm-up.
        """
        first = max(prompts, key=len)
        lengths = [longest, *draw_lengths(9999, longest, seed)]
        copies = (encode_working_copy(working_copy_image(picture)) for picture in photographs(pictures, seed))
        hashes = [cache.put_working(copy) for copy in copies]
        return cls(hashes, [first, *prompts], lengths, cache.working_path)

    def items(self) -> Iterator[CaptionItem]:
        """Yield items without end, the same ones every time."""
        for number in itertools.count():
            yield CaptionItem(
                number, self.pictures[number % len(self.pictures)], self.prompts[number % len(self.prompts)]
            )

    def limit_of(self, item: CaptionItem) -> int:
        """Return the tokens that the item's caption is to have."""
        return self.lengths[item.id % len(self.lengths)]

    @property
    def mean_length(self) -> float:
        """Mean caption length in tokens."""
        return sum(self.lengths) / len(self.lengths)


class Supply:
    """Hands out a workload's items until it is told to end; whoever pulls may be in another thread."""

    def __init__(self, workload: Workload) -> None:
        self._items = workload.items()
        self._ended = threading.Event()
        self.is_dry = False

    def end(self) -> None:
        """Hand out nothing more."""
        self._ended.set()

    def __iter__(self) -> Iterator[CaptionItem]:
        for item in self._items:
            if self._ended.is_set():
                break
            yield item
        self.is_dry = True
