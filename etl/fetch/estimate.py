"""What a fetch would do: how many pictures, from which hosts, how many bytes, how long, and the disk it takes."""

import json
import math
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.errors import ItemError
from etl.fetch.archives import archive_above, sizes_in
from etl.fetch.local_files import Roots
from etl.fetch.loop import DECODE_AHEAD
from etl.fetch.mirrors import Mirrors
from etl.images.cache import ImageCache
from etl.net.urls import is_local
from etl.settings import Settings
from etl.state.read.hosts import all_hosts
from etl.state.read.reader import Reader
from etl.state.read.sources import active_lines, image_sizes, open_sources

SIZE_FIELDS = ("image_size_bytes", "size_bytes", "file_size", "bytes")
"""Fields of a record that may hold the size of its picture in bytes; the first that does counts."""

SEEN_MS = 5000
"""A host must have been at work for so long before its rates say anything."""

WORKING_COPY_BYTES = 190_000
"""Of a working copy of 1024 pixels, before there are any to take the mean of; measured on drawn photographs."""


@dataclass(frozen=True, kw_only=True)
class HostEstimate:
    """What is to come from one host.

    Attributes:
        host: its name; empty for local files.
        sources: pictures to fetch.
        retries: of those, how many have failed before.
        bytes: of the pictures whose size is known.
        unknown: pictures whose size is not.
        seconds: at the rates seen so far; ``None`` while none was seen.
        state: how the host is treated now.
        reason: why, when it is not open.
    """

    host: str
    sources: int
    retries: int
    bytes: int
    unknown: int
    seconds: float | None
    state: HostState = HostState.HEALTHY
    reason: str | None = None


@dataclass(frozen=True)
class FetchEstimate:
    """What a fetch would do.

    Attributes:
        hosts: by number of pictures, the most first.
        seconds: until the slowest host is done; ``None`` when the rate of any host is not known.
        disk_bytes: that the cache would grow by, unfinished downloads included.
        disk_free: bytes free on the cache's disk, ``min_free`` not counted.
    """

    hosts: tuple[HostEstimate, ...]
    seconds: float | None
    disk_bytes: int
    disk_free: int

    @property
    def sources(self) -> int:
        """Pictures to fetch."""
        return sum(host.sources for host in self.hosts)

    @property
    def bytes(self) -> int:
        """Bytes of the pictures whose size is known."""
        return sum(host.bytes for host in self.hosts)

    @property
    def unknown(self) -> int:
        """Pictures whose size is not known."""
        return sum(host.unknown for host in self.hosts)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "sources": self.sources, "bytes": self.bytes, "unknown": self.unknown, "seconds": self.seconds,
            "disk_bytes": self.disk_bytes, "disk_free": self.disk_free, "fits": self.disk_bytes <= self.disk_free,
            "hosts": [
                {
                    "host": host.host, "sources": host.sources, "retries": host.retries, "bytes": host.bytes,
                    "unknown": host.unknown, "seconds": host.seconds, "state": host.state, "reason": host.reason,
                }
                for host in self.hosts
            ],
        }  # fmt: skip


@dataclass
class _Sum:
    sources: int = 0
    retries: int = 0
    bytes: int = 0
    known: int = 0
    largest: int = 0


def estimate_of(reader: Reader, settings: Settings, *, refresh: bool = False) -> FetchEstimate:
    """Return what ``etl fetch`` would do now, with ``refresh`` or without; nothing is changed and nobody is asked.

    Pictures count for the host that is asked first.  Raises `ConfigError` for a mirror that is wrongly given.
    """
    mirrors = Mirrors.of(settings)
    mirrors.check(active_lines(reader))
    roots = Roots.of(reader, settings, mirrors)
    sums: dict[str, _Sum] = defaultdict(_Sum)
    in_archive = lru_cache(1)(sizes_in)
    for _, lines in groupby(open_sources(reader, fetched_too=refresh), key=itemgetter(0)):
        _add(sums, list(lines), mirrors, lambda address: _file_size(address, roots, in_archive))
    seen = {info.host: info for info in all_hosts(reader)}
    hosts = [_host(name, one, seen.get(name, HostInfo(host=name))) for name, one in sums.items()]
    times = [host.seconds for host in hosts]
    return FetchEstimate(
        hosts=tuple(sorted(hosts, key=lambda host: (-host.sources, host.host))),
        # Hosts are asked side by side.
        seconds=max((each for each in times if each is not None), default=0.0) if None not in times else None,
        disk_bytes=_disk(reader, settings, sums.values()),
        disk_free=max(0, ImageCache.of_state(settings.state).free_bytes() - settings.min_free),
    )


