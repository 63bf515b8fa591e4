"""What becomes of captions whose working copy could not be opened: it is fetched again, and they wait for it."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from etl.domain.items import ItemFailure
from etl.images.cache import ImageCache
from etl.images.working_copies import holds
from etl.state.captions import CaptionQueue
from etl.state.presence import require_cache
from etl.state.read.reader import Reader

log = logging.getLogger(__name__)


class LostPictures:
    """Sees to the captions of one queue that had no picture.

    Attributes:
        count: captions that wait because of it.
    """

    def __init__(self, state: Path, queue: CaptionQueue) -> None:
        self.count = 0
        self._state = state
        self._cache = ImageCache.of_state(state)
        self._queue = queue

    def settle(self, failures: Sequence[ItemFailure]) -> list[ItemFailure]:
        """Let captions wait, uncharged, whose file is gone or damaged; return the failures that must be charged.

        Those are of a file that is as it was written (what opened it, or brought it to a node, failed: it may be tried
        again), and of one that was lost earlier in this run too, so that a bad disk lets nobody fetch for ever.

        Raises `CacheMissingError` when the whole cache is gone, `StateError` when it may not be read or written.
        """
        with Reader(self._state) as reader:
            require_cache(reader)
        names = self._queue.working_copies(failure.id for failure in failures)
        whole = {name: holds(self._cache.working_path(name), name) for name in set(names.values())}
        before = self._queue.lost_before(names)
        gone, charged = list[ItemFailure](), list[ItemFailure]()
        for failure in failures:
            if whole.get(names.get(failure.id, ""), True):
                charged.append(failure)
            elif failure.id in before:
                words = f"{failure.message}, though this run had it fetched again: see to the disk, then `etl verify`"
                charged.append(dataclasses.replace(failure, message=words, retryable=False))
            else:
                gone.append(failure)
        if gone:
            self._let_wait(gone, {names[failure.id] for failure in gone})
        return charged

    def _let_wait(self, gone: list[ItemFailure], names: set[str]) -> None:
        for name in names:
            # First, and were it left, the next fetch would take it for the finished file of its name.
            self._cache.remove(self._cache.working_path(name))
        count = self._queue.lose(gone)
        self.count += count
        log.warning("%d captions wait: %s; to be fetched again", count, gone[0].message)
