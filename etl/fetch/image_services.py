"""Pictures of IIIF image services, asked for in the size that is needed; all else is opened as it is written.

A service says in its manifest, or in its info.json, what it can do.  What one has said counts for all with the same
beginning, as far as it is not about a single picture; a size that is refused is not asked for again where another is
given.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etl.errors import FetchError
from etl.fetch.mirrors import Address
from etl.fetch.schemes import OPENERS, Access, Opened, ask_leave
from etl.net.attempt import Validators
from etl.net.iiif import WHOLE, Request, Service
from etl.net.urls import host_of, scheme_of
from etl.settings import Settings

MAX_INFO = 1024**2
"""Bytes of an info.json."""

_JSON = ("application/json", "application/ld+json")
_NOT_SUPPORTED = (500, 501)
"""What servers answer, beside 4xx, to sizes that they do not give."""

SILENT = 3
"""Pictures without an info.json after which a site that gave none is not asked for more."""


@dataclass
class _Site:
    """What is known of all services whose URIs begin alike; one caller at a time learns more."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    service: Service | None = None
    silent: int = 0
    refused: set[str] = field(default_factory=set)


class ImageServices:
    """Opens addresses; for one event loop.

    Args:
        access: what openers work with.
        read: returns the text behind a URL, redirects followed, or raises a `FetchError`.
        edge: longest edge that is needed, in pixels; 0 for pictures as large as they are.
    """

    def __init__(self, access: Access, read: Callable[[str], Awaitable[bytes]], edge: int) -> None:
        self._access = access
        self._read = read
        self._edge = edge
        self._sites: dict[str, _Site] = {}
        self._begun: dict[str, str] = {}

    async def open(self, address: Address, validators: Validators | None, line: Callable[[], bytes | None]) -> Opened:
        """Open an address; ``line`` returns that of its record, whose manifest may tell of a service.

        Raises as an `etl.fetch.schemes.Opener` does.
        """
        if scheme_of(address.url) not in ("http", "https"):
            return await OPENERS[scheme_of(address.url)](self._access, address, validators)
        service = await self._info(address.url) if address.url.endswith("/info.json") else None
        if service is None:
            opened = await self._first(await self._sized(address, line), address, validators)
            if opened.download.mime in _JSON:
                # The URI of a service, which has led to its info.json.
                service = await self._info(opened.download.final_url or address.url)
            if service is None:
                return opened
            self._access.downloads.forget(opened.path)
        self._site(service.base).service = service
        request = service.whole()
        sizes = [*self._sizes(service), request.size, *(f"{w},{h}" for w, h in sorted(service.sizes)[-1:])]
        return await self._first([request.url(size) for size in sizes], address, validators)

    def begun(self, url: str) -> str:
        """Return the URL that was asked for in the place of this one when it broke last."""
        return self._begun.pop(url, url)

    async def _first(self, urls: Sequence[str], address: Address, validators: Validators | None) -> Opened:
        """Open the first of several URLs that is not refused."""
        refused = []
        for url in urls:
            asked = address if url == address.url else replace(address, url=url, host=host_of(url))
            try:
                opened = await OPENERS[scheme_of(url)](self._access, asked, validators)
            except FetchError as error:
                if url == urls[-1] or (error.retryable and error.http_status not in _NOT_SUPPORTED):
                    self._begun[address.url] = url
                    raise
                refused.append(url)
                continue
            self._begun.pop(address.url, None)
            for other in filter(None, map(Request.of, refused)):
                self._site(other.base).refused.add(_form(other.size))
            return opened
        raise AssertionError("the last one returns or raises")

    async def _sized(self, address: Address, line: Callable[[], bytes | None]) -> list[str]:
        """Return the URLs to ask for, best first; the last one as it is written."""
        if not self._edge:
            return [address.url]
        request = Request.of(address.url)
        told = None if address.is_mirror else _told(line(), address.url)
        if request is None and told is not None:
            request = told.whole()
        part = _part(request.region) if request else None
        if request is None or request.size not in WHOLE or not (part or request.region == "full"):
            return [address.url]
        service = await self._service(request.base, told)
        if service is None:
            return [address.url]
        if part:
            service = replace(service, width=part[0], height=part[1], sizes=())
        urls = [request.url(size) for size in self._sizes(service)]
        return [*urls, address.url]

    def _sizes(self, service: Service) -> list[str]:
        refused = self._site(service.base).refused
        sizes = service.sizes_for(self._edge) if self._edge else None
        return [size for size in sizes or () if _form(size) not in refused]

    async def _service(self, base: str, told: Service | None) -> Service | None:
        """Return what is known of a picture's service when it was asked as far as that is necessary."""
        if told is not None and self._says_enough(told):
            return told
        guess = told if told is not None and told.level >= 0 else None
        site = self._site(base)
        async with site.lock:
            if site.service is None:
                if site.silent < SILENT:
                    site.service = await self._info(f"{base}/info.json")
                    site.silent += 1
                return site.service or guess
        width, height = (told.width, told.height) if told else (0, 0)
        known = replace(site.service, base=base, width=width, height=height, sizes=())
        if self._says_enough(known):
            return known
        return await self._info(f"{base}/info.json") or guess

    def _says_enough(self, service: Service) -> bool:
        return service.sizes_for(self._edge, asked=False) is not None

    async def _info(self, url: str) -> Service | None:
        """Return what an info.json says; ``None`` where there is none."""
        address = Address(url, host_of(url), is_mirror=False)
        try:
            await ask_leave(self._access, address)
            async with self._access.limiter.slot(address.host, url, patient=False) as request:
                data = await self._read(url)
                self._access.limiter.succeeded(request, len(data))
            return Service.of(json.loads(data))
        except FetchError as error:
            if error.retryable and error.http_status not in _NOT_SUPPORTED:
                raise
            return None
        except (ValueError, RecursionError):
            return None

    def _site(self, base: str) -> _Site:
        return self._sites.setdefault(base.rpartition("/")[0], _Site())


def edge_of(settings: Settings) -> int:
    """Return the longest edge that is needed; originals that are kept are wanted as large as they are."""
    return 0 if settings.keep_originals else settings.iiif_size or settings.longest_edge


def _form(size: str) -> str:
    """Return the form of a size, whatever its numbers are."""
    return re.sub(r"\d+", "n", size)


def _part(region: str) -> tuple[int, int] | None:
    """Return the width and height of a region; ``None`` where it does not tell them."""
    numbers = region.split(",")
    return (int(numbers[2]), int(numbers[3])) if len(numbers) == 4 and numbers[0].isdecimal() else None


def _told(line: bytes | None, url: str) -> Service | None:
    """Return the service that the manifest names for a picture."""
    if line is None or b'"iiif"' not in line:
        return None
    try:
        record: Any = json.loads(line)
        found = next(picture for picture in record["iiif"]["pictures"] if picture["url"] == url)
        return Service.of(found.get("service"))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
