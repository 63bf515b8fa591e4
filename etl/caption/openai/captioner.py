"""A captioner over endpoints that speak OpenAI's protocol: vLLM, SGLang, Ollama, LM Studio, OpenAI itself.

The exchange runs in a thread with an event loop; whoever calls `EndpointCaptioner` stays the only one that writes.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from etl.caption.captioner import never
from etl.caption.openai.address import Address, addresses
from etl.caption.openai.endpoint import Endpoint, Identity
from etl.caption.openai.pool import Outcome, Pool
from etl.caption.openai.responses import EndpointBusyError, EndpointTroubleError
from etl.caption.recipe import Recipe
from etl.domain.items import CaptionItem
from etl.domain.views import EngineSample
from etl.errors import EtlError, ModelError
from etl.images.cache import ImageCache
from etl.settings import Settings

log = logging.getLogger(__name__)

ENGINE = "openai"

BUSY_S = 1.0
"""Pause at the start when an endpoint is busy and does not say for how long."""

LOOK_S = 0.1
"""Longest wait for an outcome before a stop is looked for."""

T = TypeVar("T")


class EndpointCaptioner:
    """A `Captioner` that has its items captioned by the endpoints of the settings.

    Each is sent as many requests as it bears.  One that fails is set aside and tried again, and what it had goes to
    the others without being charged an attempt.
    """

    def __init__(
        self,
        settings: Settings,
        locate: Callable[[str], Path],
        longest_edge: int,
        places: Sequence[Address] | None = None,
    ) -> None:
        """Ask every endpoint what it serves, by a picture to caption.

        ``locate`` maps a working copy's hash to its file; ``longest_edge`` is what the copies were made with, in
        pixels; ``places`` are the endpoints, where they are not those of the settings.  Raises `ConfigError` for
        addresses that cannot be used, `ModelError` when no endpoint answers, or they would not caption alike.
        """
        self._outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._in_hand: set[int] = set()
        self._endpoints = [Endpoint(address, settings) for address in places or addresses(settings)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoints", daemon=True)
        self._thread.start()
        self._pool: Pool | None = None
        try:
            identity = self._run(_probe_all(self._endpoints, settings.endpoint_patience))
            self._recipe = recipe_of(identity, settings, longest_edge)
            self._pool = Pool(self._endpoints, identity, settings, locate, self._outcomes.put)
            self._loop.call_soon_threadsafe(self._pool.start)
        except BaseException:
            self.close()
            raise

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions, as far as the endpoints tell it."""
        return self._recipe

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Generator[Outcome]:
        """Yield one outcome per item, as they finish; see `etl.caption.captioner.Captioner`."""
        source = iter(items)
        try:
            while not should_stop():
                more = self._dispatch(source)
                if not more and not self._in_hand:
                    return
                yield from self._receive()
        finally:
            self._abandon()

    def samples(self) -> list[EngineSample]:
        """Return how busy each endpoint is; what waits for one is told with the first."""
        assert self._pool is not None
        waiting = [self._pool.waiting, *[0] * len(self._endpoints)]
        return [
            EngineSample(
                worker=number,
                slots=slots,
                in_use=in_use,
                waiting=waiting[number],
                captions=one.captions,
                tokens=one.tokens,
            )
            for number, (one, slots, in_use) in enumerate(
                zip(self._endpoints, self._pool.allowed, self._pool.under_way, strict=True)
            )
        ]

    def close(self) -> None:
        """Close all connections and end the thread.  May be called twice."""
        if not self._thread.is_alive():
            return
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for one in self._endpoints:
            words = "%s: %d captions; %d tokens read, %d written"
            log.info(words, one, one.captions, one.prompt_tokens, one.tokens)

    async def _shut_down(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        for one in self._endpoints:
            await one.renew()
        # Closed connections leave at the loop's next iteration.
        await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()

    def _dispatch(self, source: Iterator[CaptionItem | None]) -> bool:
        """Give items to the pool while there is room for them; return whether the source may have more right now."""
        assert self._pool is not None
        while len(self._in_hand) < self._room():
            item = next(source, None)
            if item is None:
                return False
            self._in_hand.add(item.id)
            self._loop.call_soon_threadsafe(self._pool.add, item)
        return True

    def _room(self) -> int:
        """Return how many items may be in hand: a few more than run, so that a free place is taken at once.

        One is there also when no endpoint is, to wait for them.
        """
        assert self._pool is not None
        capacity = sum(self._pool.allowed)
        return capacity + capacity // 4 + 1

    def _receive(self) -> Iterator[Outcome]:
        """Yield what has come, waiting a little for the first."""
        timeout: float | None = LOOK_S
        while True:
            try:
                outcome = self._outcomes.get(timeout=timeout) if timeout else self._outcomes.get_nowait()
            except queue.Empty:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            timeout = None
            if outcome.id in self._in_hand:
                self._in_hand.discard(outcome.id)
                yield outcome

    def _abandon(self) -> None:
        """Break off what is under way, and forget what has come of it."""
        if self._in_hand and self._pool is not None:
            self._run(self._pool.abandon())
            self._in_hand.clear()
            while not self._outcomes.empty():
                self._outcomes.get_nowait()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def open_backend(settings: Settings, cache: ImageCache, longest_edge: int) -> EndpointCaptioner:
    """Ask the endpoints what they serve; see `etl.caption.backends.Backend`."""
    return EndpointCaptioner(settings, cache.working_path, longest_edge)


def check(settings: Settings) -> None:
    """Raise `ModelError` or `ConfigError` at once when no endpoint answers, or they name different models."""

    async def ask() -> None:
        endpoints = [Endpoint(address, settings) for address in addresses(settings)]
        try:
            found = await _all(endpoints, Endpoint.choose_model, settings.endpoint_patience)
            _agree({one: model for one, (model, _) in found.items()})
        finally:
            for one in endpoints:
                await one.renew()

    asyncio.run(ask())


async def _probe_all(endpoints: list[Endpoint], patience_s: float) -> Identity:
    """Probe all endpoints; one that does not answer stays without an identity.  Raises `ModelError`."""
    found = await _all(endpoints, Endpoint.probe, patience_s)
    _agree({one: f"{who.model}@{who.revision}" for one, who in found.items()})
    identities = set(found.values())
    if len(identities) > 1:
        raise ModelError("the endpoints take different requests, so would caption in different ways; use like ones")
    for one, identity in found.items():
        one.identity = identity
    return identities.pop()


async def _all(
    endpoints: list[Endpoint], ask: Callable[[Endpoint], Coroutine[Any, Any, T]], patience_s: float
) -> dict[Endpoint, T]:
    """Return the answers of those that answer.  Raises `ModelError` when none does, or one cannot be used."""
    answers = await asyncio.gather(*(_patiently(one, ask, patience_s) for one in endpoints), return_exceptions=True)
    found: dict[Endpoint, T] = {}
    silent = []
    for one, answer in zip(endpoints, answers, strict=True):
        if isinstance(answer, EndpointBusyError | EndpointTroubleError | TimeoutError):
            silent.append(f"{one}: {answer or 'no answer in time'}")
        elif isinstance(answer, EtlError):
            raise answer if isinstance(answer, ModelError) else ModelError(str(answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[one] = answer
    if not found:
        raise ModelError(f"no endpoint can be used: {'; '.join(silent)}; is the server up?")
    for line in silent:
        log.warning("going on without an endpoint for now: %s", line)
    return found


async def _patiently(one: Endpoint, ask: Callable[[Endpoint], Coroutine[Any, Any, T]], patience_s: float) -> T:
    """Return the answer of an endpoint, which may be busy at first."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return await ask(one)
        except EndpointBusyError as error:
            wait = error.seconds or BUSY_S
            if time.monotonic() + wait > until:
                raise
            log.warning("%s: busy at the start, asked again in %.3g s: %s", one, wait, error)
        await asyncio.sleep(wait)


def _agree(models: dict[Endpoint, str]) -> None:
    if len(set(models.values())) > 1:
        listed = "; ".join(f"{one} {model}" for one, model in models.items())
        raise ModelError(f"the endpoints serve different models: {listed}; all must serve the same")


def recipe_of(identity: Identity, settings: Settings, longest_edge: int) -> Recipe:
    """Return the recipe.  Where the endpoints are is no part of it: the same model elsewhere gives the same words."""
    return Recipe(
        model=identity.model,
        revision=identity.revision,
        engine=ENGINE,
        dtype=UNKNOWN_DTYPE,
        preprocessing={"sent": "image/jpeg", "longest_edge": longest_edge},
        generation={"max_new_tokens": settings.max_new_tokens, **dict(identity.generation)},
    )


UNKNOWN_DTYPE = "served"
"""In place of a dtype: the protocol does not tell it."""
