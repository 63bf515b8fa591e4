"""Whether the disk and the image cache may take more, and committing what they took."""

from collections.abc import Sequence

from etl.domain.items import FetchedImage, KnownImage
from etl.domain.statuses import Stage
from etl.errors import DiskFullError
from etl.fetch.cache_limit import CacheLimit
from etl.images.cache import ImageCache
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.presence import require_directory
from etl.state.sources import SourceQueue
from etl.state.store import Store
from etl.units import BYTES, size, written


class DiskBudget:
    """What a fetch may put on the disk.  Make it before the first decoder starts: it counts what is there then."""

    def __init__(
        self, store: Store, cache: ImageCache, queue: SourceQueue, settings: Settings, control: RunControl
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._settings = settings
        self._control = control
        self._limit = CacheLimit(store, cache, settings.max_cache_size)

    def may_grow(self, *, busy: bool) -> bool:
        """Return whether more may be fetched now; when the cache is full, captioning may still make room.

        ``busy`` says that pictures are on their way, which may turn out to need no room.

        Raises `DiskFullError` when there is no room and nobody will make any, `CacheMissingError` when the cache went.
        """
        self.require_cache()
        self._check_disk()
        # Before the model is loaded nobody knows whether what is captioned will be captioned anew.
        if self._limit.make_room(captioned=not self._control.model_is_loading):
            return True
        waiting = self._control.is_active(Stage.CAPTION) and self._queue.captions_are_waiting()
        if busy or waiting or self._control.model_is_loading or not self._queue.due():
            return False
        if self._limit.make_room(thorough=True):
            return True
        raise DiskFullError(
            f"the image cache has reached max_cache_size = {written(self._settings.max_cache_size, BYTES)}, and every "
            "picture in it is still needed; caption them (`etl run` does both), or raise max_cache_size, and run again"
        )

    def require_cache(self) -> None:
        """Raise `CacheMissingError` when the cache went."""
        require_directory(self._cache)

    def commit(self, fetched: Sequence[FetchedImage | KnownImage]) -> int:
        """Commit images whose files are there; return how many.  The others are put back without a charge."""
        with self._limit.hold():
            # A decoder writes nothing for a working copy that is there already, and it may have been evicted since.
            whole = [each for each in fetched if isinstance(each, KnownImage) or self._limit.is_whole(each)]
            if len(whole) < len(fetched):
                kept = {each.source.id for each in whole}
                self._queue.release(each.source.id for each in fetched if each.source.id not in kept)
            done = self._queue.commit(whole, self._control.recipe)
        self._limit.added(whole)
        return done

    def _check_disk(self) -> None:
        free = self._cache.free_bytes()
        if free < self._settings.min_free:
            raise DiskFullError(
                f"only {size(free)} are free for {self._cache.root}, fewer than min_free = "
                f"{written(self._settings.min_free, BYTES)}; free some space and run again, or lower min_free"
            )
