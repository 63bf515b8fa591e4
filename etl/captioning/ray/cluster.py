"""What the driver knows of a Ray cluster: its nodes, its actors, and which of them are alive."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.captioning.ray.worker import RayWorker
from etl.clock import now_ms
from etl.config import Settings
from etl.errors import ConfigError, ModelError
from etl.models import CaptionItem, EngineSample

log = logging.getLogger(__name__)

TAKE_S = 10.0
"""Longest wait of an actor before it answers that nothing is finished."""

NODE_DEATH_S = 6.0
"""When a process has died, how long its node may take to be known as dead too; then the process died alone.

Measured with Ray 2.60 on the loopback: a killed raylet is noticed by its actors' callers after 3 s.
"""

OUT_OF_REACH_S = 30.0
"""An actor that cannot be reached for so long is given up as if its node were gone."""

THREADS = 8
"""Calls of one actor at once: one waits for the model, one takes, the others give."""


@dataclass(eq=False)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        name: for people.
        room: actors that it can have.
        fruitless: deaths in a row of its actors without a caption in between.
        left_alone: why it is given no actor any more; empty while it is.
    """

    id: str
    name: str
    room: int
    fruitless: int = 0
    left_alone: str = ""


class Actor:
    """The driver's side of one captioning actor.

    Attributes:
        in_hand: items that it was given and has not finished, by id, with when that was (Unix milliseconds).
        busy: slots, and those in use, at its last word.
        heard_at: when it last finished something, or began to have something to do; monotonic seconds.
        node_is_gone: whether it died because its whole node did; decided a while after `died`.
    """

    def __init__(self, ray: Any, number: int, node: Node, handle: Any) -> None:
        self._ray = ray
        self._number = number
        self._handle = handle
        self.node = node
        self.in_hand: dict[int, tuple[CaptionItem, int]] = {}
        self.busy: Sequence[int] = (0, 0)
        self.captions = self.tokens = 0
        self.heard_at = 0.0
        self.is_ready = False
        self.why = ""
        self.died_at: float | None = None
        self.is_out_of_reach = self.node_is_gone = False
        self.refs: set[Any] = {handle.ready.remote()}

    def room(self, ahead: int) -> int:
        """Return how many items it could be given, with at least ``ahead`` beyond its slots."""
        if not self.is_ready:
            return 0
        return self.busy[0] + max(ahead, self.busy[0] // 2) - len(self.in_hand)

    def sample(self) -> EngineSample:
        """Return how busy it was at its last word."""
        in_use = min(self.busy[1], len(self.in_hand))
        return EngineSample(
            self._number, self.busy[0], in_use, len(self.in_hand) - in_use, self.captions, self.tokens
        )  # fmt: skip

    def welcome(self, slots: int) -> None:
        """Let it work."""
        self.is_ready, self.busy = True, (slots, 0)
        self.listen()

    def listen(self) -> None:
        """Ask for what it finishes next."""
        self.refs.add(self._handle.take.remote(TAKE_S))

    def give(self, items: Sequence[tuple[CaptionItem, bytes]]) -> None:
        """Hand over items with the bytes of their pictures.  That it is dead is noticed when it is next heard."""
        if not self.in_hand:
            self.heard_at = time.monotonic()
        self.in_hand |= {item.id: (item, now_ms()) for item, _ in items}
        self.refs.add(self._handle.give.remote([(dataclasses.asdict(item), data) for item, data in items]))

    def abandon(self) -> None:
        """Want nothing any more of what is in hand."""
        had, self.in_hand = self.in_hand, {}
        if had and self.died_at is None:
            self.refs.add(self._handle.abandon.remote())

    def dies(self, error: BaseException) -> None:
        """Note that it does not answer any more."""
        self.refs.clear()
        self.is_ready = False
        self.died_at = time.monotonic()
        self.is_out_of_reach = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        self.why = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))[:300]

    def kill(self) -> None:
        """End it."""
        self.refs.clear()
        self.is_ready = False
        with contextlib.suppress(Exception):
            self._ray.kill(self._handle)


