"""A cluster whose nodes live in the test's own process: everything but Ray, and nodes that can be lost at will."""

import asyncio
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from etl import __version__
from etl.fetch import stage as fetch_module
from etl.fetch.workers.node import FetchNode
from etl.fetch.workers.peers import Loss, PeerLostError
from etl.fetch.workers.remote import ClusterBackend
from etl.images.cache import ImageCache
from etl.ray_cluster.nodes import Node
from etl.settings import Settings

LOOK_S = 0.02


class NearPeer:
    """One node.

    Attributes:
        asked: how often each of its methods was called.
        loss: how it is lost, once it is; where it leaves open whether its node is gone, nobody ever knows.
        is_frozen: whether it answers nothing any more.
        is_killed: whether it was ended.
        change: replaces what a method answers.
    """

    def __init__(self, cluster: "NearCluster", node: Node, config: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._fetcher = FetchNode(config)
        self.node = node
        self.asked: Counter[str] = Counter()
        self.loss: Loss | None = None
        self.is_frozen = self.is_killed = False
        self.change: Callable[[str, Any], Any] = lambda _, answer: answer

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method; all that travels is pickled, as on the way to another machine."""
        self.asked[method] += 1
        self._cluster.loop = asyncio.get_running_loop()
        call = asyncio.ensure_future(getattr(self._fetcher, method)(*pickle.loads(pickle.dumps(arguments))))
        try:
            while not call.done() or self.is_frozen or self.loss:
                if self.loss:
                    raise PeerLostError(self.loss)
                await asyncio.sleep(LOOK_S)
            return self.change(method, pickle.loads(pickle.dumps(call.result())))
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    async def node_is_gone(self) -> bool:
        while self.loss is None or self.loss.with_node is None:
            await asyncio.sleep(LOOK_S)
        return self.loss.with_node

    def kill(self) -> None:
        """End it; what it held goes with it."""
        if self.is_killed:
            return
        self.is_killed = True
        self._cluster.ends.append(asyncio.get_running_loop().create_task(self._fetcher.close()))


class NearCluster:
    """Starts up to ``nodes`` peers; another takes the place of one that died without its node.

    Attributes:
        peers: those that live.
        every: those that ever lived.
        version: of the driver, as the nodes are told.
    """

    def __init__(self, settings: Settings, nodes: int) -> None:
        self._settings = settings
        self.nodes = [Node(str(number), f"node {number}", 1, 1.0) for number in range(nodes)]
        self.peers: list[NearPeer] = []
        self.every: list[NearPeer] = []
        self.ends: list[asyncio.Task[None]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.version = __version__
        self.on_new: Callable[[NearPeer], None] = lambda _: None
        self.backend: ClusterBackend | None = None

    def prefer_others(self) -> None:
        """Where several workers have as little to do, let the last of them be asked first."""
        assert self.backend is not None
        self.backend._workers.workers.reverse()

    def grow(self) -> list[NearPeer]:
        new = []
        taken = [peer.node for peer in self.peers]
        taken += [peer.node for peer in self.every if peer.loss and peer.loss.with_node]
        for node in self.nodes:
            if node not in taken and not node.left_alone:
                config = {"version": self.version, "settings": self._settings.to_json(), "cpus": node.cpus}
                new.append(NearPeer(self, node, config))
                self.on_new(new[-1])
        self.peers += new
        self.every += new
        return new

    def remove(self, peer: NearPeer) -> None:
        self.peers.remove(peer)
        peer.kill()

    def why_nobody(self) -> str:
        return self.nodes[-1].left_alone if all(node.left_alone for node in self.nodes) and self.nodes else ""

    def join(self) -> None:
        """Let one more node be found."""
        number = len(self.nodes)
        self.nodes.append(Node(str(number), f"node {number}", 1, 1.0))

    def close(self) -> None:
        """End all peers, and wait until they are: a process would take what it holds with it, these cannot."""
        if self.loop is not None and self.loop.is_running():
            asyncio.run_coroutine_threadsafe(self._ended(), self.loop).result()

    async def _ended(self) -> None:
        for peer in self.peers:
            peer.kill()
        self.peers.clear()
        # A later fetch has another loop.
        ends, self.ends = self.ends, []
        await asyncio.gather(*ends)


@contextmanager
def near_cluster(settings: Settings, nodes: int = 2) -> Any:
    """Let every fetch of the block go out to such a cluster."""
    cluster = NearCluster(settings, nodes)

    def backend(used: Settings, cache: ImageCache) -> ClusterBackend:
        cluster._settings = used
        cluster.backend = ClusterBackend(used, cache, cluster, look_s=LOOK_S)
        return cluster.backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_module, "_open_backend", backend)
        yield cluster
