"""Measures one way to caption over a steady stretch: after its warm-up, before it runs out of pictures."""

import contextlib
import dataclasses
import gc
import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.caption.inputs import Supply, Workload
from benchmarks.caption.phase_hooks import phases_of
from benchmarks.caption.ways import DrawnGenerate, OneByOne, Outcomes, Way
from etl.caption.model.checkpoint import one_line
from etl.caption.model.loading import LoadedModel
from etl.caption.slots.candidates import Candidates
from etl.caption.slots.captioner import SlotCaptioner
from etl.caption.slots.timing import Timings
from etl.domain.items import CaptionItem, ItemFailure
from etl.settings import Settings

REMEMBERED = 64
"""Captions whose words are noted in each row."""


@dataclass(frozen=True)
class Row:
    """What one way reached.

    Attributes:
        name, shown: of the way.
        captions, tokens, seconds: of the steady stretch.
        phases: seconds of the stretch by phase; on a GPU phases of several streams overlap, so they may add up to more.
        whole_captions, whole_seconds: warm-up and the last, ever emptier, batches or slots included.
        at_once: captions written at once at the end: the slots, or the batch size after memory ran out, if it did.
        peak_bytes, reserved_bytes: of GPU memory, by tensors and with what the allocator holds; ``None`` without a GPU.
        fault: why there is no figure.
        words: of the first captions, by item, as short hashes: whether another way writes the same.
    """

    name: str
    shown: str
    captions: int = 0
    tokens: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    whole_captions: int = 0
    whole_seconds: float = 0.0
    at_once: int = 0
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    fault: str | None = None
    words: dict[int, str] = field(default_factory=dict)

    @property
    def images_per_s(self) -> float:
        """Captions per second in the steady stretch."""
        return self.captions / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything, rates included."""
        rates = {"images_per_s": self.images_per_s, "tokens_per_s": self.tokens / self.seconds if self.seconds else 0.0}
        return dataclasses.asdict(self) | rates


def measure(way: Way, loaded: LoadedModel, settings: Settings, workload: Workload, seconds: float) -> Row:
    """Measure a way for about so many seconds after its warm-up; a way that fails gives a row that says why."""
    try:
        return _measured(way, loaded, settings, workload, seconds)
    except Exception as error:
        # Whatever it is, on a machine where nobody has tried it: the other rows are still wanted.
        fault = reason(error)
    finally:
        forget(loaded)
    return Row(way.name, way.shown, fault=fault)


def reason(error: Exception) -> str:
    """Return an error as one line; all of it goes to standard error, as the machine may not be at hand again."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)}"


def forget(loaded: LoadedModel) -> None:
    """Give back everything but the model, so that the next measurement begins with all memory."""
    if loaded.device.type == "cuda":
        torch.cuda.synchronize()
    gc.collect()
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _measured(way: Way, loaded: LoadedModel, settings: Settings, workload: Workload, seconds: float) -> Row:
    forget(loaded)
    supply = Supply(workload)
    with contextlib.ExitStack() as stack:
        run = _open(way, loaded, settings, workload, stack)
        row = _steady(way, run, supply, seconds)
        if loaded.device.type != "cuda":
            return row
        if way.static:
            torch.compiler.reset()
        return dataclasses.replace(
            row, peak_bytes=torch.cuda.max_memory_allocated(), reserved_bytes=torch.cuda.max_memory_reserved()
        )


@dataclass(frozen=True)
class _Run:
    """A way that is ready: its captions, the clock of its phases, and how many captions it writes at once."""

    caption: Callable[[Iterable[CaptionItem]], Outcomes]
    phases: Callable[[], dict[str, float]]
    at_once: Callable[[], int]


def _open(way: Way, loaded: LoadedModel, settings: Settings, workload: Workload, stack: contextlib.ExitStack) -> _Run:
    if not way.batch:
        engine = SlotCaptioner(
            loaded, settings, workload.locate, limit_of=workload.limit_of, candidates=Candidates.of(way.candidates)
        )
        stack.callback(engine.close)
        return _Run(engine.caption, lambda: dict(engine.timings), lambda: engine.sample().slots)
    clock = Timings(loaded.device)
    if not (way.static and loaded.device.type == "cuda"):
        # Hooks would become part of what is compiled.
        stack.enter_context(phases_of(loaded.model, clock))
    if way.batch == 1:
        return _Run(OneByOne(loaded, workload, clock).caption, clock.seconds, lambda: 1)
    settings = dataclasses.replace(settings, batch_size=way.batch)
    captioner = DrawnGenerate(loaded, settings, workload, clock, static=way.static)
    stack.callback(captioner.close)
    return _Run(captioner.caption, clock.seconds, lambda: captioner.batch_size)


def _steady(way: Way, run: _Run, supply: Supply, seconds: float) -> Row:
    """Count captions from the end of the warm-up on.

    A warm-up is one whole batch, or all slots filled twice, so that they end at different times.  Batches are counted
    whole; slots until the pictures end, before they become empty one after the other.
    """
    begun = time.perf_counter()
    started: float | None = None
    ended = begun
    counted = tokens = whole = 0
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    words: dict[int, str] = {}
    for tokens_of in _finished(run.caption(supply), words):
        whole, now = whole + 1, time.perf_counter()
        if started is None:
            if whole >= (way.batch or 2 * run.at_once()):
                started, before = now, _seconds(run)
            continue
        if now - started >= seconds:
            supply.end()
        if after:
            continue
        counted, tokens, ended = counted + 1, tokens + tokens_of, now
        if supply.is_dry and not way.batch:
            after = _seconds(run)
    after = after or _seconds(run)
    phases = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return Row(
        way.name,
        way.shown,
        counted,
        tokens,
        ended - (started or begun),
        phases,
        whole,
        time.perf_counter() - begun,
        run.at_once(),
        words=words,
    )


def _finished(outcomes: Outcomes, words: dict[int, str]) -> Iterator[int]:
    """Yield the tokens of each caption, and note the first ones' words.

    Raises `RuntimeError` for a failure: no item here deserves one.
    """
    for outcome in outcomes:
        if isinstance(outcome, ItemFailure):
            raise RuntimeError(f"caption {outcome.id} failed: {outcome.message}")
        if outcome.id < REMEMBERED:
            words[outcome.id] = hashlib.sha256(outcome.text.encode()).hexdigest()[:8]
        yield outcome.tokens


def _seconds(run: _Run) -> dict[str, float]:
    if torch.cuda.is_available():
        # Marks of work that is still under way have no time yet.
        torch.cuda.synchronize()
    return dict(run.phases())
