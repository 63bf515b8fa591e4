"""The robots.txt of hosts, obeyed by who fetches pictures."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from etl.net.robots import MAX_BYTES, Robots
from etl.net.urls import host_of

if TYPE_CHECKING:
    from etl.fetch.hosts.limiter import HostLimiter
    from etl.net.client import Downloader


def obeying(downloader: "Downloader", limiter: "HostLimiter") -> Callable[[str], Awaitable[None]]:
    """Return what checks a URL as `Robots.check` does, and lets the limiter keep the delay that its host asks for."""
    robots = Robots(lambda url: downloader.read(url, max_bytes=MAX_BYTES))

    async def check(url: str) -> None:
        await robots.check(url)
        limiter.set_interval(host_of(url), robots.crawl_delay(url))

    return check
