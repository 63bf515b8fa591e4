"""A captioner over several processes, one for each GPU; the state has one writer, and that is whoever calls this."""

import dataclasses
import json
import logging
import multiprocessing.connection
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etl.caption.captioner import never
from etl.caption.gpus.plan import WorkerPlan
from etl.caption.ledger import Ledger, Outcome, crashed, from_wire
from etl.caption.recipe import Recipe
from etl.domain.items import CaptionItem, CaptionResult
from etl.domain.views import EngineSample
from etl.errors import ChildEndedError, EtlError, ModelError
from etl.processes import ChildProcess
from etl.settings import Settings

log = logging.getLogger(__name__)

START_S = 3600.0
"""Longest wait for a model to be loaded: 30 GB from a network disk of 10 MB/s."""

LOOK_S = 0.1
"""Longest wait for a worker's word before a stop is looked for."""

FRUITLESS = 6
"""Deaths in a row of a worker that finished no caption, after which its GPU is left alone.

A picture that kills its worker kills five before it is given up (`etl.state.work_queue`).
"""


class GpuPool:
    """A `Captioner` that shares its items among workers (`etl.caption.gpus.worker`), each with a model of its own.

    A worker that dies is replaced.  What it had in hand comes back as `ItemFailure` with ``crashed``: the queue tries
    it again, and alone once it was in hand too often.  A worker that dies again and again without finishing anything
    is given up, and the others go on.  One that ends for want of memory is replaced by one with half the slots, and no
    picture is held to have caused that.
    """

    def __init__(self, settings: Settings, plans: Sequence[WorkerPlan], cache: Path, longest_edge: int) -> None:
        """Start all workers and wait until their models are loaded.

        ``cache`` is the root of the image cache; ``longest_edge`` what its copies were made with, in pixels.
        Raises `ModelError` when a model cannot be loaded or the workers would not caption alike.
        """
        config = {
            "settings": settings.to_json(), "cache": str(cache), "longest_edge": longest_edge,
            "log_level": logging.getLogger("etl").getEffectiveLevel(),
        }  # fmt: skip
        self._workers = [_Worker(number, plan, config) for number, plan in enumerate(plans)]
        try:
            recipes = {worker.wait_until_ready().to_json() for worker in self._workers}
        except BaseException:
            self.close()
            raise
        if len(recipes) > 1:
            self.close()
            raise ModelError("the GPUs would caption in different ways; choose like ones with --gpus")
        self._recipe = Recipe.from_json(recipes.pop())

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions."""
        return self._recipe

    def samples(self) -> list[EngineSample]:
        """Return how busy each worker was at its last word."""
        return [worker.ledger.sample() for worker in self._workers]

    def close(self) -> None:
        """End all workers.  May be called twice."""
        for worker in self._workers:
            worker.end()

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[Outcome]:
        """Yield one outcome per item, as they finish; see `etl.caption.captioner.Captioner`."""
        source = iter(items)
        try:
            while not should_stop():
                more = self._dispatch(source)
                if not more and not any(worker.ledger.in_hand or worker.spared for worker in self._workers):
                    return
                yield from self._receive()
        finally:
            for worker in self._workers:
                worker.abandon()

    def _dispatch(self, source: Iterator[CaptionItem | None]) -> bool:
        """Give items to the workers that have room for them; return whether the source may have more right now."""
        while able := [worker for worker in self._workers if worker.room > 0]:
            spared = next((worker.spared for worker in self._workers if worker.spared), None)
            item = spared.popleft() if spared else next(source, None)
            if item is None:
                return False
            max(able, key=lambda worker: worker.room).give(item)
        if all(worker.given_up for worker in self._workers):
            raise ModelError(self._workers[-1].why or "no captioning worker is left")
        return True

    def _receive(self) -> Iterator[Outcome]:
        """Yield what the workers have to tell, waiting a little for the first word."""
        listening = {worker.child.fileno(): worker for worker in self._workers if not worker.given_up}
        for descriptor in multiprocessing.connection.wait(list(listening), LOOK_S):
            assert isinstance(descriptor, int)
            yield from listening[descriptor].receive()


class _Worker:
    """The parent's side of one captioning process."""

    def __init__(self, number: int, plan: WorkerPlan, config: dict[str, Any]) -> None:
        self._number = number
        self._plan = plan
        settings = config["settings"] | {"device": plan.device}
        self._config = config | {"settings": settings, "number": number, "spread": plan.spread}
        self._fruitless = 0
        self._is_ready = False
        self.ledger = Ledger(number)
        self.spared: deque[CaptionItem] = deque()
        self.given_up = self._scarce = False
        self.why = ""
        self.child = self._start()

    def _start(self) -> ChildProcess:
        return ChildProcess(
            "etl.caption.gpus.worker:main", self._config, name="captioning worker", env=self._plan.environment()
        )

    def wait_until_ready(self) -> Recipe:
        """Return the recipe once the model is loaded.  Raises `ModelError`."""
        while self.child.poll(START_S):
            try:
                message = json.loads(self.child.recv())
            except ChildEndedError as error:
                how = self.child.how_it_ended()
                raise ModelError(f"a captioning worker ended while it loaded the model: {how}") from error
            if why := message.get("error") or message.get("scarce"):
                raise ModelError(why)
            if "ready" in message:
                self._is_ready = True
                return Recipe.from_json(message["ready"])
            list(self._understand(message))
        raise ModelError(f"the model was not loaded after {START_S:g} s")

    @property
    def room(self) -> int:
        """Items that it could be given."""
        if not self._is_ready or self.given_up:
            return 0
        return self.ledger.room

    def give(self, item: CaptionItem) -> None:
        """Hand over an item.  That the worker is dead is noticed when it is next heard."""
        self.ledger.give(item)
        self._send({"item": dataclasses.asdict(item)})

    def abandon(self) -> None:
        """Want nothing any more of what is in hand."""
        self.spared.clear()
        if self.ledger.take_back():
            self._send({"abandon": True})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.child.send(json.dumps(message).encode())
        except ChildEndedError:
            log.debug("captioning worker %d is gone", self._number)

    def end(self) -> None:
        """End the process."""
        self.child.discard()

    def receive(self) -> Iterator[Outcome]:
        """Yield the outcomes among what has come; replace the process when it is gone."""
        try:
            while self.child.poll(0):
                yield from self._understand(json.loads(self.child.recv()))
        except ChildEndedError:
            yield from self._replace()

    def _understand(self, message: dict[str, Any]) -> Iterator[Outcome]:
        match message:
            case {"outcome": [kind, fields]}:
                outcome = from_wire(kind, fields)
                if isinstance(outcome, CaptionResult):
                    self._fruitless = 0
                if self.ledger.settle(outcome):
                    yield outcome
            case {"busy": [slots, in_use]}:
                self.ledger.slots, self.ledger.in_use = slots, in_use
            case {"ready": _}:
                self._is_ready = True
            case {"log": [level, name, text]}:
                logging.getLogger(name).log(level, "%s", text)
            case {"error": text}:
                self.why = text
            case {"scarce": text}:
                self.why, self._scarce = text, True

    def _replace(self) -> Iterator[Outcome]:
        """Start another process in place of one that is gone, and give back what that one had in hand."""
        how = self.why or self.child.how_it_ended()
        self.why = f"captioning worker {self._number} ended: {how}"
        lost = self.ledger.take_back()
        log.warning("%s; %d captions go back", self.why, len(lost))
        self.child.discard()
        self._is_ready = False
        self._fruitless += 1
        scarce, self._scarce = self._scarce, False
        if scarce:
            fewer = max(1, self.ledger.slots // 2)
            self._config["settings"] |= {"slots": fewer, "batch_size": fewer}
            self.spared.extend(item for item, _ in lost)
            lost = []
        if self._fruitless < FRUITLESS:
            try:
                self.child = self._start()
            except EtlError as error:
                self.given_up, self.why = True, str(error)
        else:
            self.given_up = True
        if self.given_up:
            log.error("captioning worker %d is given up: %s", self._number, self.why)
        else:
            self.why = ""
        for item, started_at in lost:
            yield crashed(item, started_at, f"the captioning worker died with this picture in hand: {how}")
