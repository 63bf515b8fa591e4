"""Looks at hosts.  `probe` sends one request, step by step: is the name known, does the host take a connection, is its
certificate good, does it answer, and how long does each take?  `unreachable` asks for the first two alone, quickly.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from etl.errors import FetchError, FetchTimeoutError
from etl.net.address_guard import GuardedBackend
from etl.net.attempt import Attempt
from etl.net.connections import Connections, proxy_addresses
from etl.net.errors import fetch_error
from etl.net.names import Names
from etl.net.object_stores import Asked, ObjectStores, context_of
from etl.net.request import Target, user_agent
from etl.net.urls import host_of
from etl.settings import Settings

PROBE_S = 20.0
"""Longest time for a host, in all."""

LOOK_S = 3.0
"""Longest time for all hosts together that are looked at quickly."""

AT_ONCE = 8
"""Hosts asked at once."""

_STEPS = {
    "connection.connect_tcp": "connect",
    "connection.start_tls": "TLS",
    "http11.receive_response_headers": "first byte",
}
"""What httpcore2 calls the steps, and what they are called here."""


@dataclass(slots=True)
class Reached:
    """How a host took one request.

    Attributes:
        steps: seconds of each step that was finished, in their order.
        status: of its answer; ``None`` where it gave none.
        error: why, in that case.
    """

    steps: dict[str, float] = field(default_factory=dict)
    status: int | None = None
    error: str = ""


def probe(settings: Settings, urls: Mapping[str, str]) -> dict[str, Reached]:
    """Return how each host took one request for the first byte of a URL of its own, by host.

    Redirects are not followed.  Raises `ConfigError` as `etl.net.client.Downloader` does.
    """
    return asyncio.run(_probe_all(settings, urls))


def unreachable(settings: Settings, urls: Mapping[str, str]) -> dict[str, FetchError]:
    """Return why a host takes no connection within `LOOK_S`, by host; those that take one are left out.

    Nothing is sent to them.  Behind a proxy, which alone can say who is there, nobody is looked at.
    """
    if proxy_addresses():
        return {}
    return asyncio.run(_unreachable(settings, urls))


async def _unreachable(settings: Settings, urls: Mapping[str, str]) -> dict[str, FetchError]:
    names, stores = Names(LOOK_S), ObjectStores()

    async def asked_for(url: str) -> Asked | None:
        try:
            return await stores.asked(url)
        except FetchError:
            # Fetching says so of each picture.
            return None

    async def look(asked: Asked | None) -> FetchError | None:
        if asked is None:
            return None
        try:
            async with asyncio.timeout(LOOK_S):
                url, backend = httpx2.URL(asked.url), GuardedBackend(asked.allowed(settings.allow_host), names)
                port = url.port or {"http": 80, "https": 443}[url.scheme]
                await (await backend.connect_tcp(url.raw_host.decode("ascii"), port)).aclose()
        except TimeoutError:
            return FetchTimeoutError(f"no connection within {LOOK_S:g} s")
        except KeyError:
            return None
        except Exception as error:
            return error if isinstance(error, FetchError) else fetch_error(error)
        return None

    # First, for it may load a package, beside which nothing else moves.
    wanted = await asyncio.gather(*map(asked_for, urls.values()))
    found = await asyncio.gather(*map(look, wanted))
    return {host: error for host, error in zip(urls, found, strict=True) if error is not None}


async def _probe_all(settings: Settings, urls: Mapping[str, str]) -> dict[str, Reached]:
    slots, context, stores = asyncio.Semaphore(AT_ONCE), httpx2.create_ssl_context(), ObjectStores()

    async def one(url: str) -> Reached:
        async with slots:
            return await _probe(settings, url, context, stores)

    return dict(zip(urls, await asyncio.gather(*map(one, urls.values())), strict=True))


async def _probe(settings: Settings, url: str, context: ssl.SSLContext, stores: ObjectStores) -> Reached:
    names, reached = Names(PROBE_S), Reached()
    begun: dict[str, float] = {}

    async def trace(event: str, _info: Any) -> None:
        step, _, what = event.rpartition(".")
        if step in _STEPS and what == "started":
            begun[step] = time.monotonic()
        elif step in _STEPS and what == "complete":
            reached.steps[_STEPS[step]] = time.monotonic() - begun[step]

    connections: Connections | None = None
    headers = {"User-Agent": user_agent(settings.contact), "Accept": "*/*", "Range": "bytes=0-0"}
    try:
        with Attempt.of(url).errors():
            asked = await stores.asked(url)
            target = Target.of(asked.url, whole=bool(asked.store))
            connections = Connections(context_of(asked, context), 1, asked.allowed(settings.allow_host), names)
            async with asyncio.timeout(PROBE_S):
                if not connections.proxied:
                    # Known for the connection then, which so has its own time alone.
                    began = time.monotonic()
                    await names.addresses(host_of(asked.url))
                    reached.steps["DNS"] = time.monotonic() - began
                sent = {**headers, **asked.headers, **target.authorization}
                answer = await connections.send(target, sent, {"trace": trace})
                reached.status = answer.status
                await answer.aclose()
    except FetchError as error:
        reached.error = str(error)
    finally:
        if connections is not None:
            await connections.aclose()
    return reached
