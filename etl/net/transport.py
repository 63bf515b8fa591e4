"""How a request leaves: directly through the guard, or through the proxy that the environment names.

A client with a transport of its own ignores the environment's proxies, so they are mounted here, by the rules of
`urllib.request`: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY for hosts that are dialled directly.
"""

import ssl
import urllib.request
from typing import Any

import httpcore2
import httpx2

from etl.errors import ConfigError
from etl.net.address_guard import GuardedBackend
from etl.net.names import Names
from etl.redaction import redact_url


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """Direct connections, opened by the guard.  httpx2 has no parameter for that, so its pool is built here."""

    def __init__(
        self, context: ssl.SSLContext, limits: httpx2.Limits, allow_host: tuple[str, ...], names: Names
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=GuardedBackend(allow_host, names),
        )


class Routes(httpx2.AsyncBaseTransport):
    """Sends each request, redirect hops included, through its proxy or directly."""

    def __init__(self, direct: httpx2.AsyncBaseTransport, proxies: dict[str, httpx2.AsyncHTTPTransport]) -> None:
        self._direct = direct
        self._proxies = proxies

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        transport = self._proxies.get(request.url.scheme, self._direct)
        # The environment is gone through for each answer: a seventh of what a small file costs.
        if self._proxies and urllib.request.proxy_bypass(request.url.netloc.decode("ascii")):
            transport = self._direct
        return await transport.handle_async_request(request)

    @property
    def transports(self) -> set[httpx2.AsyncBaseTransport]:
        """All there are."""
        return {self._direct, *self._proxies.values()}

    async def aclose(self) -> None:
        for transport in self.transports:
            await transport.aclose()


def is_reusable(client: httpx2.AsyncClient) -> bool:
    """Return whether no connection of the client has received more than the answers that were read from it.

    A server may send more than it announced; what follows an answer would be taken for the next one's beginning, and
    so for another picture.  httpcore2 keeps that in its HTTP/1.1 state, below one or two wrappers, and tells nobody.
    """
    routes = client._transport
    assert isinstance(routes, Routes)
    for transport in routes.transports:
        for connection in transport._pool.connections if isinstance(transport, httpx2.AsyncHTTPTransport) else ():
            inner: Any = connection
            while (inner := getattr(inner, "_connection", None)) is not None:
                state = getattr(inner, "_h11_state", None)
                if state is not None and state.trailing_data[0]:
                    return False
    return True


async def send(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Send a GET and return its answer, the body unread; what an idle connection has lost is sent once more.

    A server may close a kept connection in the very moment in which it is used again, and often the request never
    reached it; so it goes out anew over a new connection (RFC 9112, 9.3.1), which is nobody's failure.
    """
    dialled = False

    async def trace(event: str, _info: dict[str, Any]) -> None:
        nonlocal dialled
        dialled = dialled or event == "connection.connect_tcp.started"

    request.extensions["trace"] = trace
    try:
        return await client.send(request, stream=True)
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        # Bytes that are no HTTP are an answer too.
        unanswered = isinstance(error, httpx2.NetworkError) or "without sending a response" in str(error)
        if dialled or not unanswered:
            raise
    return await client.send(request, stream=True)


def proxy_addresses() -> dict[str, str]:
    """Return the address of the proxy of each scheme that has one in the environment."""
    found = urllib.request.getproxies()
    return {scheme: one for scheme in ("http", "https") if (one := found.get(scheme) or found.get("all"))}


def proxy_transports(context: ssl.SSLContext, limits: httpx2.Limits) -> dict[str, httpx2.AsyncHTTPTransport]:
    """Return a transport for each scheme that has a proxy in the environment."""
    made: dict[str, httpx2.AsyncHTTPTransport] = {}
    result = {}
    for scheme, address in proxy_addresses().items():
        address = address if "://" in address else f"http://{address}"
        try:
            made[address] = made.get(address) or httpx2.AsyncHTTPTransport(
                verify=context, limits=limits, proxy=httpx2.Proxy(address), trust_env=False
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise ConfigError(f"the proxy {redact_url(address)} cannot be used: {error}") from error
        result[scheme] = made[address]
    return result
