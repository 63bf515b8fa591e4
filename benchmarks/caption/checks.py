"""What must hold of the slot engine beside its speed: the same words, flat memory, an end when memory runs out."""

import copy
import dataclasses
import itertools
import resource
import time
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.caption.inputs import Workload
from benchmarks.caption.rows import forget
from benchmarks.caption.ways import processed
from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model.loading import LoadedModel
from etl.caption.slots.captioner import SlotCaptioner
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.settings import Settings

MARGIN_EPS = 4.0
"""Tokens may differ after a position whose two likeliest logits are nearer than so many units of rounding."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far captions are those of `generate()` one by one.

    Attributes:
        items: compared.
        equal: token for token the same.
        excused: that differ from a position on where the two likeliest logits are within the margin.
        margins: at the first difference of each caption that differs, in units of rounding of the likeliest logit.
        tokens: compared up to the first difference, or the end.
    """

    items: int
    equal: int
    excused: int
    margins: tuple[float, ...]
    tokens: int

    @property
    def holds(self) -> bool:
        """Whether every difference is excused."""
        return self.equal + self.excused == self.items


def check_tokens(
    loaded: LoadedModel, settings: Settings, workload: Workload, count: int, limit: int, penalty: float | None = None
) -> dict[str, Agreement]:
    """Compare the slot engine, and `generate()` in one batch as a measure of rounding alone, with one by one.

    ``penalty`` is the repetition penalty of all.
    """
    items = [
        dataclasses.replace(item, repetition_penalty=penalty)
        for item in itertools.islice(workload.items(), 1, count + 1)
    ]
    settings = dataclasses.replace(settings, max_new_tokens=limit, batch_size=count)
    spelled = _spelling(loaded)
    wanted = [_alone(loaded, workload, item, limit) for item in items]
    found = {}
    for name, make in (("slots", SlotCaptioner), ("generate in a batch", GenerateCaptioner)):
        captioner = make(spelled, settings, workload.locate)
        try:
            ids = {one.id: _ids(one) for one in captioner.caption(iter(items))}
        finally:
            captioner.close()
            forget(loaded)
        found[name] = compare([ids[item.id] for item in items], wanted)
    return found


def compare(found: list[list[int]], wanted: list[tuple[list[int], list[float]]]) -> Agreement:
    """Return how far token ids are those wanted; beside each of these is the gap of the two likeliest logits in eps."""
    equal = excused = tokens = 0
    margins = []
    for ids, (reference, gaps) in zip(found, wanted, strict=True):
        first = next((n for n, (a, b) in enumerate(zip(ids, reference, strict=True)) if a != b), None)
        tokens += len(reference) if first is None else first
        if first is None:
            equal += 1
            continue
        margins.append(gaps[first])
        excused += gaps[first] < MARGIN_EPS
    return Agreement(len(wanted), equal, excused, tuple(margins), tokens)


def _alone(loaded: LoadedModel, workload: Workload, item: CaptionItem, limit: int) -> tuple[list[int], list[float]]:
    """Return the ids of `generate()` for one item, and at each the gap of the two likeliest logits in eps."""
    inputs = processed(loaded, workload, item)
    config = loaded.generation_config(limit)
    config.repetition_penalty = item.repetition_penalty or 1.0
    with torch.inference_mode():
        out = loaded.model.generate(
            **inputs, generation_config=config, return_dict_in_generate=True, output_scores=True
        )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    eps = torch.finfo(loaded.dtype).eps
    top = torch.stack([logits[0].float().topk(2).values for logits in out.scores])
    gaps = (top[:, 0] - top[:, 1]) / (eps * top[:, 0].abs().clamp(min=1.0))
    return ids, gaps.tolist()


def _spelling(loaded: LoadedModel) -> LoadedModel:
    """Return the model with a tokenizer whose "text" is the ids themselves: the product hands out text alone."""
    processor = copy.copy(loaded.processor)
    tokenizer = copy.deepcopy(loaded.processor.tokenizer)
    tokenizer.__class__ = type("Spelling", (type(tokenizer),), {"decode": _spell})
    processor.tokenizer = tokenizer
    return dataclasses.replace(loaded, processor=processor)


def _spell(_: Any, ids: Iterable[int], **__: Any) -> str:
    return " ".join(map(str, ids))


def _ids(outcome: CaptionResult | ItemFailure) -> list[int]:
    if isinstance(outcome, ItemFailure):
        raise RuntimeError(f"caption {outcome.id} failed: {outcome.message}")
    return [int(word) for word in outcome.text.split()]


@dataclasses.dataclass(frozen=True)
class Soak:
    """A long run through the slot engine.

    Attributes:
        captions, failures, seconds: of the whole run, fill and end included.
        marks: captions finished, bytes allocated and reserved on the GPU, and the peak resident memory of this process
            in bytes, at each sixth of the run.
    """

    captions: int
    failures: int
    seconds: float
    marks: tuple[tuple[int, int, int, int], ...]

    @property
    def growth(self) -> float:
        """By what factor memory on the GPU (without one: of the process) grew from the second sixth to the last."""
        column = 2 if self.marks[0][2] else 3
        return self.marks[-1][column] / self.marks[1][column]


def soak(loaded: LoadedModel, settings: Settings, workload: Workload, count: int) -> Soak:
    """Caption so many pictures and watch the memory."""
    forget(loaded)
    captioner = SlotCaptioner(loaded, settings, workload.locate, limit_of=workload.limit_of)
    captions = failures = 0
    marks = []
    begun = time.perf_counter()
    due = [max(1, count * sixth // 6) for sixth in range(1, 7)]
    try:
        for outcome in captioner.caption(itertools.islice(workload.items(), count)):
            captions += isinstance(outcome, CaptionResult)
            failures += isinstance(outcome, ItemFailure)
            while due and captions + failures >= due[0]:
                due.pop(0)
                marks.append((captions, *_memory(loaded.device)))
        return Soak(captions, failures, time.perf_counter() - begun, tuple(marks))
    finally:
        captioner.close()
        forget(loaded)


def _memory(device: torch.device) -> tuple[int, int, int]:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type != "cuda":
        return 0, 0, resident
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device), resident


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """A run whose memory was capped below what the engine asks for.

    Attributes:
        cap_bytes: of GPU memory that the process was allowed.
        asked, captions, failures: items, and how they ended.
        slots: at the end, after the engine made itself smaller.
    """

    cap_bytes: int
    asked: int
    captions: int
    failures: int
    slots: int


def squeeze(loaded: LoadedModel, settings: Settings, workload: Workload, count: int) -> Squeeze:
    """Let the engine run out of memory: it sees the card's free memory, but may only have a quarter of it.

    Only with a GPU.
    """
    forget(loaded)
    free, total = torch.cuda.mem_get_info(loaded.device)
    cap = torch.cuda.memory_reserved(loaded.device) + free // 4
    torch.cuda.set_per_process_memory_fraction(cap / total)
    captioner = SlotCaptioner(loaded, settings, workload.locate)
    try:
        outcomes = list(captioner.caption(itertools.islice(workload.items(), count)))
        captions = sum(isinstance(one, CaptionResult) for one in outcomes)
        return Squeeze(cap, count, captions, count - captions, captioner.sample().slots)
    finally:
        captioner.close()
        torch.cuda.set_per_process_memory_fraction(1.0)
        forget(loaded)
