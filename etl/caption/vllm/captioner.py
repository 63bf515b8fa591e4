"""A captioner over `vllm serve`: a child of this process, asked as any other endpoint, and replaced when it dies."""

import contextlib
import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from etl.caption.captioner import never
from etl.caption.gpus.pool import FRUITLESS
from etl.caption.ledger import Ledger, Outcome, crashed
from etl.caption.model.checkpoint import Checkpoint, find_checkpoint
from etl.caption.model.hub_weights import weights_of
from etl.caption.model.vetting import vet
from etl.caption.openai.captioner import EndpointCaptioner, recipe_of
from etl.caption.openai.endpoint import Identity
from etl.caption.openai.request_format import RequestFormat
from etl.caption.recipe import Recipe
from etl.caption.vllm.command import command, deciding, environment, find_program
from etl.caption.vllm.server import Server
from etl.caption.vllm.tensor_names import known_to_vllm
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.views import EngineSample
from etl.errors import EndpointAnswerError, EndpointFailedError, ModelError
from etl.images.cache import ImageCache
from etl.settings import Settings
from etl.settings.template_arguments import template_argument
from etl.state.log import DIRECTORY

log = logging.getLogger(__name__)

ENGINE = "vllm"

LOG = "vllm.log"
"""In the directory of the state's log."""

PAUSE_S = 1.0
"""Wait before it is started again, doubling with each death in a row: a GPU's memory is not free at once."""


CUT_OFF = (EndpointAnswerError.slug, EndpointFailedError.slug)
"""Failures of a picture that may be the first sign of a death: a connection breaks before its process is gone."""

DEATH_S = 2.0
"""How much later than such a sign it may end."""