class Cluster:
    """The nodes of a cluster and our actors on them.

    Attributes:
        actors: those that live, or whose end is not understood yet.
    """

    def __init__(self, settings: Settings, config: Mapping[str, Any]) -> None:
        """Join the cluster at ``settings.ray_address``.

        Raises `ConfigError` where Ray is missing, no address is given, or anybody may command the cluster, and
        `ModelError` where it cannot be reached.
        """
        self._ray = joined(settings)
        self._by_cpu = settings.ray_cpus or settings.device == "cpu"
        self._cpus = settings.ray_cpus or 1
        self._config = config
        self._started = 0
        self._nodes: dict[str, Node] = {}
        self._alive: set[str] = set()
        self._looked = float("-inf")
        resources = {"num_cpus": self._cpus} if self._by_cpu else {"num_gpus": 1}
        self._options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": THREADS, **resources}
        self.actors: list[Actor] = []

    def grow(self) -> None:
        """Start an actor wherever there is room for one."""
        self._look(0.0)
        strategies = self._ray.util.scheduling_strategies
        for node in [self._nodes[number] for number in sorted(self._alive)]:
            there = sum(actor.node is node for actor in self.actors)
            for _ in range(0 if node.left_alone else node.room - there):
                strategy = strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
                made = self._ray.remote(RayWorker).options(scheduling_strategy=strategy, **self._options)
                self.actors.append(Actor(self._ray, self._started, node, made.remote(self._config)))
                self._started += 1

    def _look(self, older_s: float) -> None:
        """See which nodes there are, unless that was seen less than ``older_s`` seconds ago."""
        now = time.monotonic()
        if now - self._looked < older_s:
            return
        self._looked = now
        self._alive = set()
        for row in self._ray.nodes():
            if not row["Alive"]:
                continue
            number, resources = row["NodeID"], row["Resources"]
            room = int(resources.get("CPU", 0) // self._cpus) if self._by_cpu else int(resources.get("GPU", 0))
            name = f"{row['NodeManagerAddress']} ({number[:6]})"
            self._nodes.setdefault(number, Node(number, name, room))
            self._alive.add(number)

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

    def buried(self) -> list[Actor]:
        """Return the dead actors of whom it is now known whether their node is gone too; they are ours no more."""
        dying = [actor for actor in self.actors if actor.died_at is not None]
        if not dying:
            return []
        self._look(0.3)
        known = []
        for actor in dying:
            age = time.monotonic() - (actor.died_at or 0)
            actor.node_is_gone = actor.node.id not in self._alive
            if not actor.node_is_gone and actor.is_out_of_reach and age > OUT_OF_REACH_S:
                actor.node_is_gone = True
            if actor.node_is_gone or (not actor.is_out_of_reach and age > NODE_DEATH_S):
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
        self.leave_alone(actor.node, why)

    def leave_alone(self, node: Node, why: str) -> None:
        """Start no more actors on a node."""
        node.left_alone = why
        log.error("node %s is left alone: %s", node.name, why)

    def why_nobody(self) -> str:
        """Return why no living node can caption; empty where one may, or where there is none."""
        able = [node for number in self._alive if (node := self._nodes[number]).room > 0]
        if able and all(node.left_alone for node in able):
            return f"no node of the Ray cluster can caption: {able[-1].left_alone}"
        return ""

    def close(self) -> None:
        """End all actors and leave the cluster."""
        for actor in self.actors:
            actor.kill()
        self.actors.clear()
        with contextlib.suppress(Exception):
            self._ray.shutdown()


def joined(settings: Settings) -> Any:
    """Return the module ``ray``, connected to the cluster; raises as `Cluster`."""
    check(settings)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # The name of a module that is not imported with its package.
    import ray.util.scheduling_strategies

    try:
        ray.init(
            address=settings.ray_address, namespace="caption-etl", log_to_driver=False, configure_logging=False,
            logging_level=logging.ERROR, ignore_reinit_error=True,
        )  # fmt: skip
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ModelError(
            f"the Ray cluster at {settings.ray_address} cannot be joined: {str(error).splitlines()[0][:300]}"
        ) from error
    return ray


def check(settings: Settings) -> None:
    """Raise `ConfigError` where Ray is missing, no address is given, or anybody may command the cluster."""
    import importlib.util

    if not settings.ray_address:
        raise ConfigError("--backend ray needs --ray-address, such as 10.0.0.1:6379, or auto on a node of the cluster")
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--backend ray needs Ray: pip install 'caption-etl[ray]', on every node")
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and not settings.insecure:
        raise ConfigError(
            "whoever reaches a Ray cluster without tokens can run any program on it: start every node and this command "
            "with RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate`), or say --insecure"
        )
