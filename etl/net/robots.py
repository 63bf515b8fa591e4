"""What a site's robots.txt allows, as RFC 9309 has it."""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protego import Protego

from etl.errors import FetchError, RobotsError, TooManyRedirectsError, TransientFetchError
from etl.net.urls import host_of

AGENT = "caption-etl"
"""Our product token: what a robots.txt calls us, and how our User-Agent header begins."""

MAX_BYTES = 500 * 1024
"""So much of a robots.txt is read; the RFC's least."""

KEPT_S = 86_400.0
"""The RFC's most."""

FAILURE_KEPT_S = 60.0

REMEMBERED_BYTES = 8 * 1024**2
"""Bytes of files that are remembered together; their rules take up to twenty times as much memory."""

LEAST_BYTES = 1024
"""What the shortest file counts: with it, thousands of hosts are remembered."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

_AGENT_LINE = re.compile(r"\s*user[-\s]*agent(?=[\s:])[\s:]*(\*(?=\s|#|$)|[\w-]*)", re.IGNORECASE)


LONGEST_CRAWL_DELAY_S = 60.0
"""A robots.txt may ask for so many seconds between two requests; more would mean that nobody is to come."""


@dataclass
class _Origin:
    """What is known of one origin; the lock lets one caller ask for its file while the others wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    known_until: float = float("-inf")
    rules: Protego | None = None
    error: FetchError | None = None
    size: int = LEAST_BYTES


class Robots:
    """Answers for URLs by the robots.txt of their origins (scheme, host and port); for one event loop.

    Each file is asked for once a day at most, once a minute where it could not be had, and by one caller at a time.

    Args:
        fetch: returns the body behind a URL, redirects followed, or raises a `FetchError`.
        remembered: bytes of files that are remembered, those of the least recently used origin forgotten first.
        clock: seconds that only grow; `time.monotonic` outside tests.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        remembered: int = REMEMBERED_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._most = remembered
        self._clock = clock
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    async def check(self, url: str) -> None:
        """Return when ``url`` may be fetched; always so for local paths.

        An answer of 4xx to the request for the robots.txt allows everything, and so do redirects without end.

        Raises `RobotsError` when it is forbidden, `InvalidUrlError`, or, while the robots.txt cannot be had, the
        `FetchError` that it failed with: everything is forbidden then, but only for now where it is retryable.
        """
        name = origin_of(url)
        if name is None:
            return
        origin = self._entry(name)
        async with origin.lock:
            if origin.known_until <= self._clock():
                await self._learn(name, origin)
        if origin.error is not None:
            raise _for_now(name, origin.error)
        if origin.rules is not None and not origin.rules.can_fetch(url.strip(), AGENT):
            raise RobotsError(f"forbidden by {name}/robots.txt")

    def crawl_delay(self, url: str) -> float:
        """Return the seconds that the URL's origin wants between two requests, as far as `check` has learned it.

        They are at most `LONGEST_CRAWL_DELAY_S`.
        """
        origin = self._origins.get(origin_of(url) or "")
        asked = origin.rules.crawl_delay(AGENT) if origin and origin.rules else None
        return min(asked or 0.0, LONGEST_CRAWL_DELAY_S)

    def _entry(self, name: str) -> _Origin:
        if name not in self._origins:
            self._origins[name] = _Origin()
            held = sum(origin.size for origin in self._origins.values())
            while held > self._most:
                held -= self._origins.popitem(last=False)[1].size
        self._origins.move_to_end(name)
        return self._origins[name]

    async def _learn(self, name: str, origin: _Origin) -> None:
        try:
            body = await self._fetch(f"{name}/robots.txt")
        except FetchError as error:
            if not _means_no_rules(error):
                origin.rules, origin.error = None, error
                origin.known_until = self._clock() + FAILURE_KEPT_S
                return
            body = b""
        # In a thread, because a long file takes longer than the network loop may stand still.
        origin.rules, origin.error = await asyncio.to_thread(parse, body), None
        origin.known_until = self._clock() + KEPT_S
        origin.size = max(LEAST_BYTES, len(body))


def origin_of(url: str) -> str | None:
    """Return ``scheme://host[:port]``, ``None`` for a local path.  Raises `InvalidUrlError`."""
    host = host_of(url)
    if not host:
        return None
    parts = urlsplit(url.strip())
    shown = f"[{host}]" if ":" in host else host
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{shown}{port}"


def parse(body: bytes) -> Protego:
    """Read a robots.txt; whatever is no rule in it is skipped."""
    text = body[:MAX_BYTES].decode("utf-8-sig", errors="replace")
    lines = text.splitlines()
    if len(body) >= MAX_BYTES and not text.endswith(("\r", "\n")):
        # Cut in the middle, "Disallow: /private" might become "Disallow: /".
        lines.pop()
    return Protego.parse("\n".join(_without_others(line) for line in lines))


def _without_others(line: str) -> str:
    """Give all other robots one name: protego stores each rule once per name, so 500 KiB could become gigabytes."""
    match = _AGENT_LINE.match(line)
    if match is None:
        return line
    name = match[1].lower()
    return f"User-agent: {name if name in ('*', AGENT) else 'other'}"


def _means_no_rules(error: FetchError) -> bool:
    if isinstance(error, TransientFetchError):
        return False  # 429 and 408 among them: the host is overloaded, not without rules
    answered_4xx = error.http_status is not None and 400 <= error.http_status < 500
    return answered_4xx or isinstance(error, TooManyRedirectsError)


def _for_now(name: str, error: FetchError) -> FetchError:
    cls = type(error)
    # A new one each time: a raised exception keeps its traceback.
    located = cls(
        f"nothing is fetched while {name}/robots.txt cannot be had: {error}", retry_after_s=error.retry_after_s
    )
    located.http_status = error.http_status
    return located
