"""The cluster of a fetch: where actors are started, how they are asked, and whether one that died died alone."""

import asyncio
import contextlib
from concurrent.futures import Future
from typing import Any

from etl.fetch.workers.node import FetchNode
from etl.fetch.workers.peers import Loss, PeerLostError
from etl.ray_cluster.connection import joined, leave
from etl.ray_cluster.nodes import Death, Node, Nodes, kill
from etl.settings import Settings
from etl.version import __version__

CALLS = 1000
"""Calls of one actor at once: its downloads, its decodes, and what is asked beside them."""

VERDICT_S = 0.3
"""Seconds between two looks at whether a dead actor's node is still there."""


class RayPeer:
    """An actor that fetches; see `etl.fetch.workers.peers.Peer`."""

    def __init__(self, ray: Any, nodes: Nodes, node: Node, handle: Any) -> None:
        self._ray = ray
        self._nodes = nodes
        self._handle = handle
        self._death: Death | None = None
        self.node = node

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor.

        Raises `PeerLostError` as soon as it is dead; what the method itself raises is Ray's own error around it.
        """
        try:
            return await _answer_of(getattr(self._handle, method).remote(*arguments))
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            self._death = self._death or Death(self._ray, error)
            raise PeerLostError(Loss(self._death.why, with_node=None)) from error

    async def node_is_gone(self) -> bool:
        """Return whether its node is gone, once that is known."""
        assert self._death is not None
        while True:
            await asyncio.to_thread(self._nodes.look, VERDICT_S)
            with_node = self._death.took_the_node(self._nodes.is_alive(self.node))
            if with_node is not None:
                return with_node
            await asyncio.sleep(VERDICT_S)

    def kill(self) -> None:
        """End it."""
        kill(self._ray, self._handle)


async def _answer_of(ref: Any) -> Any:
    """Return what a call gives.  Not awaited itself: Ray settles also what was cancelled, which its future resents."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def tell(done: "Future[Any]") -> None:
        # In a thread of Ray's, and maybe when the loop is over.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, answer, done)

    ref.future().add_done_callback(tell)
    return await answer


def _settle(answer: "asyncio.Future[Any]", done: "Future[Any]") -> None:
    if answer.done():
        return
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)


class RayCluster:
    """The nodes of a Ray cluster; see `etl.fetch.workers.peers.Cluster`."""

    def __init__(self, settings: Settings) -> None:
        """Join the cluster; raises as `etl.ray_cluster.connection.joined`."""
        self._ray = joined(settings.ray_address, "--fetch-backend ray", insecure=settings.insecure)
        self._config = {"version": __version__, "settings": settings.to_json()}
        # A node that is to do no work has no CPUs: often the head of a cluster.
        self._nodes = Nodes(self._ray, lambda resources: int(resources.get("CPU", 0) > 0))
        self._peers: list[RayPeer] = []
        self._has_left = False

    def grow(self) -> list[RayPeer]:
        """Start an actor on every node that has none and is not left alone; return the new ones."""
        self._nodes.look()
        new = []
        for node in self._nodes.alive():
            if not node.room or node.left_alone or any(peer.node is node for peer in self._peers):
                continue
            # It asks Ray for no CPU, so that captioning actors find theirs.
            made = self._nodes.placed(FetchNode, node, {"num_cpus": 0, "max_concurrency": CALLS})
            handle = made.remote(self._config | {"cpus": node.cpus})
            new.append(RayPeer(self._ray, self._nodes, node, handle))
        if self._has_left:
            # Closed while this looked, in a thread that cannot be cancelled.
            for peer in new:
                peer.kill()
            return []
        self._peers += new
        return new

    def remove(self, peer: RayPeer) -> None:
        """End an actor; another takes its place if its node is there."""
        peer.kill()
        if peer in self._peers:
            self._peers.remove(peer)

    def why_nobody(self) -> str:
        """Return why no living node can fetch; empty where one may, or where there is none."""
        return self._nodes.why_nobody("fetch")

    def close(self) -> None:
        """End all actors and leave the cluster.  May be called twice."""
        for peer in self._peers:
            peer.kill()
        self._peers.clear()
        if not self._has_left:
            self._has_left = True
            leave(self._ray)