def expected_copies(reader: Reader, settings: Settings, sources: int) -> float:
    """Return the bytes that the working copies of so many sources are expected to take, within ``max_cache_size``."""
    working = image_sizes(reader)[0] or WORKING_COPY_BYTES * (settings.longest_edge / 1024) ** 2
    return min(sources * working, settings.max_cache_size or math.inf)


def _add(
    sums: dict[str, _Sum],
    lines: list[tuple[int, str, str, bool, bytes]],
    mirrors: Mirrors,
    file_size: Callable[[str], int | None],
) -> None:
    _, url, host, tried, line = lines[0]
    one = sums[mirrors.addresses(url, host, line)[0].host]
    one.sources += 1
    one.retries += tried
    size = next((size for *_, line in lines if (size := _size(line)) is not None), None)
    if size is None and is_local(address := mirrors.addresses(url, host, line)[0].url):
        size = file_size(address)
    if size is not None:
        one.known += 1
        one.bytes += size
        one.largest = max(one.largest, size)


def _file_size(address: str, roots: Roots, in_archive: Callable[[Path], dict[str, int]]) -> int | None:
    """Return the size of a local file, or of one in an archive; ``None`` where there is none that fetch would read."""
    try:
        path = roots.checked(address)
        if (archive := archive_above(path)) is not None:
            return in_archive(archive).get(path.relative_to(archive).as_posix())
        found = path.stat()
    except (OSError, ValueError, ItemError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _size(line: bytes) -> int | None:
    """Return the size that a record gives for its picture."""
    record = json.loads(line.decode("utf-8-sig"))
    for name in SIZE_FIELDS:
        value = record.get(name)
        # A manifest from a table has numbers as text.
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _host(name: str, one: _Sum, seen: HostInfo) -> HostEstimate:
    seconds = None
    if name == "":
        seconds = 0.0
    elif seen.busy_ms >= SEEN_MS and seen.done:
        busy_s = seen.busy_ms / 1000
        mean = one.bytes / one.known if one.known else 0
        by_size = bool(mean and seen.bytes)
        seconds = one.sources * busy_s * (mean / seen.bytes if by_size else 1 / seen.done)
    return HostEstimate(
        host=name,
        sources=one.sources,
        retries=one.retries,
        bytes=one.bytes,
        unknown=one.sources - one.known,
        seconds=seconds,
        state=seen.state,
        reason=seen.reason,
    )


def _disk(reader: Reader, settings: Settings, sums: Iterable[_Sum]) -> int:
    """Return the bytes that the cache would grow by: working copies, originals where kept, downloads under way."""
    total = _Sum()
    for one in sums:
        total.sources += one.sources
        total.bytes += one.bytes
        total.known += one.known
        total.largest = max(total.largest, one.largest)
    _, original = image_sizes(reader)
    mean = total.bytes / total.known if total.known else original
    unfinished = settings.concurrency + DECODE_AHEAD * (settings.decoders or os.cpu_count() or 1)
    disk = expected_copies(reader, settings, total.sources) + min(unfinished, total.sources) * (total.largest or mean)
    if settings.keep_originals:
        disk += total.bytes + (total.sources - total.known) * mean
    return round(min(disk, settings.max_cache_size) if settings.max_cache_size else disk)
