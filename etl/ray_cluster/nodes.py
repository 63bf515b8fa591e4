"""Which nodes a Ray cluster has, and whether an actor that died did so alone or with its node."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

NODE_DEATH_S = 6.0
"""When a process has died, how long its node may take to be known as dead too; then the process died alone.

Measured with Ray 2.60 on the loopback: a killed raylet is noticed by its actors' callers after 3 s.
"""

OUT_OF_REACH_S = 30.0
"""An actor that cannot be reached for so long is given up as if its node were gone."""

FRUITLESS = 6
"""Deaths in a row of a node's actors that finished nothing, after which the node is left alone.

A picture that kills its worker kills five before it is given up (`etl.state.work_queue`).
"""


@dataclass(eq=False)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        name: for people.
        room: actors that it can have.
        cpus: its CPUs, as Ray counts them.
        fruitless: deaths in a row of its actors that finished nothing.
        left_alone: why it is given no actor any more; empty while it is.
    """

    id: str
    name: str
    room: int
    cpus: float = 0.0
    fruitless: int = 0
    left_alone: str = ""

    def leave_alone(self, why: str) -> None:
        """Start no more actors on it."""
        self.left_alone = why
        log.error("node %s is left alone: %s", self.name, why)

    def actor_died(self, how: str) -> None:
        """Count the death of an actor that died without its node; after too many the node is left alone."""
        self.fruitless += 1
        if self.fruitless >= FRUITLESS:
            self.leave_alone(how)


class Nodes:
    """The nodes of a cluster.  ``room`` tells from a node's resources how many actors it can have."""

    def __init__(self, ray: Any, room: Callable[[Mapping[str, float]], int]) -> None:
        self._ray = ray
        self._room = room
        self._nodes: dict[str, Node] = {}
        self._alive: set[str] = set()
        self._looked = float("-inf")

    def look(self, older_s: float = 0.0) -> None:
        """See which nodes there are, unless that was seen less than ``older_s`` seconds ago."""
        now = time.monotonic()
        if now - self._looked < older_s:
            return
        self._looked = now
        alive = set()
        for row in self._ray.nodes():
            if not row["Alive"]:
                continue
            number, resources = row["NodeID"], row["Resources"]
            if number not in self._nodes:
                name = f"{row['NodeManagerAddress']} ({number[:6]})"
                self._nodes[number] = Node(number, name, self._room(resources), resources.get("CPU", 0.0))
            alive.add(number)
        self._alive = alive

    def alive(self) -> list[Node]:
        """Return the nodes that lived at the last look."""
        return [self._nodes[number] for number in sorted(self._alive)]

    def is_alive(self, node: Node) -> bool:
        """Return whether the node lived at the last look."""
        return node.id in self._alive

    def placed(self, cls: type, node: Node, options: Mapping[str, Any]) -> Any:
        """Return what makes actors of a class on this node alone, to be called with their arguments by ``.remote``."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        # Nobody but us starts an actor again or repeats a call: what was in hand is our own business.
        return self._ray.remote(cls).options(
            scheduling_strategy=strategy, max_restarts=0, max_task_retries=0, **options
        )

    def why_nobody(self, what: str) -> str:
        """Return why no living node can do ``what``; empty where one may, or where there is none."""
        able = [node for node in self.alive() if node.room > 0]
        if able and all(node.left_alone for node in able):
            return f"no node of the Ray cluster can {what}: {able[-1].left_alone}"
        return ""


class Death:
    """That an actor does not answer any more.

    Attributes:
        why: for people.
    """

    def __init__(self, ray: Any, error: BaseException) -> None:
        self._at = time.monotonic()
        self._is_out_of_reach = isinstance(error, ray.exceptions.ActorUnavailableError)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self.why = (lines[-1] if lines else repr(error))[:300]

    def took_the_node(self, is_alive: bool) -> bool | None:
        """Return whether the node is gone too, which ``is_alive`` at the last look; ``None`` while nobody can know."""
        age = time.monotonic() - self._at
        if not is_alive or (self._is_out_of_reach and age > OUT_OF_REACH_S):
            return True
        return False if not self._is_out_of_reach and age > NODE_DEATH_S else None


def kill(ray: Any, handle: Any) -> None:
    """End an actor, which may be dead already."""
    with contextlib.suppress(Exception):
        ray.kill(handle)
