"""The worker pool of a fetch on a cluster: how nodes are registered, monitored, asked and lost.

Knows nothing of Ray: a `Cluster` starts peers, a `Peer` is asked.  For one event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from etl.errors import ClusterError, EtlError, NodeFailedError
from etl.fetch.workers.base import LostError
from etl.fetch.workers.wire import Fields
from etl.ray_cluster.nodes import Node

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds between two looks at which nodes there are, and between two signs of life of each."""

DEATHS = 3
"""Deaths of a process alone with the same source in hand from which on each charges the source an attempt."""

GRACE_S = 1.0
"""Seconds beyond `WorkerPool`'s ``silence_s``, in which answers that lie ready are heard."""

CLOSE_S = 5.0
"""Longest wait for peers to remove what they hold before they are killed."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How a peer was lost.

    Attributes:
        why: for people.
        with_node: its whole node is gone; ``None`` while nobody knows.
        is_silent: it gave no sign of life for too long.
    """

    why: str
    with_node: bool | None
    is_silent: bool = False


class PeerLostError(Exception):
    """The peer is dead; ``loss`` says how."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.why)
        self.loss = loss


class Peer(Protocol):
    """One `etl.fetch.workers.node.FetchNode`, and the machine that it runs on."""

    node: Node

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call one of its methods.  Raises `PeerLostError` as soon as it is dead."""
        ...

    async def node_is_gone(self) -> bool:
        """Return of a dead one whether its whole node is gone; that may take a while to be known."""
        ...

    def kill(self) -> None:
        """End it, which may be dead already."""
        ...


class Cluster(Protocol):
    """Where peers are started and ended."""

    def grow(self) -> Sequence[Any]:
        """Start a peer on every node that has room for one; return the new ones.  May take a while."""
        ...

    def remove(self, peer: Any) -> None:
        """End a peer."""
        ...

    def why_nobody(self) -> str:
        """Return why no node can fetch; empty where one may."""
        ...

    def close(self) -> None:
        """End all peers.  May be called twice."""
        ...


class Worker:
    """A registered peer.

    Attributes:
        processes: pictures that it decodes at once.
        in_hand: how much it is asked for at the moment.
        lost: done when it is no worker any more.
        with_node: done when it is known too whether its whole node is gone.
    """

    def __init__(self, peer: Peer, processes: int) -> None:
        self.peer = peer
        self.processes = processes
        self.in_hand = 0
        self.lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        self.with_node: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def is_lost(self) -> bool:
        """Whether it cannot be asked any more."""
        return self.lost.done()


