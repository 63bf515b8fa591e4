"""Documents over HTTP for who has no event loop: manifests that a collection names, one request at a time."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from etl.errors import BodyTooLargeError, FetchError
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.net.client import Downloader
    from etl.net.robots import Robots

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
"""That a server's Retry-After is waited for."""

LOOK_S = 0.2
"""Seconds between two looks whether to stop."""


class Documents:
    """Reads documents through the one downloader; a context manager, which opens nothing before the first is read.

    Requests go out one after the other, ``host_rate`` a second at most, and as robots.txt allows where that is obeyed.
    An error that may pass is waited for, unless that takes long or a stop is wanted.
    """

    def __init__(self, settings: Settings, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._settings = settings
        self._should_stop = should_stop
        self._runner: asyncio.Runner | None = None
        self._downloader: Downloader | None = None
        self._robots: Robots | None = None
        self._not_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner is not None and self._downloader is not None:
            self._runner.run(self._downloader.__aexit__(None, None, None))
            self._runner.close()

    def read(self, url: str, max_bytes: int) -> bytes:
        """Return what lies behind a URL.  Raises a `FetchError`, for more than ``max_bytes`` too."""
        return self.page(url, "", max_bytes)[0]

    def page(self, url: str, after: str, max_bytes: int) -> tuple[bytes, str]:
        """Return what `Downloader.page` does.  Raises a `FetchError`, for more than ``max_bytes`` too."""
        # The HTTP client takes a tenth of a second to import.
        from etl.net.client import Downloader
        from etl.net.object_stores import is_store

        self._runner = self._runner or asyncio.Runner()
        self._downloader = downloader = self._downloader or Downloader(self._settings)
        if self._settings.respect_robots and self._robots is None:
            from etl.net.robots import MAX_BYTES, Robots

            self._robots = Robots(lambda one: downloader.read(one, max_bytes=MAX_BYTES))
        robots = None if is_store(url) else self._robots
        pause = 1 / self._settings.host_rate if self._settings.host_rate else 0.0
        attempt = 0
        while True:
            attempt += 1
            while (left := self._not_before - time.monotonic()) > 0 and not self._should_stop():
                time.sleep(min(left, LOOK_S))
            self._not_before = time.monotonic() + pause
            try:
                if robots is not None:
                    self._runner.run(robots.check(url))
                    self._not_before = max(self._not_before, time.monotonic() + robots.crawl_delay(url))
                check = robots.check if robots else None
                asking = downloader.page(url, after, max_bytes=max_bytes + 1, may_follow=check)
                data, link = self._runner.run(asking)
                if len(data) > max_bytes:
                    raise BodyTooLargeError(f"larger than {max_bytes} bytes: {url[:200]}")
                return data, link
            except FetchError as error:
                wait = error.retry_after_s or self._settings.backoff * 2 ** (attempt - 1)
                ends = attempt >= self._settings.max_attempts or wait > LONGEST_WAIT_S or self._should_stop()
                if not error.retryable or ends:
                    raise
                log.warning("asked for again in %.0f s: %s", max(wait, pause), error)
                self._not_before = time.monotonic() + max(wait, pause)
