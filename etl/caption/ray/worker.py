"""One captioning actor of a Ray cluster: the same engine as on one machine, fed with pictures that travel as bytes.

Knows nothing of Ray, and nothing of the state: the driver claims, and the driver commits.  Methods may be called from
several threads at once; the model works in a thread of its own.
"""

import contextlib
import functools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etl.caption.captioner import failure
from etl.caption.ledger import to_wire
from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.errors import EtlError, WorkingCopyError
from etl.gpu import allocator_environment
from etl.images.cache import ImageCache
from etl.ray_cluster.directory import own_directory
from etl.settings import Settings
from etl.version import __version__


class RayWorker:
    """Captions what it is given until it is killed.

    ``config``: ``version`` of the driver, ``settings`` as `Settings.to_json` gives them, ``longest_edge``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._cache = ImageCache(own_directory(in_memory=True))
        self._changed = threading.Condition()
        self._items: deque[CaptionItem] = deque()
        self._outcomes: list[CaptionResult | ItemFailure] = []
        self._pictures: Counter[str] = Counter()
        self._names: dict[int, str] = {}
        self._given_up = 0
        self._busy = [0, 0]
        self._recipe: str | None = None
        self._error: str | None = None
        threading.Thread(target=self._work, name="captioner", daemon=True).start()

    def ready(self) -> dict[str, Any]:
        """Wait until the model is loaded; return ``recipe`` (JSON) and ``slots``, or ``error``."""
        with self._changed:
            self._changed.wait_for(lambda: self._recipe is not None or self._error is not None)
            return {"recipe": self._recipe, "error": self._error, "slots": self._busy[0]}

    def give(self, items: Sequence[tuple[dict[str, Any], bytes]]) -> None:
        """Take on items: the fields of a `CaptionItem`, and the bytes of its working copy."""
        for fields, data in items:
            item = CaptionItem(**fields)
            name = self._cache.put_working(data)
            with self._changed:
                if name != item.working_sha256:
                    broken = WorkingCopyError(f"the working copy {item.working_sha256} was damaged on its way")
                    self._outcomes.append(failure(item, broken, now_ms()))
                    self._remove(name)
                else:
                    self._pictures[name] += 1
                    self._names[item.id] = name
                    self._items.append(item)
                self._changed.notify_all()

    def take(self, wait_s: float) -> dict[str, Any]:
        """Return what is finished, after at most ``wait_s`` seconds, and how busy the engine is.

        ``outcomes`` are as `etl.caption.ledger.to_wire` puts them; ``error`` why the engine as a whole cannot go on.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or self._error, wait_s)
            outcomes, self._outcomes = self._outcomes, []
            return {
                "outcomes": [to_wire(outcome) for outcome in outcomes],
                "busy": tuple(self._busy),
                "error": self._error,
            }

    def abandon(self) -> None:
        """Want nothing any more of what was given."""
        with self._changed:
            self._given_up += 1
            while self._items:
                self._forget(self._items.popleft().id)
            self._outcomes.clear()

    def _work(self) -> None:
        try:
            if self._config["version"] != __version__:
                raise EtlError(f"this node has caption-etl {__version__}, the driver {self._config['version']}")
            settings = Settings.from_json(self._config["settings"])
            if settings.device != "cpu":
                # Before torch is loaded, so nothing above may import it.
                os.environ.update(allocator_environment(os.environ))
            from etl.caption.local import open_local

            captioner = open_local(settings, self._cache.working_path, self._config["longest_edge"])
            self._sample(captioner.samples())
            with self._changed:
                self._recipe = captioner.recipe.to_json()
                self._changed.notify_all()
            while True:
                first, before = self._wait_for_item()
                stop = functools.partial(self._is_abandoned, before)
                for outcome in captioner.caption(self._pull(first, stop), should_stop=stop):
                    self._sample(captioner.samples())
                    self._finish(outcome, stop)
                self._sample(captioner.samples())
                self._forget_unfinished()
        except EtlError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"unexpected error: {type(error).__name__}: {error}")

    def _fail(self, why: str) -> None:
        with self._changed:
            self._error = why
            self._changed.notify_all()

    def _sample(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._busy = [sample.slots, sample.in_use]

    def _is_abandoned(self, before: int) -> bool:
        """Return whether `abandon` was called more often than that."""
        return self._given_up != before

    def _wait_for_item(self) -> tuple[CaptionItem, int]:
        """Return the next item, once there is one, and how often `abandon` was called before."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            return self._items.popleft(), self._given_up

    def _pull(self, first: CaptionItem, stop: Callable[[], bool]) -> Iterator[CaptionItem | None]:
        """Yield what there is, and ``None`` while there is nothing."""
        yield first
        while not stop():
            with self._changed:
                item = self._items.popleft() if self._items else None
            yield item

    def _finish(self, outcome: CaptionResult | ItemFailure, stop: Callable[[], bool]) -> None:
        with self._changed:
            if stop():
                return
            self._forget(outcome.id)
            self._outcomes.append(outcome)
            self._changed.notify_all()

    def _forget_unfinished(self) -> None:
        """Remove the pictures of items that the engine had begun when they were given up."""
        with self._changed:
            for item in self._names.keys() - {item.id for item in self._items}:
                self._forget(item)

    def _forget(self, item: int) -> None:
        """Remove an item's picture, once no other item needs it."""
        name = self._names.pop(item, None)
        if name is None:
            return
        self._pictures[name] -= 1
        self._remove(name)

    def _remove(self, name: str) -> None:
        """Remove a picture, unless an item needs it."""
        if self._pictures[name] <= 0:
            del self._pictures[name]
            with contextlib.suppress(EtlError):
                self._cache.remove(self._cache.working_path(name))
