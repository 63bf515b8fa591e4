"""The ways to caption that are compared: a plain script, `generate()` in batches, the slot engine.

Each is given the same items and the same drawn lengths, and yields one outcome per item.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
from PIL import Image

from benchmarks.caption.inputs import Workload
from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.loading import LoadedModel
from etl.caption.slots.timing import Timings
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason
from etl.settings import Settings

Outcomes = Iterator[CaptionResult | ItemFailure]


class OneByOne:
    """The first user's script: open, process and caption one picture after the other; nothing overlaps."""

    def __init__(self, loaded: LoadedModel, workload: Workload, clock: Timings) -> None:
        self._loaded = loaded
        self._workload = workload
        self._clock = clock

    def caption(self, items: Iterable[CaptionItem]) -> Outcomes:
        """Caption the items in their order."""
        loaded = self._loaded
        for item in items:
            with self._clock("feed", host=True):
                inputs = processed(loaded, self._workload, item)
            limit = self._workload.limit_of(item)
            with torch.inference_mode():
                rows = loaded.model.generate(**inputs, generation_config=loaded.generation_config(limit))
            ids = rows[0, inputs["input_ids"].shape[1] :].tolist()
            text = loaded.processor.tokenizer.decode(ids, skip_special_tokens=True)
            yield CaptionResult(item.id, text, len(ids), FinishReason.LENGTH)


def processed(loaded: LoadedModel, workload: Workload, item: CaptionItem) -> Any:
    """Return what the model takes for one item, on its device, as transformers' processor makes it."""
    processor = loaded.processor
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    picture = Image.open(workload.locate(item.working_sha256)).convert("RGB")
    return processor(images=picture, text=text, return_tensors="pt").to(loaded.device, loaded.dtype)


class DrawnGenerate(GenerateCaptioner):
    """The product's `generate()` captioner, whose batches run until the longest caption drawn for their items.

    The product knows one limit for all captions and ends them at their end token; here nothing ends by itself, so the
    limit is set batch by batch, which comes to the same.
    """

    def __init__(
        self, loaded: LoadedModel, settings: Settings, workload: Workload, clock: Timings, *, static: bool = False
    ) -> None:
        super().__init__(loaded, settings, workload.locate)
        self._workload = workload
        self._clock = clock
        self._static = static

    def _prepare_next(self, *arguments: Any) -> Any:
        following = super()._prepare_next(*arguments)
        return following and _Timed(following, self._clock)

    def _run(self, batch: Any, should_stop: Callable[[], bool]) -> Outcomes:
        if batch.items:
            longest = max(self._workload.limit_of(item) for item in batch.items)
            self._max_new_tokens = longest
            self._generation = self._loaded.generation_config(longest)
            if self._static:
                # transformers compiles the decode step by itself then, on a GPU.
                self._generation.cache_implementation = "static"
        for outcome in super()._run(batch, should_stop):
            yield _own_tokens(outcome, self._limit)

    def _limit(self, number: int) -> int:
        return self._workload.lengths[number % len(self._workload.lengths)]


def _own_tokens(outcome: CaptionResult | ItemFailure, limit: Callable[[int], int]) -> CaptionResult | ItemFailure:
    """Return the caption with the tokens that were wanted; those behind them, for longer neighbours, are waste."""
    if isinstance(outcome, ItemFailure):
        return outcome
    return dataclasses.replace(outcome, tokens=min(outcome.tokens, limit(outcome.id)))


@dataclasses.dataclass(frozen=True)
class _Timed:
    """A future; waiting for it counts as feeding."""

    future: "Future[Any]"
    clock: Timings

    def result(self) -> Any:
        with self.clock("feed", host=True):
            return self.future.result()


@dataclasses.dataclass(frozen=True)
class Way:
    """One row of the table.

    Attributes:
        name: as ``--rows`` knows it.
        shown: for people.
        batch: pictures captioned together; 0 where the engine knows slots.
        static: with transformers' static cache.
        candidates: what of `etl.caption.slots.candidates` is on in the engine.
    """

    name: str
    shown: str
    batch: int
    static: bool = False
    candidates: tuple[str, ...] = ()


WAYS = {
    way.name: way
    for way in (
        Way("one", "plain script: one by one, `generate()`", 1),
        Way("generate-32", "`generate()`, batches of 32", 32),
        Way("generate-128", "`generate()`, batches of 128", 128),
        Way("slots", "slot engine", 0),
        # Last, because compiling takes longest and is the likeliest to fail.
        Way("static-64", "`generate()`, static cache, batches of 64", 64, static=True),
    )
}
