"""What every caption backend keeps: the slot engine, `generate()`, Ray actors and remote endpoints alike."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from etl.caption.recipe import Recipe
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.views import EngineSample
from etl.errors import CacheUnreadableError, ImageLoaderCrashedError, ItemError


def never() -> bool:
    """Return ``False``: the `should_stop` of a caller who never stops early."""
    return False


def failure(item: CaptionItem, error: ItemError, started_at: int) -> ItemFailure:
    """Return the failure of an item that was begun at ``started_at``, Unix milliseconds."""
    return ItemFailure(
        id=item.id,
        slug=error.slug,
        message=str(error),
        retryable=error.retryable,
        started_at=started_at,
        crashed=isinstance(error, ImageLoaderCrashedError),
        stops=isinstance(error, CacheUnreadableError),
    )


class Captioner(Protocol):
    """Turns caption items into captions.

    Not thread-safe: one `caption` at a time.  Loaded weights are held until `close`.
    """

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of this backend's captions."""

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Yield one outcome per item, as they finish, in any order.

        ``items`` is pulled lazily, in the caller's thread, and only a little ahead of the work.  ``None`` in it means
        that there is nothing at the moment: what was pulled goes on, and when that is finished this ends, even if
        ``items`` has not.  A bad picture or prompt becomes an `ItemFailure` and never disturbs its neighbours.  Once
        ``should_stop()`` is true, nothing more is pulled, and what is unfinished is abandoned: it is not yielded.

        Raises `etl.errors.ModelError` when the backend as a whole cannot go on.
        """

    def samples(self) -> Sequence[EngineSample]:
        """Return how busy each worker is; may be asked for between two outcomes."""

    def close(self) -> None:
        """Release the model and its memory; the captioner is not used afterwards.  May be called twice."""
