"""A pool of HTTP clients: one for each request under way, each with its own connections.

A request of httpx2 that is cancelled while a proxy opens its tunnel leaves a connection behind that its pool counts for
ever; our time-outs cancel, so over a night one shared pool would fill up until every request waits in vain.  Here a
client whose request did not end cleanly is thrown away with whatever it held.  It also keeps each pool at one or two
connections: httpx2 looks through all of them at every request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import httpx2

from etl.errors import FetchError, FetchTimeoutError

CONNECTIONS = 2
"""Of one client: the request's, and that of a redirect to another host."""


CLOSE_S = 0.5
"""Longest wait for a client that is thrown away; closing takes a turn of the event loop, or a TLS goodbye."""


class ClientPool:
    """Up to ``count`` clients, made when they are needed; for one event loop.

    A client that served a host before is preferred for that host, so its connection is used again.
    """

    def __init__(
        self,
        make: Callable[[], httpx2.AsyncClient],
        count: int,
        is_reusable: Callable[[httpx2.AsyncClient], bool] = lambda _: True,
    ) -> None:
        """``is_reusable`` says after a request that ended cleanly whether its client may be used again."""
        self._make = make
        self._is_reusable = is_reusable
        self._slots = asyncio.Semaphore(count)
        self._idle: list[tuple[str, httpx2.AsyncClient]] = []
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def client_for(self, host: str) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield a client for one request to ``host``; waits while all are in use."""
        async with self._slots:
            client = self._take(host)
            clean = False
            try:
                yield client
                clean = True
            except FetchError as error:
                # Raised by us between two steps of httpx2, except for the watchdog's, which cancels within one.
                clean = not isinstance(error, FetchTimeoutError)
                raise
            finally:
                if clean and self._is_reusable(client):
                    self._idle.append((host, client))
                else:
                    # The caller's slot for the host is free only when the host can know it: when this one is closed.
                    await asyncio.wait([self._discard(client)], timeout=CLOSE_S)

    def _take(self, host: str) -> httpx2.AsyncClient:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == host:
                return self._idle.pop(index)[1]
        # Another host's: its idle connection makes room for the new one.
        return self._idle.pop(0)[1] if self._idle else self._make()

    def _discard(self, client: httpx2.AsyncClient) -> asyncio.Task[None]:
        """Close a client beside the caller, who may be in the middle of a cancellation."""
        task = asyncio.get_running_loop().create_task(_close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def aclose(self) -> None:
        """Close all clients."""
        for _, client in self._idle:
            await _close(client)
        self._idle.clear()
        await asyncio.gather(*self._closing)


class ClientPools:
    """A pool for the web, and one for each store of the user's own, which its clients alone may reach.

    They share no connections, so that nothing of the web gets to such a store through a connection that is open.
    """

    def __init__(
        self,
        make: Callable[[str], httpx2.AsyncClient],
        count: int,
        is_reusable: Callable[[httpx2.AsyncClient], bool],
    ) -> None:
        """``make`` is given the ``host:port`` that its client may reach though it is private; empty for none."""
        self._make = make
        self._count = count
        self._is_reusable = is_reusable
        self._pools: dict[str, ClientPool] = {}

    def of(self, endpoint: str) -> ClientPool:
        """Return the pool for requests to a store there, or to the web where the endpoint is empty."""
        if endpoint not in self._pools:
            self._pools[endpoint] = ClientPool(lambda: self._make(endpoint), self._count, self._is_reusable)
        return self._pools[endpoint]

    async def aclose(self) -> None:
        """Close all clients."""
        for pool in self._pools.values():
            await pool.aclose()


async def _close(client: httpx2.AsyncClient) -> None:
    # The other side may be gone already, and a half-made connection cannot be closed in good order.
    with suppress(httpx2.HTTPError, OSError, RuntimeError):
        await client.aclose()
