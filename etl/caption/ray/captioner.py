"""Captioning on a Ray cluster: one actor for each GPU of each node, nodes coming and going as they like.

Ray core alone, no Ray Data: results stream back as they come and are committed by the driver, the one writer of the
state.  A node that is lost gives back what it had in hand, at nobody's expense; a process that dies on a living node
is held against the pictures that it had in hand, as on one machine (`etl.caption.gpus.pool`).
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etl.caption.captioner import failure, never
from etl.caption.ledger import Outcome, crashed, from_wire
from etl.caption.ray.actors import Actor, Cluster
from etl.caption.recipe import Recipe
from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.views import EngineSample
from etl.errors import ModelError, WorkerTimeoutError, WorkingCopyError
from etl.images.cache import ImageCache
from etl.images.working_copies import working_copy_bytes
from etl.ray_cluster import connection
from etl.settings import Settings
from etl.version import __version__

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Longest wait for an actor's word before a stop is looked for."""

NODES_S = 2.0
"""Seconds between two looks at which nodes there are."""


class RayCaptioner:
    """A `Captioner` over the actors of a cluster."""

    def __init__(self, settings: Settings, cache: ImageCache, longest_edge: int) -> None:
        """Join the cluster, and wait until one model is loaded; others follow while captions are made.

        Raises `ConfigError` where Ray is missing or the cluster takes anybody, `ClusterError` where it cannot be
        joined, and `ModelError` where no node can caption.
        """
        config = {"version": __version__, "settings": settings.to_json(), "longest_edge": longest_edge}
        self._settings = settings
        self._cache = cache
        self._cluster = Cluster(settings, config)
        self._back: deque[CaptionItem] = deque()
        self._looked, self._idle_since = float("-inf"), float("inf")
        self._recipe: Recipe | None = None
        try:
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    @property
    def recipe(self) -> Recipe:
        """Everything that decides the words of these captions."""
        assert self._recipe is not None
        return self._recipe

    def samples(self) -> list[EngineSample]:
        """Return how busy each actor was at its last word."""
        return [actor.ledger.sample() for actor in self._cluster.actors if actor.is_ready]

    def close(self) -> None:
        """End all actors and leave the cluster.  May be called twice."""
        self._cluster.close()

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[Outcome]:
        """Yield one outcome per item, as they finish; see `etl.caption.captioner.Captioner`."""
        source = iter(items)
        try:
            while not should_stop():
                self._look_around()
                broken: list[ItemFailure] = []
                more = self._dispatch(source, broken)
                yield from broken
                if not more and not self._back and not any(actor.ledger.in_hand for actor in self._cluster.actors):
                    return
                yield from self._receive()
                yield from self._give_up_slow_ones()
        finally:
            self._back.clear()
            for actor in self._cluster.actors:
                actor.abandon()

    def _wait_for_one(self) -> None:
        while self._recipe is None:
            self._look_around()
            for _ in self._receive():
                pass

    def _look_around(self) -> None:
        """Start actors where there is room for them; raise `ModelError` when there has been none for too long."""
        now = time.monotonic()
        if now - self._looked < NODES_S:
            return
        self._looked = now
        self._cluster.grow()
        if self._cluster.actors:
            self._idle_since = float("inf")
            return
        if why := self._cluster.why_nobody():
            raise ModelError(why)
        if self._idle_since > now:
            log.warning("no node of the Ray cluster has room for an actor; waiting for one")
            self._idle_since = now
        if now - self._idle_since > self._settings.endpoint_patience:
            raise ModelError(
                f"no node of the Ray cluster had room for an actor for {self._settings.endpoint_patience:g} s; "
                "start a node, or look at --ray-cpus"
            )

    def _dispatch(self, source: Iterator[CaptionItem | None], broken: list[ItemFailure]) -> bool:
        """Give items to the actors that have room; return whether the source may have more right now."""
        batches: dict[Actor, list[tuple[CaptionItem, bytes]]] = {}
        more = True
        while able := [a for a in self._cluster.actors if a.room > len(batches.get(a, ()))]:
            item = self._back.popleft() if self._back else next(source, None)
            if item is None:
                more = False
                break
            begun = now_ms()
            try:
                data = working_copy_bytes(self._cache.working_path(item.working_sha256))
            except WorkingCopyError as error:
                broken.append(failure(item, error, begun))
                continue
            chosen = max(able, key=lambda a: a.room - len(batches.get(a, ())))
            batches.setdefault(chosen, []).append((item, data))
        for actor, batch in batches.items():
            actor.give(batch)
        return more

    def _receive(self) -> Iterator[Outcome]:
        """Yield what the actors have to tell, waiting a little for the first word."""
        for actor, word in self._cluster.listen(LOOK_S):
            if "recipe" in word:
                self._register(actor, word)
                continue
            actor.ledger.slots, actor.ledger.in_use = word["busy"]
            for kind, fields in word["outcomes"]:
                outcome = from_wire(kind, fields)
                if not actor.ledger.settle(outcome):
                    continue
                if isinstance(outcome, CaptionResult):
                    actor.node.fruitless = 0
                elif outcome.stops:
                    # What keeps one node from reading its own copies does not end the run.
                    outcome = dataclasses.replace(outcome, stops=False)
                actor.heard_at = time.monotonic()
                yield outcome
            if word["error"]:
                yield from self._crashed(actor, word["error"])
        for actor in self._cluster.reap():
            if actor.node_is_gone:
                lost = actor.ledger.take_back()
                log.warning("node %s is gone; %d captions go to others", actor.node.name, len(lost))
                self._back.extend(item for item, _ in lost)
            else:
                yield from self._crashed(actor, actor.death.why if actor.death else "")

    def _register(self, actor: Actor, word: dict[str, Any]) -> None:
        """Let an actor that has loaded its model take part, if it would caption as the others do."""
        if word["error"] is None:
            recipe = Recipe.from_json(word["recipe"])
            if self._recipe in (None, recipe):
                self._recipe = recipe
                actor.register(word["slots"])
                log.info("node %s captions too: %d slots", actor.node.name, word["slots"])
                return
            word["error"] = "it would caption in another way than the others"
        self._cluster.exclude(actor, word["error"])

    def _crashed(self, actor: Actor, how: str) -> Iterator[ItemFailure]:
        """Give back what a dead process had in hand, as what may have killed it."""
        lost = actor.ledger.take_back()
        log.warning("a captioning actor on node %s ended: %s; %d captions go back", actor.node.name, how, len(lost))
        self._cluster.discard(actor)
        actor.node.actor_died(how)
        for item, started_at in lost:
            yield crashed(item, started_at, f"the captioning actor died with this picture in hand: {how}")

    def _give_up_slow_ones(self) -> Iterator[ItemFailure]:
        """End actors that have had work for too long without finishing any; an attempt is charged for it."""
        patience = self._settings.ray_timeout
        for actor in list(self._cluster.actors):
            if actor.ledger.in_hand and actor.is_ready and time.monotonic() - actor.heard_at > patience:
                log.warning("an actor on node %s finished nothing for %g s; it is ended", actor.node.name, patience)
                lost = actor.ledger.take_back()
                self._cluster.discard(actor)
                # Only what it was writing can have held it up; the others go elsewhere as they are.
                writing = lost[: max(1, actor.ledger.in_use)]
                self._back.extend(item for item, _ in lost[len(writing) :])
                for item, started_at in writing:
                    error = WorkerTimeoutError(f"no caption within {patience:g} s on node {actor.node.name}")
                    yield failure(item, error, started_at)


def check(settings: Settings) -> None:
    """Raise at once when the cluster cannot be reached; its nodes have the model or have not, and are asked later."""
    connection.check(settings.ray_address, "--backend ray", insecure=settings.insecure)


def open_backend(settings: Settings, cache: ImageCache, longest_edge: int) -> RayCaptioner:
    """Join the cluster; see `etl.caption.backends.Backend`."""
    return RayCaptioner(settings, cache, longest_edge)
