"""Captions through the slot engine: what feeds it, what becomes of its tokens, what happens when memory runs out."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from etl.caption.captioner import failure, never
from etl.caption.generate.captioner import GenerateCaptioner
from etl.caption.model import cuda
from etl.caption.model.checkpoint import one_line
from etl.caption.model.faults import BATCH_FAULTS, short_of_memory
from etl.caption.model.loading import LoadedModel
from etl.caption.recipe import Recipe
from etl.caption.slots.candidates import Candidates
from etl.caption.slots.capacity import PREFILL, engine_config
from etl.caption.slots.engine import Finished, SlotEngine
from etl.caption.slots.families import family_of
from etl.caption.slots.request_queue import RequestQueue
from etl.caption.slots.state import EngineConfig, Request
from etl.caption.slots.timing import Timings
from etl.caption.tokens import Detokenizer, PromptEncoder
from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.views import EngineSample
from etl.errors import GenerationError, ModelError
from etl.settings import Settings

log = logging.getLogger(__name__)

ENGINE = "slots"

IDLE_WAIT_S = 0.05
"""Longest wait for a picture while no slot is in use."""

Outcome = CaptionResult | ItemFailure


class SlotCaptioner:
    """A `Captioner` that drives a `SlotEngine` on one device.

    Pictures are opened and prompts encoded ahead of the engine.  The engine is made for the first pictures and made
    anew when a longer prompt, a repetition penalty or a lack of memory asks for another one.  When memory runs out,
    prefills become smaller, then slots fewer, for the rest of the captioner's life; what was in the slots is done again
    and no attempt is charged.

    Attributes:
        engine: the engine at work; ``None`` before the first picture and after a change of its configuration.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: Settings,
        locate: Callable[[str], Path],
        *,
        longest_edge: int | None = None,
        limit_of: Callable[[CaptionItem], int] | None = None,
        candidates: Candidates = Candidates(),  # noqa: B008 -- frozen
    ) -> None:
        """``locate`` maps a working copy's hash to its file; ``longest_edge`` is the recipe's, if not the settings'.

        ``limit_of`` gives a caption a limit of its own below ``max_new_tokens``.

        Raises `ModelError` when the model's processor or chat template cannot serve one picture and one prompt.
        """
        self.engine: SlotEngine | None = None
        self._loaded = loaded
        self._settings = settings
        self._candidates = candidates
        self._locate = locate
        self._recipe = loaded.recipe(settings, engine=ENGINE, longest_edge=longest_edge)
        longest = settings.max_new_tokens
        self._family = family_of(loaded, loaded.max_aspect(settings))
        self._queue = RequestQueue(
            self._family,
            PromptEncoder(loaded.processor, longest, loaded.context),
            locate,
            processes=_loaders(settings, loaded.device),
            limit_of=lambda item: longest if limit_of is None else min(longest, limit_of(item)),
        )
        self._detokenizer = Detokenizer(loaded)
        self._clock = Timings(loaded.device)
        self._overflowed: list[CaptionItem] = []
        self._prefill = PREFILL
        self._most_slots: int | None = None
        self._slots = settings.slots or settings.batch_size
        self._captions = self._tokens = 0

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions."""
        return self._recipe

    @property
    def timings(self) -> dict[str, float]:
        """Seconds by phase (`etl.caption.slots.timing`) so far."""
        return self._clock.seconds()

    def samples(self) -> tuple[EngineSample]:
        """Return how busy the engine is."""
        return (self.sample(),)

    def sample(self) -> EngineSample:
        """Return how busy the engine is."""
        return EngineSample(
            worker=0,
            slots=self._slots,
            in_use=self._in_use,
            waiting=self._queue.waiting,
            captions=self._captions,
            tokens=self._tokens,
        )

    def close(self) -> None:
        """Let go of the model; its memory is free once the caller holds no `LoadedModel` either."""
        self._end_engine()
        self._queue.close()
        self._loaded = self._family = None  # type: ignore[assignment]  # unusable from here on
        cuda.free_memory()

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[Outcome]:
        """Yield one outcome per item, as they finish; see `etl.caption.captioner.Captioner`."""
        queue = self._queue
        queue.begin(items)
        try:
            while not should_stop():
                yield from queue.pull(self._ahead)
                idle = not (queue.ready or self._in_use)
                with self._clock("feed", host=True):
                    broken = list(queue.receive(IDLE_WAIT_S if idle else 0.0))
                yield from broken
                if queue.ready or self._in_use:
                    yield from self._advance()
                elif queue.is_finished:
                    break
            if self._overflowed and not should_stop():
                yield from self._recompute(should_stop)
        finally:
            # After a stop, an error, or by a caller who wants no more: what is unfinished is forgotten.
            self._abandon()
            self._overflowed.clear()
            queue.abandon()

    def _abandon(self) -> None:
        if self.engine is None or not self.engine.in_use:
            return
        try:
            self.engine.abandon()
        except BATCH_FAULTS as error:
            # It must not hide the error that has led here; without one, the next engine meets what is wrong.
            log.debug("the slots could not be emptied: %s", one_line(error))
            self._end_engine()

    @property
    def _in_use(self) -> int:
        return self.engine.in_use if self.engine is not None else 0

    @property
    def _ahead(self) -> int:
        """Items pulled ahead of the engine: for the slots that will be free next."""
        return max(2 * PREFILL, self._slots // 2)

    def _advance(self) -> Iterator[Outcome]:
        """Fill free slots, write some tokens, and yield what has ended."""
        yield from self._fill()
        if self.engine is None or not self.engine.in_use:
            return
        try:
            finished = self.engine.step()
        except BATCH_FAULTS as error:
            if not short_of_memory(error, self._loaded.device):
                raise ModelError(f"the model failed while writing captions: {one_line(error)}") from error
            finished, message = None, one_line(error)
        if finished is None:
            self._have_fewer_slots(message)
            return
        for each in finished:
            if (result := self._result(each)) is not None:
                yield result

    def _fill(self) -> Iterator[Outcome]:
        """Prefill the oldest requests that fit; where none fits and no slot is in use, make an engine for them."""
        if not self._in_use and self._queue.ready and not any(self._holds(request) for request in self._queue.ready):
            self._make_engine()
        engine = self.engine
        if engine is None or not engine.free:
            return
        fitting = [request for request in self._queue.ready if engine.config.holds(request)]
        if self._candidates.by_length and fitting:
            # The oldest goes in any case.
            oldest = len(fitting[0].ids)
            fitting.sort(key=lambda request: abs(len(request.ids) - oldest))
        # Those about one picture go together: it is seen once for all of them.
        first: dict[str, int] = {}
        for place, request in enumerate(fitting):
            first.setdefault(request.item.working_sha256, place)
        fitting.sort(key=lambda request: first[request.item.working_sha256])
        group = fitting[: min(self._prefill, engine.free)]
        if not group:
            return
        for request in group:
            self._queue.ready.remove(request)
        fault = self._admit(engine, group)
        if fault is not None:
            yield from self._after_fault(group, *fault)

    def _holds(self, request: Request) -> bool:
        return self.engine is not None and self.engine.config.holds(request)

    def _admit(self, engine: SlotEngine, group: list[Request]) -> tuple[str, bool] | None:
        """Prefill a group; return why it failed and whether memory was short, in words that hold no tensors."""
        try:
            engine.admit(group)
        except BATCH_FAULTS as error:
            return one_line(error), short_of_memory(error, self._loaded.device)
        return None

    def _after_fault(self, group: list[Request], message: str, out_of_memory: bool) -> Iterator[Outcome]:
        """Try a failed group again in smaller ones; a single request that fails alone is a failure."""
        if out_of_memory:
            cuda.free_memory()
            if self._prefill > 1 and len(group) > 1:
                self._prefill = (len(group) + 1) // 2
                log.warning("out of memory with %d pictures; going on with %d at a time", len(group), self._prefill)
            elif self.engine is not None and self.engine.config.slots > 1:
                self._have_fewer_slots(message)
            else:
                yield failure(group.pop().item, GenerationError(message), now_ms())
            self._queue.ready.extendleft(reversed(group))
            return
        for request in group:
            alone = self._admit(self.engine, [request]) if len(group) > 1 and self.engine else (message, False)
            if alone is not None:
                yield failure(request.item, GenerationError(alone[0]), now_ms())

    def _have_fewer_slots(self, message: str) -> None:
        """Halve the slots; what is in them begins anew, before everything else."""
        assert self.engine is not None
        slots, unfinished = self.engine.config.slots, self.engine.unfinished()
        if slots == 1:
            raise ModelError(
                f"the GPU has no memory left for a single caption; lower --max-new-tokens (what it said: {message})"
            )
        self._most_slots = slots // 2
        self._end_engine()
        self._queue.ready.extendleft(reversed(unfinished))
        log.warning("out of memory with %d slots; going on with %d", slots, self._most_slots)

    def _make_engine(self) -> None:
        """Make an engine in which everything that is ready fits; the old one must be empty."""
        self._end_engine()
        cuda.free_memory()
        longest = max(request.max_seq_len for request in self._queue.ready)
        penalised = any(request.penalty != 1.0 for request in self._queue.ready)
        config: EngineConfig | None = None
        try:
            config = engine_config(
                self._loaded,
                self._settings,
                longest,
                penalised=penalised,
                most_slots=self._most_slots,
                tight=self._candidates.tight_rows,
            )
            self.engine = SlotEngine(self._loaded, self._family, config, self._clock, candidates=self._candidates)
            self._slots = config.slots
            return
        except BATCH_FAULTS as error:
            message, short = one_line(error), short_of_memory(error, self._loaded.device)
        if not short or config is None or config.slots == 1:
            raise ModelError(f"the slot engine cannot be set up: {message}")
        self._most_slots = config.slots // 2
        log.warning("out of memory with %d slots; going on with %d", config.slots, self._most_slots)

    def _end_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None
            cuda.free_memory()

    def _result(self, finished: Finished) -> CaptionResult | None:
        """Return the caption, or ``None`` when its logits overflowed and it must be written in float32."""
        if not finished.finite:
            self._overflowed.append(finished.request.item)
            return None
        result = self._detokenizer.result(finished.request.item, finished.ids)
        return self._counted(result)

    def _counted(self, result: CaptionResult) -> CaptionResult:
        self._captions += 1
        self._tokens += result.tokens
        return result

    def _recompute(self, should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Write in float32 what overflowed; last of all, as the weights then need the memory of the slots."""
        self._end_engine()
        items, self._overflowed = self._overflowed, []
        generate = GenerateCaptioner(self._loaded, self._settings, self._locate)
        for outcome in generate.recompute(items, should_stop):
            yield self._counted(outcome) if isinstance(outcome, CaptionResult) else outcome


def _loaders(settings: Settings, device: torch.device) -> int:
    """Return how many processes open pictures: two give 100 a second; beside a model on the CPU a thread will do."""
    if settings.feeders or not cuda.serves(device):
        return settings.feeders
    return min(2, max(1, (os.cpu_count() or 1) // 2))
