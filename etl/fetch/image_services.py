"""Pictures of IIIF image services, asked for in the size that is needed; all else is opened as it is written.

A service says in its manifest, or in its info.json, what it can do.  What one has said counts for all with the same
beginning, as far as it is not about a single picture; a size that is refused is not asked for again where another is
given.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from etl.errors import FetchError, NotAnImageError
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
    """What is known of all services whose URIs begin alike; one caller at a time learns more.

    Attributes:
        service: of the first picture that was asked about.
        mixed: whether the others can do other things.
        silent: how many pictures had no info.json, while none had one.
        refused: forms of sizes that it does not give although it says so.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    service: Service | None = None
    mixed: bool = False
    silent: int = 0
    refused: set[str] = field(default_factory=set)


class ImageServices:
    """Opens addresses; for one event loop.

    Args:
        access: what openers work with.
        read: returns at most ``max_bytes`` of the text behind a URL, redirects followed, or raises a `FetchError`.
        edge: longest edge that is needed, in pixels; 0 for pictures as large as they are.
    """

    def __init__(self, access: Access, read: Callable[..., Awaitable[bytes]], edge: int) -> None:
        self._access = access
        self._read = read
        self._edge = edge
        self._sites: dict[str, _Site] = {}
        self._begun: dict[str, str] = {}

    async def open(self, address: Address, validators: Validators | None, line: bytes | None) -> Opened:
        """Open an address; ``line`` is that of its record, if its manifest tells of a service.

        Raises as an `etl.fetch.schemes.Opener` does.
        """
        if scheme_of(address.url) not in ("http", "https"):
            return await OPENERS[scheme_of(address.url)](self._access, address, validators)
        place = address.url
        service = await self._info(place) if place.endswith("/info.json") else None
        if service is None:
            opened = await self._first(self._sized(address, line), address, validators)
            if opened.download.mime in _JSON:
                # The URI of a service, which has led to its info.json.
                data, place = opened.download.data, opened.download.final_url or place
                service = _parsed(data) if data else await self._info(place)
                if service is None and data and b"iiif.io/api/presentation/" in data:
                    raise NotAnImageError("a IIIF manifest, no picture; give its URL as SOURCE: `etl ingest URL`")
            if service is None:
                return opened
            self._access.downloads.forget(opened.path)
        return await self._first(self._of_service(service, place), address, validators)

    def begun(self, url: str) -> str:
        """Return the URL that was asked for in the place of this one when it broke last."""
        return self._begun.pop(url, url)

    async def _first(self, urls: AsyncGenerator[str, None], address: Address, validators: Validators | None) -> Opened:
        """Open the first of several URLs that is not refused."""
        refused: dict[str, FetchError] = {}
        async with aclosing(urls):
            async for url in urls:
                asked = address if url == address.url else replace(address, url=url, host=host_of(url))
                try:
                    opened = await OPENERS[scheme_of(url)](self._access, asked, validators)
                except FetchError as error:
                    self._begun[address.url] = url
                    if error.retryable and error.http_status not in _NOT_SUPPORTED:
                        raise
                    refused[url] = error
                    continue
                self._begun.pop(address.url, None)
                for other in filter(None, map(Request.of, refused)):
                    if not (site := self._site(other.base)).mixed:
                        site.refused.add(_form(other.size))
                return opened
        raise refused.popitem()[1]

    async def _of_service(self, service: Service, place: str) -> AsyncGenerator[str, None]:
        """Yield the URLs to ask a service for that is named itself, best first; ``place`` is of its info.json."""
        # Behind proxies some know themselves by a name that nobody else does.
        for base in dict.fromkeys((service.base, place.removesuffix("/info.json").rstrip("/"))):
            request = replace(service, base=base).whole()
            for size in (*self._sizes(service), request.size, *(f"{w},{h}" for w, h in sorted(service.sizes)[-1:])):
                yield request.url(size)

    async def _sized(self, address: Address, line: bytes | None) -> AsyncGenerator[str, None]:
        """Yield the URLs to ask for, best first; the last one as it is written."""
        request = Request.of(address.url) if self._edge else None
        told = _told(line, address.url) if self._edge and not address.is_mirror else None
        if request is None and told is not None:
            request = told.whole()
        part = _part(request.region) if request else None
        # Beside its service, the size in which a manifest shows a picture is one of many.
        is_any = request is not None and (request.size in WHOLE or told is not None)
        if request is not None and is_any and (part or request.region == "full"):
            service = await self._service(request.base, told)
            sizes = self._sizes(service, part)
            for size in sizes:
                yield request.url(size)
            if sizes and service is not None and service.base != request.base:
                # What holds for others does not hold for this one.
                more = self._sizes(await self._info(f"{request.base}/info.json"), part)
                for size in (one for one in more if one not in sizes):
                    self._site(request.base).mixed = True
                    yield request.url(size)
        yield address.url

    def _sizes(self, service: Service | None, part: tuple[int, int] | None = None) -> list[str]:
        if service is None or not self._edge:
            return []
        if part:
            service = replace(service, width=part[0], height=part[1], sizes=())
        refused = self._site(service.base).refused
        return [size for size in service.sizes_for(self._edge) or () if _form(size) not in refused]

    async def _service(self, base: str, told: Service | None) -> Service | None:
        """Return what is known of a picture's service when it was asked as far as that is necessary.

        It may be another's, which has told enough.
        """
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
        known = replace(site.service, width=width, height=height, sizes=())
        if not site.mixed and self._says_enough(known):
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
                data = await self._read(url, max_bytes=MAX_INFO)
                self._access.limiter.succeeded(request, len(data))
            return _parsed(data)
        except FetchError as error:
            if error.retryable and error.http_status not in _NOT_SUPPORTED:
                raise
            return None

    def _site(self, base: str) -> _Site:
        return self._sites.setdefault(base.rpartition("/")[0], _Site())


def edge_of(settings: Settings) -> int:
    """Return the longest edge that is needed; originals that are kept are wanted as large as they are."""
    return 0 if settings.keep_originals else settings.iiif_size or settings.longest_edge


def _parsed(data: bytes) -> Service | None:
    try:
        return Service.of(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _form(size: str) -> str:
    """Return the form of a size, whatever its numbers are."""
    return re.sub(r"\d+", "n", size)


def _part(region: str) -> tuple[int, int] | None:
    """Return the width and height of a region; ``None`` where it does not tell them."""
    numbers = region.split(",")
    return (int(numbers[2]), int(numbers[3])) if len(numbers) == 4 and numbers[0].isdecimal() else None


def _told(line: bytes | None, url: str) -> Service | None:
    """Return the service that the manifest names for a picture."""
    if line is None:
        return None
    try:
        record: Any = json.loads(line)
        found = next(picture for picture in record["iiif"]["pictures"] if picture["url"] == url)
        return Service.of(found.get("service"))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
