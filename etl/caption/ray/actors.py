"""What the driver knows of a Ray cluster: its nodes, its actors, and which of them are alive."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etl.caption.ledger import Ledger
from etl.caption.ray.worker import RayWorker
from etl.domain.items import CaptionItem
from etl.ray_cluster.connection import joined, leave
from etl.ray_cluster.nodes import Death, Node, Nodes, kill
from etl.settings import Settings

TAKE_S = 10.0
"""Longest wait of an actor before it answers that nothing is finished."""

THREADS = 8
"""Calls of one actor at once: one waits for the model, one takes, the others give."""


class Actor:
    """The driver's side of one captioning actor.

    Attributes:
        ledger: what it was given, and what it has done.
        heard_at: when it last finished something, or began to have something to do; monotonic seconds.
        node_is_gone: whether it died because its whole node did; decided a while after ``death``.
        death: once it does not answer any more.
    """

    def __init__(self, ray: Any, number: int, node: Node, handle: Any) -> None:
        self._ray = ray
        self._handle = handle
        self.node = node
        self.ledger = Ledger(number)
        self.heard_at = 0.0
        self.is_ready = False
        self.death: Death | None = None
        self.node_is_gone = False
        self.refs: set[Any] = {handle.ready.remote()}

    @property
    def room(self) -> int:
        """Items that it could be given."""
        return self.ledger.room if self.is_ready else 0

    def register(self, slots: int) -> None:
        """Let it work."""
        self.is_ready, self.ledger.slots = True, slots
        self.listen()

    def listen(self) -> None:
        """Ask for what it finishes next."""
        self.refs.add(self._handle.take.remote(TAKE_S))

    def give(self, items: Sequence[tuple[CaptionItem, bytes]]) -> None:
        """Hand over items with the bytes of their pictures.  That it is dead is noticed when it is next heard."""
        if not self.ledger.in_hand:
            self.heard_at = time.monotonic()
        for item, _ in items:
            self.ledger.give(item)
        self.refs.add(self._handle.give.remote([(dataclasses.asdict(item), data) for item, data in items]))

    def abandon(self) -> None:
        """Want nothing any more of what is in hand."""
        if self.ledger.take_back() and self.death is None:
            self.refs.add(self._handle.abandon.remote())

    def dies(self, error: BaseException) -> None:
        """Note that it does not answer any more."""
        self.refs.clear()
        self.is_ready = False
        self.death = Death(self._ray, error)

    def kill(self) -> None:
        """End it."""
        self.refs.clear()
        self.is_ready = False
        kill(self._ray, self._handle)


class Cluster:
    """The nodes of a cluster and our actors on them.

    Attributes:
        actors: those that live, or whose end is not understood yet.
    """

    def __init__(self, settings: Settings, config: Mapping[str, Any]) -> None:
        """Join the cluster at ``settings.ray_address``.

        Raises `ConfigError` where Ray is missing, no address is given, or anybody may command the cluster, and
        `ClusterError` where it cannot be reached.
        """
        self._ray = joined(settings.ray_address, "--backend ray", insecure=settings.insecure)
        self._has_left = False
        self._by_cpu = settings.ray_cpus or settings.device == "cpu"
        self._cpus = settings.ray_cpus or 1
        self._config = config
        self._started = 0
        self._nodes = Nodes(self._ray, self._room)
        resources = {"num_cpus": self._cpus} if self._by_cpu else {"num_gpus": 1}
        self._options = {"max_concurrency": THREADS, **resources}
        self.actors: list[Actor] = []

    def _room(self, resources: Mapping[str, float]) -> int:
        return int(resources.get("CPU", 0) // self._cpus) if self._by_cpu else int(resources.get("GPU", 0))

    def grow(self) -> None:
        """Start an actor wherever there is room for one."""
        self._nodes.look()
        for node in self._nodes.alive():
            there = sum(actor.node is node for actor in self.actors)
            for _ in range(0 if node.left_alone else node.room - there):
                made = self._nodes.placed(RayWorker, node, self._options)
                self.actors.append(Actor(self._ray, self._started, node, made.remote(self._config)))
                self._started += 1

    def listen(self, wait_s: float) -> list[tuple[Actor, dict[str, Any]]]:
        """Return what actors have said, after at most ``wait_s`` seconds."""
        waiting = {ref: actor for actor in self.actors for ref in actor.refs}
        if not waiting:
            time.sleep(wait_s)
            return []
        refs = list(waiting)
        if self._ray.wait(refs, num_returns=1, timeout=wait_s)[0]:
            refs = self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        else:
            refs = []
        words = []
        for ref in refs:
            actor = waiting[ref]
            # Another of its words may have told already that it is dead.
            if ref not in actor.refs:
                continue
            actor.refs.discard(ref)
            try:
                word = self._ray.get(ref)
            except Exception as error:
                # Ray's own classes, and whatever unpickling raises where versions differ.
                actor.dies(error)
                continue
            if word is not None:
                words.append((actor, word))
                if actor.is_ready:
                    actor.listen()
        return words

    def reap(self) -> list[Actor]:
        """Return the dead actors of whom it is now known whether their node is gone too; they are ours no more."""
        dying = [(actor, actor.death) for actor in self.actors if actor.death is not None]
        if not dying:
            return []
        self._nodes.look(0.3)
        known = []
        for actor, death in dying:
            verdict = death.took_the_node(self._nodes.is_alive(actor.node))
            if verdict is not None:
                actor.node_is_gone = verdict
                known.append(actor)
        for actor in known:
            self.discard(actor)
        return known

    def discard(self, actor: Actor) -> None:
        """End an actor; another takes its place when there is room."""
        actor.kill()
        if actor in self.actors:
            self.actors.remove(actor)

    def exclude(self, actor: Actor, why: str) -> None:
        """End an actor whose node cannot take part."""
        self.discard(actor)
        actor.node.leave_alone(why)

    def why_nobody(self) -> str:
        """Return why no living node can caption; empty where one may, or where there is none."""
        return self._nodes.why_nobody("caption")

    def close(self) -> None:
        """End all actors and leave the cluster.  May be called twice."""
        for actor in self.actors:
            actor.kill()
        self.actors.clear()
        if not self._has_left:
            self._has_left = True
            leave(self._ray)
