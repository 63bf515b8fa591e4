"""Connections to servers, directly through the guard or through the proxy that the environment names.

They are httpcore2's, but not in its pool, which looks through all of its connections at every request, and loses the
place of one whose request is cancelled while a proxy opens its tunnel; our time-outs cancel.
"""

import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from typing import Any, cast

import httpcore2
import httpx2

from etl.errors import ConfigError
from etl.net.address_guard import GuardedBackend
from etl.net.names import Names
from etl.net.request import Target
from etl.net.stream import TcpBackend
from etl.redaction import redact_url

KEEPALIVE_S = 120.0
"""Seconds that an idle connection is kept: longer than the usual delay between requests, or each one reconnects."""

_Connection = httpcore2.AsyncConnectionInterface


class Answer:
    """What a server answered, its body unread; to be closed.

    Attributes:
        target: what was asked for.
        status: of HTTP.
        headers: by their names in lower case; those that came more than once are joined by commas.
        raw_headers: as they came.
        beginning: of the body, where that was read; kept here for who asks for it again.
    """

    def __init__(
        self, target: Target, response: httpcore2.Response, connection: _Connection, connections: "Connections"
    ) -> None:
        self.target = target
        self.status = response.status
        self.headers = _by_name(response.headers)
        self.raw_headers = response.headers
        self.beginning: bytes | None = None
        self._response = response
        self._connection = connection
        self._connections = connections

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Return the body as it comes, piece by piece; to be read once."""
        stream = self._response.stream
        assert isinstance(stream, AsyncIterable)
        return cast("AsyncGenerator[bytes, None]", stream.__aiter__())

    async def aclose(self) -> None:
        """Be done with it; a connection whose answer was not read to its end is closed, too."""
        try:
            await self._response.aclose()
        finally:
            await self._connections.take_back(self.target, self._connection)


class Connections:
    """Connections that share nothing with others; each carries one request at a time.  For one event loop.

    Args:
        context: of TLS.
        most: how many there may be before the oldest idle one makes room for a new one.
        allow_host: as `GuardedBackend` takes it.
        names: resolves the names of servers that are dialled directly.

    Raises `ConfigError` where the environment names a proxy that cannot be used.
    """

    def __init__(self, context: ssl.SSLContext, most: int, allow_host: Iterable[str], names: Names) -> None:
        # A pool that carries no request: it makes connections.
        self._direct = httpcore2.AsyncConnectionPool(
            ssl_context=context, keepalive_expiry=KEEPALIVE_S, network_backend=GuardedBackend(allow_host, names)
        )
        self._proxies = _proxies(context)
        self._most = most
        self._open = 0
        self._idle: list[tuple[httpcore2.Origin, _Connection]] = []

    @property
    def proxied(self) -> bool:
        """Whether the environment names a proxy."""
        return bool(self._proxies)

    async def send(self, target: Target, headers: Mapping[str, str], extensions: dict[str, Any]) -> Answer:
        """Send a GET and return its answer; what an idle connection has lost is sent once more.

        A server may close a kept connection in the very moment in which it is used again, and often the request never
        reached it; so it goes out anew over a new connection (RFC 9112, 9.3.1), which is nobody's failure.

        ``extensions`` are httpcore2's.  Raises its errors, and the guard's.
        """
        raw = [(b"Host", target.netloc), *((name.encode(), value.encode()) for name, value in headers.items())]
        request = httpcore2.Request(b"GET", target.url, headers=raw, extensions=extensions)
        if (kept := await self._kept(target)) is not None:
            try:
                return await self._sent(target, request, kept)
            except (httpcore2.NetworkError, httpcore2.RemoteProtocolError) as error:
                # Bytes that are no HTTP are an answer too.
                if isinstance(error, httpcore2.RemoteProtocolError) and "without sending a response" not in str(error):
                    raise
        while self._open >= self._most and self._idle:
            await self._close(self._idle.pop(0)[1])
        self._open += 1
        return await self._sent(target, request, self._route(target).create_connection(target.origin))

    def _route(self, target: Target) -> httpcore2.AsyncConnectionPool:
        proxy = self._proxies.get(target.url.scheme.decode("ascii"))
        if proxy is None or urllib.request.proxy_bypass(target.netloc.decode("ascii")):
            return self._direct
        return proxy

    async def _sent(self, target: Target, request: httpcore2.Request, connection: _Connection) -> Answer:
        try:
            return Answer(target, await connection.handle_async_request(request), connection, self)
        except BaseException:
            await self._close(connection)
            raise

    async def _kept(self, target: Target) -> _Connection | None:
        """Return the connection to a server that was used last, if one waits."""
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index][0] == target.origin:
                connection = self._idle.pop(index)[1]
                if not connection.has_expired():
                    return connection
                await self._close(connection)
                # From the start: while this one was closed others were taken and came back.
                return await self._kept(target)
        return None

    async def take_back(self, target: Target, connection: _Connection) -> None:
        """Keep a connection for the next request to its server, if its answer was read to the end; else close it."""
        if connection.is_available() and not _has_more(connection):
            self._idle.append((target.origin, connection))
        else:
            # The caller's slot for the host is free only when the host can know it: when this one is closed.
            await self._close(connection)

    async def _close(self, connection: _Connection) -> None:
        self._open -= 1
        await connection.aclose()

    async def aclose(self) -> None:
        """Close those that wait."""
        while self._idle:
            await self._close(self._idle.pop()[1])


def _has_more(connection: Any) -> bool:
    """Return whether a connection has received more than the answers that were read from it.

    A server may send more than it announced; what follows an answer would be taken for the next one's beginning, and
    so for another picture.  httpcore2 keeps that in its HTTP/1.1 state, below one or two wrappers, and tells nobody.
    """
    while (connection := getattr(connection, "_connection", None)) is not None:
        state = getattr(connection, "_h11_state", None)
        if state is not None and state.trailing_data[0]:
            return True
    return False


def proxy_addresses() -> dict[str, str]:
    """Return the address of the proxy of each scheme that has one in the environment.

    The rules are those of `urllib.request`: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY for hosts that are dialled
    directly.
    """
    found = urllib.request.getproxies()
    return {scheme: one for scheme in ("http", "https") if (one := found.get(scheme) or found.get("all"))}


def _proxies(context: ssl.SSLContext) -> dict[str, httpcore2.AsyncConnectionPool]:
    """Return what makes connections through the proxy of each scheme that has one in the environment."""
    result = {}
    for scheme, address in proxy_addresses().items():
        address = address if "://" in address else f"http://{address}"
        try:
            proxy = httpx2.Proxy(address)
            url = httpcore2.URL(scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/")
            result[scheme] = httpcore2.AsyncConnectionPool(
                ssl_context=context,
                proxy=httpcore2.Proxy(url, proxy.raw_auth),
                keepalive_expiry=KEEPALIVE_S,
                network_backend=TcpBackend(),
            )
            result[scheme].create_connection(url.origin)
        except ImportError as error:
            raise ConfigError(f"the proxy {redact_url(address)} needs a package: `pip install {error.name}`") from error
        except (ValueError, httpx2.InvalidURL) as error:
            raise ConfigError(f"the proxy {redact_url(address)} cannot be used: {error}") from error
    return result


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw in headers:
        name = raw_name.decode("latin-1").lower()
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