class WorkerPool:
    """The workers, as they come and go.

    Args:
        patience_s: seconds for which there may be no worker before `are_ready` raises.
        silence_s: seconds for which a worker may give no sign of life.
        look_s: seconds between two looks.
    """

    def __init__(self, cluster: Cluster, *, patience_s: float, silence_s: float, look_s: float = LOOK_S) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._look_s = look_s
        self._deaths: dict[object, list[Worker]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alone_since = time.monotonic()
        self._error: Exception | None = None
        self.workers: list[Worker] = []

    async def open(self) -> None:
        """Begin to look for workers."""
        self._alone_since = time.monotonic()
        self.do(self._monitor())

    async def close(self) -> None:
        """Let the workers remove what they hold, and end them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutdowns = [asyncio.ensure_future(worker.peer.ask("close")) for worker in self.workers]
        if shutdowns:
            await asyncio.wait(shutdowns, timeout=CLOSE_S)
        for shutdown in shutdowns:
            shutdown.cancel()
        await asyncio.gather(*shutdowns, return_exceptions=True)
        self.workers.clear()
        await asyncio.to_thread(self._cluster.close)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on beside the caller until the pool is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def are_ready(self) -> bool:
        """Return whether there is a worker.  Raises `ClusterError` when there was none for too long or never can be."""
        if self._error is not None:
            raise self._error
        if self.workers:
            return True
        if why := self._cluster.why_nobody():
            raise ClusterError(why)
        if time.monotonic() - self._alone_since > self._patience_s:
            raise ClusterError(
                f"no node of the cluster could fetch for {self._patience_s:g} s; start a node, then run again"
            )
        return False

    def emptiest(self) -> Worker | None:
        """Return the worker that has least in hand; ``None`` where there is none."""
        return min(self.workers, key=lambda worker: worker.in_hand, default=None)

    async def ask(self, worker: Worker, source: object, method: str, *arguments: Any) -> Any:
        """Ask a worker about a source.

        Raises `LostError` when the worker is lost meanwhile, or does not answer as it should.
        """
        call = asyncio.ensure_future(worker.peer.ask(method, *arguments))
        worker.in_hand += 1
        try:
            await asyncio.wait({call, worker.lost}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            raise PeerLostError(worker.lost.result())
        except PeerLostError as error:
            self._lose(worker, error.loss)
            raise await self._lost(worker, source, worker.lost.result()) from error
        except Exception as error:
            why = f"node {worker.peer.node.name} failed: {type(error).__name__}: {error}"[:300]
            raise LostError(why, NodeFailedError(why)) from error
        finally:
            call.cancel()
            worker.in_hand -= 1

    def fault(self, worker: Worker, why: str) -> None:
        """Do without a worker whose machine cannot do the work; its node is left alone."""
        if not worker.is_lost:
            worker.peer.node.leave_alone(why)
            self._lose(worker, Loss(why, with_node=True))

    async def _lost(self, worker: Worker, source: object, loss: Loss) -> LostError:
        """Return what the loss of a worker means for a source that it had in hand."""
        why = f"node {worker.peer.node.name} was lost: {loss.why}"
        if loss.with_node:
            return LostError(why)
        if loss.is_silent:
            return LostError(why, NodeFailedError(why))
        deaths = self._deaths.setdefault(source, [])
        deaths.append(worker)
        if len(deaths) < DEATHS:
            return LostError(why)
        with_node = [await asyncio.shield(each.with_node) for each in deaths]
        alone = with_node.count(False)
        if with_node[-1] or alone < DEATHS:
            return LostError(why)
        times = f"the fetching process died {alone} times with this source in hand"
        return LostError(why, NodeFailedError(f"{times}, the last one on node {worker.peer.node.name}: {loss.why}"))

    def _lose(self, worker: Worker, loss: Loss) -> None:
        if worker.is_lost:
            return
        worker.lost.set_result(loss)
        self.workers.remove(worker)
        if not self.workers:
            self._alone_since = time.monotonic()
        log.warning("node %s was lost: %s; %d sources go back", worker.peer.node.name, loss.why, worker.in_hand)
        if loss.with_node is None:
            # Its sources, and the slots of hosts that they hold, do not wait for that; but one that is only out of
            # reach must ask no host for anything beside those that take over.
            worker.peer.kill()
            self.do(self._reap(worker, loss))
        else:
            self._end(worker, loss, with_node=loss.with_node)

    async def _reap(self, worker: Worker, loss: Loss) -> None:
        try:
            with_node = await worker.peer.node_is_gone()
        except Exception as error:
            # Who could tell is gone too; whoever looks for new peers finds that out, and ends the run.
            log.warning("what became of node %s cannot be told: %s", worker.peer.node.name, error)
            with_node = True
        self._end(worker, loss, with_node=with_node)

    def _end(self, worker: Worker, loss: Loss, *, with_node: bool) -> None:
        worker.with_node.set_result(with_node)
        if not with_node:
            worker.peer.node.actor_died(loss.why)
        # Only now another may take its place: a node that is gone would look alive for a while.
        self._cluster.remove(worker.peer)

    async def _monitor(self) -> None:
        """Look for new peers again and again."""
        try:
            while True:
                for peer in await asyncio.to_thread(self._cluster.grow):
                    self.do(self._register(peer))
                await asyncio.sleep(self._look_s)
        except EtlError as error:
            self._error = error
        except Exception as error:
            log.exception("unexpected error while looking at the cluster")
            self._error = ClusterError(f"the cluster cannot be looked at: {type(error).__name__}: {error}"[:300])

    async def _register(self, peer: Peer) -> None:
        """Let a new peer take part once it is ready."""
        try:
            answer: Fields = await peer.ask("ready")
        except PeerLostError as error:
            log.warning("node %s was lost before it was ready: %s", peer.node.name, error.loss.why)
            with_node = error.loss.with_node
            if not (await peer.node_is_gone() if with_node is None else with_node):
                peer.node.actor_died(error.loss.why)
            self._cluster.remove(peer)
            return
        except Exception as error:
            # Whatever unpickling raises where the program is missing.
            lines = str(error).splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[-1]}"[:300]}
        if answer["error"] is not None:
            peer.node.leave_alone(answer["error"])
            self._cluster.remove(peer)
            return
        worker = Worker(peer, answer["processes"])
        self.workers.append(worker)
        log.info("node %s fetches too, with %d decoders", peer.node.name, worker.processes)
        if answer["proxied"]:
            log.info("node %s has a proxy: it resolves names, so private addresses are not refused", peer.node.name)
        self.do(self._watch_heartbeat(worker))

    async def _watch_heartbeat(self, worker: Worker) -> None:
        """Wait for signs of life until there is none."""
        while not worker.is_lost:
            beat = asyncio.ensure_future(worker.peer.ask("beat"))
            try:
                await asyncio.wait({beat, worker.lost}, timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED)
                if not (beat.done() or worker.is_lost):
                    # This process may have been stopped for as long; what has come meanwhile is heard now.
                    await asyncio.wait({beat, worker.lost}, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
                if beat.done():
                    beat.result()
                elif not worker.is_lost:
                    why = f"no sign of life for {self._silence_s:g} s"
                    self._lose(worker, Loss(why, with_node=False, is_silent=True))
            except PeerLostError as error:
                self._lose(worker, error.loss)
            except Exception as error:
                self._lose(worker, Loss(f"{type(error).__name__}: {error}"[:300], with_node=False))
            finally:
                beat.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(worker.lost), self._look_s)
