"""Fetch: sources become images in the cache.

Here is put together what one fetch works with; the work itself is in `etl.stages.fetch_loop`.
"""

import asyncio
import logging
import os
from pathlib import Path

from etl.config import Settings
from etl.errors import ConfigError
from etl.imaging.cache import ImageCache
from etl.imaging.pool import DecoderPool
from etl.models import StageSummary
from etl.net import resume
from etl.net.local import Roots
from etl.net.mirrors import Mirrors
from etl.stages.fetch_loop import FetchLoop
from etl.stages.flow import Flow
from etl.stages.manifest import STDIN
from etl.stages.room import Room
from etl.state.queries import Reader
from etl.state.store import Store

log = logging.getLogger(__name__)


def fetch(store: Store, run: int, settings: Settings, flow: Flow, *, refresh: bool = False) -> StageSummary:
    """Fetch every source that is due until none is left, waiting for those that will be tried again.

    With ``refresh``, sources that were fetched before are asked for again, and kept where they have not changed.

    Raises `ConfigError` when the state's working copies were made with another ``longest_edge`` or a mirror is not
    well given, and `DiskFullError` when the disk has less than ``min_free`` bytes or the cache no room below
    ``max_cache_size``; what was committed stays.
    """
    with Reader(store.directory) as reader:
        edges = reader.longest_edges()
        beside = [_folder(path) for _, path, _, _ in reader.manifests()]
    if edges and edges != [settings.longest_edge]:
        raise ConfigError(
            f"the working copies in {store.directory} have a longest edge of {edges[0]} pixels, not "
            f"{settings.longest_edge}; give --longest-edge {edges[0]} or another --state directory"
        )
    mirrors = Mirrors.of(settings)
    roots = Roots([*beside, *mirrors.directories, *settings.allow_path])
    cache = ImageCache.of_state(store.directory)
    cache.prepare(originals=settings.keep_originals)
    cache.sweep_parts(keep=resume.is_resumable)
    queue = store.sources(run)
    if refresh:
        log.info("%d sources are asked for again", queue.refresh())
    processes = settings.decoders or os.cpu_count() or 1
    with DecoderPool(
        cache.root, processes=processes, memory_bytes=settings.decoder_memory, longest_edge=settings.longest_edge,
        max_pixels=settings.max_pixels,
    ) as decoders:  # fmt: skip
        # While this process prepares itself; what it asks for first comes within hundredths of a second.
        decoders.start(min(processes, queue.due()))
        loop = FetchLoop(
            queue, store.hosts(run), settings, flow, cache, decoders, processes, mirrors,
            roots, Room(store, cache, queue, settings, flow),
        )  # fmt: skip
        return asyncio.run(loop.run())


def _folder(manifest: str) -> Path:
    """Return the directory beside whose files the pictures of a manifest may lie: its own."""
    if manifest == STDIN:
        return Path.cwd()
    return Path(manifest) if Path(manifest).is_dir() else Path(manifest).parent