class VllmCaptioner:
    """A `Captioner` that has its items captioned by a `vllm serve` of its own.

    When that dies, what it had in hand comes back as `ItemFailure` with ``crashed``, as from a GPU's process: the queue
    tries it again, and alone once it was in hand too often.  It is started again for the next item; one that dies again
    and again without a caption ends the run.
    """

    def __init__(self, settings: Settings, cache: ImageCache, longest_edge: int) -> None:
        """Start it and wait until its model is loaded.  Raises `ModelError`, `ConfigError`."""
        program = find_program(settings.vllm)
        checkpoint = find_checkpoint(settings.model, settings.revision)
        vet(checkpoint)
        checkpoint.with_weights()
        self._ledger = Ledger(0)
        self._fruitless = 0
        self._endpoint: EndpointCaptioner | None = None
        self._spare = tempfile.TemporaryDirectory(prefix="etl-vllm-")
        try:
            folder = known_to_vllm(checkpoint.folder, Path(self._spare.name))
        except OSError as error:
            self._spare.cleanup()
            wanted = ModelError(f"the weights of {checkpoint.name} must be copied for vLLM, which fails: {error}")
            raise wanted.with_cure("make room there, or set TMPDIR to a directory on a larger disk") from error
        self._server = Server(
            command(settings, program, checkpoint.name, folder),
            functools.partial(environment, settings),
            settings.state.resolve() / DIRECTORY / LOG,
            Path(self._spare.name),
        )
        own = dataclasses.replace(settings, backend="openai", endpoint=(), endpoint_model=checkpoint.name)

        def speak() -> EndpointCaptioner:
            return EndpointCaptioner(own, cache.working_path, longest_edge, [self._server.address])

        self._open = speak
        try:
            self._server.start()
            if not self._connect():
                raise self._server.failure("vLLM cannot be started")
            self._recipe = own_recipe(settings, checkpoint, longest_edge)
        except BaseException:
            self.close()
            raise

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions, but vLLM's version and its own choice of dtype."""
        return self._recipe

    def samples(self) -> list[EngineSample]:
        """Return how busy it is."""
        if self._endpoint is not None:
            [sample] = self._endpoint.samples()
            self._ledger.slots, self._ledger.in_use = sample.slots, sample.in_use
        return [self._ledger.sample()]

    def close(self) -> None:
        """End it.  May be called twice."""
        if self._endpoint is not None:
            self._endpoint.close()
        self._server.end()
        self._spare.cleanup()

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[Outcome]:
        """Yield one outcome per item, as they finish; see `etl.caption.captioner.Captioner`."""
        source = iter(items)
        try:
            while not should_stop():
                if self._server.ended:
                    # Only where there is work for it.
                    first = next(source, None)
                    if first is None or not self._start_again(should_stop):
                        return
                    source = chain([first], source)
                yield from self._ask(source, should_stop)
                if not self._server.ended:
                    return
                yield from self._give_back()
        finally:
            self._ledger.take_back()

    def _ask(self, source: Iterator[CaptionItem | None], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes until there is nothing more to do, or it has ended."""
        assert self._endpoint is not None
        outcomes = self._endpoint.caption(self._noted(source), should_stop=lambda: self._server.ended or should_stop())
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if self._cut_off(outcome):
                    return
                if self._ledger.settle(outcome):
                    self._fruitless *= not isinstance(outcome, CaptionResult)
                    yield outcome

    def _cut_off(self, outcome: Outcome) -> bool:
        """Return whether the death of the server made this failure: its picture goes back with all others."""
        broken = isinstance(outcome, ItemFailure) and outcome.slug in CUT_OFF
        return broken and self._server.ends_within(DEATH_S)

    def _noted(self, source: Iterator[CaptionItem | None]) -> Iterator[CaptionItem | None]:
        for item in source:
            if item is not None:
                self._ledger.give(item)
            yield item

    def _give_back(self) -> Iterator[Outcome]:
        how = self._server.how_it_ended()
        lost = self._ledger.take_back()
        self._fruitless += 1
        log.warning("vLLM ended: %s; %d captions go back", how, len(lost))
        for item, started_at in lost:
            yield crashed(item, started_at, f"vLLM died with this picture in hand: {how}")

    def _start_again(self, should_stop: Callable[[], bool]) -> bool:
        """Return whether it serves again; not once ``should_stop()`` is true.  Raises `ModelError`."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        while not should_stop():
            if self._fruitless >= FRUITLESS:
                raise self._server.failure(f"vLLM died {FRUITLESS} times in a row without a caption, lastly")
            time.sleep(PAUSE_S * 2 ** max(0, self._fruitless - 1))
            self._server.start()
            if self._connect(should_stop):
                return True
            self._fruitless += 1
        return False

    def _connect(self, should_stop: Callable[[], bool] = never) -> bool:
        """Return whether it serves, and speak to it then; not when it ends or a stop is asked for."""
        if not self._server.wait_until_ready(should_stop):
            return False
        try:
            self._endpoint = self._open()
        except ModelError:
            if self._server.ended:
                return False
            raise
        return True


def own_recipe(settings: Settings, checkpoint: Checkpoint, longest_edge: int) -> Recipe:
    """Return the recipe of its captions, which is known before it is started: it takes all that is sent."""
    sent = RequestFormat(dict(map(template_argument, settings.chat_template_arg))).generation
    asked = recipe_of(Identity(checkpoint.name, checkpoint.revision(), tuple(sent.items())), settings, longest_edge)
    return dataclasses.replace(
        asked,
        engine=ENGINE,
        dtype=asked.dtype if settings.dtype == "auto" else settings.dtype,
        generation={**asked.generation, **deciding(settings)},
    )


def check(settings: Settings) -> None:
    """Raise at once where vLLM is not there, for a model that cannot be found or asks for too much, and where the disk
    does not take its weights.

    A model of the hub has its small files fetched by this, if they are not cached.
    """
    find_program(settings.vllm)
    environment(settings, "")
    checkpoint = find_checkpoint(settings.model, settings.revision)
    vet(checkpoint)
    weights_of(checkpoint).require_room()


def open_backend(settings: Settings, cache: ImageCache, longest_edge: int) -> VllmCaptioner:
    """Start vLLM and wait until it serves; see `etl.caption.backends.Backend`."""
    return VllmCaptioner(settings, cache, longest_edge)
