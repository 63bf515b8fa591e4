"""Caption: images and prompts become captions, committed as they finish.

A caption exists once its transaction is committed; a crash costs at most what the model was working on.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator

from etl.caption.captioner import Captioner
from etl.caption.lost_pictures import LostPictures
from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import Stage
from etl.domain.views import EngineSample, StageSummary
from etl.errors import StateError, WorkingCopyError
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.captions import CaptionQueue
from etl.state.store import Store

log = logging.getLogger(__name__)

IDLE_S = 0.2
"""Seconds between two looks at an empty queue while fetch may still fill it."""

SAMPLE_S = 5.0
"""Seconds between two records of how busy the engine is: 1,440 rows for each worker in a two-hour run."""


def caption(
    store: Store,
    run: int,
    settings: Settings,
    captioner: Captioner,
    control: RunControl,
    *,
    more_coming: Callable[[], bool] = lambda: False,
) -> StageSummary:
    """Caption everything that is due until nothing is left and ``more_coming()`` is false.

    A picture that is gone from the cache, or damaged in it, goes back into the fetch queue, and its captions wait.
    Raises `CacheMissingError` when the whole cache is gone, `StateError` when it cannot be read.
    """
    recipe = captioner.recipe
    row = store.use_recipe(sha256=recipe.sha256, model=recipe.model, revision=recipe.revision, spec=recipe.to_json())
    queue = store.captions(run, row)
    # First tell fetch, then queue what is there already: in the other order a picture could fall between.
    control.recipe = row
    queue.enqueue_possible()
    record = functools.partial(store.record_engine, run)
    return _Caption(
        queue, settings, captioner, control, more_coming, record, LostPictures(store.directory, queue)
    ).run()


class _Caption:
    """One caption stage at work."""

    def __init__(
        self,
        queue: CaptionQueue,
        settings: Settings,
        captioner: Captioner,
        control: RunControl,
        more_coming: Callable[[], bool],
        record: Callable[[EngineSample], None],
        lost: LostPictures,
    ) -> None:
        self._more_coming = more_coming
        self._record = record
        self._lost = lost
        self._lost_before = 0
        self._sample_at = 0.0
        self._queue = queue
        self._size = settings.batch_size
        self._captioner = captioner
        self._control = control
        self._results: list[CaptionResult] = []
        self._failures: list[ItemFailure] = []
        self._started = now_ms()
        self._done = self._retried = self._dead = 0

    def run(self) -> StageSummary:
        try:
            while not self._control.stopping:
                # Asked before the queue is looked at: what fetch commits as its last is then still seen.
                expecting = self._more_coming()
                worked = self._control.accepting_work and self._work()
                if not worked and not expecting and self._is_finished() and not self._fetches_again():
                    break
                if not worked:
                    self._control.wait(IDLE_S)
        finally:
            self._commit()
            released = self._queue.release_all()
            self._sample()
        return StageSummary(self._done, self._retried, self._dead, released, lost=self._lost.count)

    def _fetches_again(self) -> bool:
        """Have this run fetch what was lost since the last time, if it fetches at all; return whether it does."""
        before, self._lost_before = self._lost_before, self._lost.count
        return self._lost.count > before and self._control.recall(Stage.FETCH)

    def _is_finished(self) -> bool:
        """Return whether nothing waits, and fetch committed no picture before it was told the recipe."""
        return self._queue.next_due_ms() is None and not self._queue.enqueue_possible()

    def _work(self) -> bool:
        """Caption what is due now; return whether there was anything."""
        before = self._ended
        self._caption(self._claims())
        while self._control.accepting_work and (suspect := self._queue.claim_suspect()):
            log.warning("caption %d was in flight at %d crashes; captioning it alone", suspect.id, suspect.crashes)
            self._caption(iter([suspect]))
        return self._ended > before

    @property
    def _ended(self) -> int:
        return self._done + self._retried + self._dead + self._lost.count

    def _claims(self) -> Iterator[CaptionItem | None]:
        """Yield claimed items while claiming is allowed and there are any, ``None`` while there may soon be some."""
        look_at = 0.0
        while self._control.accepting_work:
            # A captioner that has other work to do asks again within milliseconds.
            if time.monotonic() < look_at:
                yield None
                continue
            expecting = self._more_coming()
            items = self._queue.claim(self._size)
            if not items and not expecting:
                return
            look_at = 0.0 if items else time.monotonic() + IDLE_S
            if items:
                yield from items
            else:
                yield None

    def _caption(self, items: Iterator[CaptionItem | None]) -> None:
        self._started = now_ms()
        last = time.monotonic()
        for outcome in self._captioner.caption(items, should_stop=self._control.should_abandon):
            if isinstance(outcome, CaptionResult):
                self._results.append(outcome)
            elif outcome.stops:
                raise StateError(outcome.message)
            else:
                self._failures.append(outcome)
            now = time.monotonic()
            if len(self._results) + len(self._failures) >= self._size or now - last > 1.0:
                self._commit()
                last = now
            if now >= self._sample_at:
                self._sample()
        self._commit()

    def _sample(self) -> None:
        """Record how busy the engine is, for those who look on."""
        self._sample_at = time.monotonic() + SAMPLE_S
        for sample in self._captioner.samples():
            self._record(sample)

    def _commit(self) -> None:
        results, failures, started = self._results, self._failures, self._started
        self._results, self._failures, self._started = [], [], now_ms()
        if results:
            self._done += self._queue.commit(results, started)
        if pictureless := [failure for failure in failures if failure.slug == WorkingCopyError.slug]:
            failures = [failure for failure in failures if failure.slug != WorkingCopyError.slug]
            failures += self._lost.settle(pictureless)
        if failures:
            dead = self._queue.fail(failures)
            self._dead += sum(dead)
            self._retried += len(dead) - sum(dead)
