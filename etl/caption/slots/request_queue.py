"""What goes into the slot engine: items become requests, ahead of the slots that will be free next."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from etl.caption.captioner import failure
from etl.caption.pictures.loader import ImageLoader, LoadedImage
from etl.caption.slots.family import Family
from etl.caption.slots.state import Request
from etl.caption.tokens import PromptEncoder
from etl.clock import now_ms
from etl.domain.items import CaptionItem, ItemFailure
from etl.errors import CaptionError

_HELD = 1024**3
"""Bytes of pictures that may wait for slots: one of 1024 x 1024 takes 13 MB for Qwen2.5-VL, 0.3 for LLaVA-1.5."""

_FEWEST = 16
"""Items that may wait however large they are."""


class RequestQueue:
    """Opens pictures and encodes prompts; for one thread.

    Attributes:
        ready: requests that wait for a slot, oldest first; the caller takes them out, or puts some back.
    """

    def __init__(
        self,
        family: Family,
        encoder: PromptEncoder,
        locate: Callable[[str], Path],
        *,
        processes: int,
        limit_of: Callable[[CaptionItem], int],
    ) -> None:
        """``locate`` maps a working copy's hash to its file, ``limit_of`` an item to its longest caption in tokens.

        ``processes`` open the pictures; 0 for a thread of this process.
        """
        self.ready: deque[Request] = deque()
        plan = family.plan(encoder)
        self._family: Family | None = family
        self._encoder = encoder
        self._limit_of = limit_of
        self._make_loader: Callable[[], ImageLoader] = lambda: ImageLoader(plan, locate, processes=processes)
        self._loader: ImageLoader | None = None
        self._source: Iterator[CaptionItem | None] = iter(())
        self._ended = self._dry = True
        self._largest = 1

    @property
    def waiting(self) -> int:
        """Items that were pulled and are not yet taken out."""
        return len(self.ready) + self._pending

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left, or nothing at the moment."""
        return not self.waiting and (self._ended or self._dry)

    @property
    def _pending(self) -> int:
        return self._loader.pending if self._loader is not None else 0

    def begin(self, items: Iterable[CaptionItem | None]) -> None:
        """Take items from here from now on; ``None`` among them means that there is none at the moment."""
        self._source = iter(items)
        self._ended = self._dry = False

    def pull(self, most: int) -> Iterator[ItemFailure]:
        """Pull items until ``most`` wait, or fewer of large pictures; yield those whose prompt cannot be used."""
        most = min(most, max(_FEWEST, _HELD // self._largest))
        while self.waiting < most and (item := self._next()) is not None:
            started_at = now_ms()
            try:
                # Here for its errors, before the picture is opened in vain; the result is cached.
                prompt = self._encoder.encode(item.prompt)
            except CaptionError as error:
                yield failure(item, error, started_at)
                continue
            if self._loader is None:
                self._loader = self._make_loader()
            self._loader.submit(item, prompt.text)

    def receive(self, timeout_s: float) -> Iterator[ItemFailure]:
        """Make requests of the pictures that are open, waiting so long for the first; yield those that are broken."""
        if self._loader is None or not self._pending:
            return
        for loaded in self._loader.take(timeout_s):
            try:
                self.ready.append(self._request(loaded))
            except CaptionError as error:
                yield failure(loaded.item, error, loaded.started_at)

    def abandon(self) -> None:
        """Forget what was pulled."""
        self.ready.clear()
        self._source = iter(())
        self._ended = True
        if self._loader is not None:
            self._loader.discard()

    def close(self) -> None:
        """End the processes.  May be called twice."""
        self.abandon()
        if self._loader is not None:
            self._loader.close()
            self._loader = None
        # It holds the model.
        self._family = None

    def _next(self) -> CaptionItem | None:
        if self._ended:
            return None
        try:
            item = next(self._source)
        except StopIteration:
            self._ended = True
            return None
        self._dry = item is None
        return item

    def _request(self, loaded: LoadedImage) -> Request:
        if loaded.error is not None:
            raise loaded.error
        assert loaded.data is not None and self._family is not None
        item = loaded.item
        request = self._family.request(item, self._encoder.encode(item.prompt), loaded.data, self._limit_of(item))
        self._largest = max(self._largest, sum(each.nbytes for each in request.inputs.values()))
        # Only now it is known how many tokens the picture takes.
        self._encoder.check_length(len(request.ids))
        return request
