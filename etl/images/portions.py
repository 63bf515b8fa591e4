"""What is gathered for a moment, because to do one thing costs as much as to do some."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


class Portions(Generic[Given, Result]):
    """Gathers what one event loop gives.

    Args:
        most: things in a portion.
        gather_s: seconds for which the first of them waits for others.
        work: called with a portion; its future has a result for each, in order.
    """

    def __init__(
        self, most: int, gather_s: float, work: Callable[[list[Given]], asyncio.Future[Sequence[Result]]]
    ) -> None:
        self._most = most
        self._gather_s = gather_s
        self._work = work
        self._gathered: list[tuple[Given, asyncio.Future[Result]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, given: Given) -> asyncio.Future[Result]:
        """Return what will be its result; an exception of the work is that of all in the portion."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._gathered.append((given, result))
        if self._timer is None:
            self._timer = loop.call_later(self._gather_s, self._begin)
        elif len(self._gathered) == self._most:
            self._begin()
        return result

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        portion, self._gathered, self._timer = self._gathered, [], None
        results = [result for _, result in portion]
        try:
            work = self._work([given for given, _ in portion])
        except Exception as error:
            # Unheard, those who gave the others would wait for ever.
            work = asyncio.get_running_loop().create_future()
            work.set_exception(error)
        work.add_done_callback(lambda done: _tell(results, done))


def _tell(results: list[asyncio.Future[Result]], work: asyncio.Future[Sequence[Result]]) -> None:
    error = None if work.cancelled() else work.exception()
    for number, result in enumerate(results):
        if result.done():
            continue
        if work.cancelled():
            result.cancel()
        elif error is not None:
            result.set_exception(error)
        else:
            result.set_result(work.result()[number])
