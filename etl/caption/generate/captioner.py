"""Captions in batches through transformers' own `generate()`: the fallback engine, and the oracle of the others."""

import contextlib
import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from etl.caption.captioner import failure, never
from etl.caption.generate.batches import Batch, BatchMaker, moved_to
from etl.caption.generate.guards import FiniteGuard, Precision, StopSignal, wider_precisions, without_padding
from etl.caption.model import cuda
from etl.caption.model.checkpoint import one_line
from etl.caption.model.faults import BATCH_FAULTS, short_of_memory
from etl.caption.model.loading import LoadedModel
from etl.caption.quality import RECOMPUTED
from etl.caption.recipe import Recipe
from etl.caption.tokens import Detokenizer
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.views import EngineSample
from etl.errors import GenerationError
from etl.settings import Settings

log = logging.getLogger(__name__)

ENGINE = "generate"


@dataclass(frozen=True)
class _Fault:
    """Why a batch failed.  Text alone: holding the exception would hold the tensors of its frames."""

    message: str
    out_of_memory: bool


@dataclass(frozen=True)
class _Output:
    """New token ids of one row, and whether its logits stayed finite."""

    ids: list[int]
    finite: bool


class GenerateCaptioner:
    """A `Captioner` on one device.

    Each batch is prepared in a thread while the model works on the one before.  When memory runs out, the
    batch size is halved for the rest of the captioner's life, and the batch is done again in parts.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: Settings,
        locate: Callable[[str], Path],
        *,
        longest_edge: int | None = None,
    ) -> None:
        """``locate`` maps a working copy's hash to its file; ``longest_edge`` is the recipe's, if not the settings'.

        Raises `ModelError` when the model's processor or chat template cannot serve one picture and one prompt.
        """
        self._loaded = loaded
        self._model = loaded.model
        self._max_new_tokens = settings.max_new_tokens
        self._batch_size = settings.batch_size
        self._recipe = loaded.recipe(settings, engine=ENGINE, longest_edge=longest_edge)
        self._maker = BatchMaker(loaded, settings, locate)
        self._generation = loaded.generation_config(settings.max_new_tokens)
        self._is_told = False
        self._in_use = self._captions = self._tokens = 0
        self._detokenizer = Detokenizer(loaded)

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions."""
        return self._recipe

    @property
    def batch_size(self) -> int:
        """Pictures captioned together now: the setting, or less once memory has run out."""
        return self._batch_size

    def close(self) -> None:
        """Let go of the model; its memory is free once the caller holds no `LoadedModel` either."""
        self._model = self._loaded = None  # type: ignore[assignment]  # unusable from here on
        cuda.free_memory()

    def samples(self) -> tuple[EngineSample]:
        """Return how busy the model is."""
        return (
            EngineSample(
                worker=0,
                slots=self._batch_size,
                in_use=self._in_use,
                waiting=0,
                captions=self._captions,
                tokens=self._tokens,
            ),
        )

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Yield one outcome per item, a batch at a time; see `etl.caption.captioner.Captioner`."""
        batches = self._batches(_until_none(items))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as pool:
            following = self._prepare_next(pool, batches, should_stop)
            while following is not None:
                batch = following.result()
                following = self._prepare_next(pool, batches, should_stop)
                yield from self._run(batch, should_stop)

    def _batches(self, items: Iterable[CaptionItem]) -> Iterator[list[CaptionItem]]:
        """Yield the items in batches of one repetition penalty each, pulled no further than one full batch."""
        source = iter(items)
        while pulled := list(itertools.islice(source, self._batch_size)):
            alike: dict[float | None, list[CaptionItem]] = {}
            for item in pulled:
                alike.setdefault(item.repetition_penalty, []).append(item)
            yield from alike.values()

    def _prepare_next(
        self, pool: ThreadPoolExecutor, batches: Iterator[list[CaptionItem]], should_stop: Callable[[], bool]
    ) -> "Future[Batch] | None":
        items = [] if should_stop() else next(batches, [])
        return pool.submit(self._maker.make, items) if items else None

    def _run(self, batch: Batch, should_stop: Callable[[], bool]) -> Iterator[CaptionResult | ItemFailure]:
        yield from batch.failures
        if not batch.items or should_stop():
            return
        if len(batch.items) > self._batch_size:
            yield from self._run_parts(batch.items, self._batch_size, should_stop)
            return
        self._in_use = len(batch.items)
        outcome = self._attempt(batch, should_stop) if batch.inputs else _Fault(batch.fault, False)
        self._in_use = 0
        if isinstance(outcome, _Fault):
            yield from self._recover(batch, outcome, should_stop)
            return
        overflowed = []
        for item, output in zip(batch.items, outcome, strict=True):
            if not output.finite:
                overflowed.append(item)
            elif result := self._result(item, output):
                yield result
        if overflowed:
            yield from self.recompute(overflowed, should_stop)

    def _run_parts(
        self, items: list[CaptionItem], size: int, should_stop: Callable[[], bool]
    ) -> Iterator[CaptionResult | ItemFailure]:
        for part in _parts(items, size):
            if should_stop():
                return
            yield from self._run(self._maker.make(part), should_stop)

    def _recover(
        self, batch: Batch, fault: _Fault, should_stop: Callable[[], bool]
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Do a failed batch again in parts; a single item that failed alone is a failure."""
        if fault.out_of_memory:
            cuda.free_memory()
        if len(batch.items) == 1:
            yield failure(batch.items[0], GenerationError(fault.message), batch.started_at)
            return
        size = 1
        if fault.out_of_memory:
            size = (len(batch.items) + 1) // 2
            if size < self._batch_size:
                self._batch_size = size
                log.warning("out of memory with %d pictures; going on with %d at a time", len(batch.items), size)
        if fault.out_of_memory or self._is_told:
            yield from self._run_parts(batch.items, size, should_stop)
            return
        alone = list(self._run_parts(batch.items, size, should_stop))
        # Where one of them fails alone, too, it was that picture.
        if all(isinstance(outcome, CaptionResult) for outcome in alone) and not should_stop():
            self._is_told = True
            log.warning(
                "batches of %d pictures fail and are captioned one by one, up to %d times slower: %s",
                len(batch.items), len(batch.items), fault.message,
            )  # fmt: skip
        yield from alone

    def _attempt(
        self, batch: Batch, should_stop: Callable[[], bool], precision: Precision = contextlib.nullcontext
    ) -> list[_Output] | _Fault:
        """Generate for one batch.  Raises `ModelError` when the device cannot be used any more."""
        try:
            with precision(self._model):
                return self._generate(batch, should_stop)
        except BATCH_FAULTS as error:
            return _Fault(one_line(error), short_of_memory(error, self._loaded.device))

    def _generate(self, batch: Batch, should_stop: Callable[[], bool]) -> list[_Output]:
        device, dtype = self._loaded.device, self._model.dtype
        moved = {name: moved_to(value, device, dtype) for name, value in (batch.inputs or {}).items()}
        if len(self._loaded.begins) > 1:
            moved["decoder_input_ids"] = torch.tensor([self._loaded.begins] * len(batch.items), device=device)
        config, penalty = self._generation, batch.items[0].repetition_penalty
        if penalty is not None:
            config = copy.copy(config)
            config.repetition_penalty = penalty
            moved["input_ids"] = without_padding(moved["input_ids"], moved["attention_mask"])
        guard = FiniteGuard(self._loaded.eos, device)
        with torch.inference_mode():
            rows = self._model.generate(
                **moved,
                generation_config=config,
                logits_processor=LogitsProcessorList([guard]),
                stopping_criteria=StoppingCriteriaList([StopSignal(should_stop)]),
            )
        overflowed = guard.overflowed.tolist() if guard.overflowed is not None else []
        # Cut by count: the text of a prompt may come back in a caption.
        new = rows[:, guard.prompt_length :].tolist()
        return [_Output(ids, not bad) for ids, bad in zip(new, overflowed, strict=True)]

    def _result(self, item: CaptionItem, output: _Output, extra: tuple[str, ...] = ()) -> CaptionResult | None:
        """Return the finished caption, or ``None`` when generation was stopped in its middle."""
        if len(output.ids) < self._max_new_tokens and self._detokenizer.ended_at(output.ids) is None:
            return None
        result = self._detokenizer.result(item, output.ids, extra)
        self._captions += 1
        # Not the padding behind a caption that ended before its batch.
        self._tokens += result.tokens
        return result

    def recompute(
        self, items: list[CaptionItem], should_stop: Callable[[], bool]
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Caption items whose logits overflowed, one by one, in a type of more range; without one they fail."""
        # What batches of before have left behind counts as taken.
        cuda.free_memory()
        if wider := wider_precisions(self._model):
            log.warning("half precision overflowed on %d pictures; captioning them in a wider one", len(items))
        for item in items:
            if should_stop():
                return
            batch = self._maker.make([item])
            if batch.failures:
                yield from batch.failures
                continue
            outcome = self._attempt_in(wider, batch, should_stop)
            if isinstance(outcome, _Fault):
                yield failure(item, GenerationError(outcome.message), batch.started_at)
            elif result := self._result(item, outcome[0], (RECOMPUTED,)):
                yield result

    def _attempt_in(
        self, precisions: list[Precision], batch: Batch, should_stop: Callable[[], bool]
    ) -> list[_Output] | _Fault:
        """Try a batch of one in each precision, until the memory suffices for one."""
        outcome: list[_Output] | _Fault = _Fault(batch.fault or "the model's output is not a number", False)
        for precision in precisions if batch.inputs else []:
            outcome = self._attempt(batch, should_stop, precision)
            if not (isinstance(outcome, _Fault) and outcome.out_of_memory):
                break
            cuda.free_memory()
        if isinstance(outcome, list) and not outcome[0].finite:
            return _Fault("the model's output is not a number, in a wider type neither", False)
        return outcome


def _until_none(items: Iterable[CaptionItem | None]) -> Iterator[CaptionItem]:
    for item in items:
        if item is None:
            return
        yield item


def _parts(items: list[CaptionItem], size: int) -> Iterator[list[CaptionItem]]:
    return (items[start : start + size] for start in range(0, len(items), size))
