"""Fetch: sources become images in the cache.

Here is put together what one fetch works with; the work itself is in `etl.fetch.loop`.
"""

import asyncio
import logging
from contextlib import closing

from etl.domain.views import StageSummary
from etl.errors import ConfigError, StateError
from etl.fetch.disk_budget import DiskBudget
from etl.fetch.local_files import Roots
from etl.fetch.loop import FetchLoop
from etl.fetch.mirrors import Mirrors
from etl.fetch.workers.base import FetchBackend, LocalBackend
from etl.images.cache import ImageCache
from etl.net import resume
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.presence import require_cache, require_directory
from etl.state.read.reader import Reader
from etl.state.read.sources import longest_edges
from etl.state.store import Store

log = logging.getLogger(__name__)


def fetch(store: Store, run: int, settings: Settings, control: RunControl, *, refresh: bool = False) -> StageSummary:
    """Fetch every source that is due until none is left, waiting for those that will be tried again.

    With ``refresh``, sources that were fetched before are asked for again, and kept where they have not changed.

    Raises `ConfigError` when the state's working copies were made with another ``longest_edge`` or a mirror is not
    well given, and `DiskFullError` when the disk has less than ``min_free`` bytes or the cache no room below
    ``max_cache_size``; what was committed stays.  Raises `CacheMissingError` where the cache that the database counts
    on is not there, or goes: none is made in its place.  Raises `ClusterError` when no node of the cluster could fetch
    for ``endpoint_patience``.
    """
    with Reader(store.directory) as reader:
        edges = longest_edges(reader)
        mirrors = Mirrors.of(settings)
        roots = Roots.of(reader, settings, mirrors)
        require_cache(reader)
    if edges and edges != [settings.longest_edge]:
        raise ConfigError(
            f"the working copies in {store.directory} have a longest edge of {edges[0]} pixels, not "
            f"{settings.longest_edge}; give --longest-edge {edges[0]} or another --state directory"
        )
    cache = ImageCache.of_state(store.directory)
    cache.prepare(originals=settings.keep_originals)
    cache.sweep_parts(keep=resume.is_resumable)
    queue = store.sources(run)
    if refresh:
        log.info("%d sources are asked for again", queue.refresh())
    if (closed := roots.closed()) and "" in queue.ready_hosts(limit=1):
        log.warning(
            "local pictures are refused below %s: no manifest there was ingested by you on this machine; ingest it "
            "here again or give --allow-path DIR, then `etl retry-failed --class blocked_path`",
            ", ".join(map(str, closed))[:200],
        )
    with closing(_open_backend(settings, cache)) as backend:
        # While this process prepares itself; what it asks for first comes within hundredths of a second.
        backend.begin(queue.due())
        loop = FetchLoop(
            queue,
            store.hosts(run),
            settings,
            control,
            cache,
            backend,
            mirrors,
            roots,
            DiskBudget(store, cache, queue, settings, control),
        )
        try:
            return asyncio.run(loop.run())
        except StateError:
            # What could not be written may be all of it.
            require_directory(cache)
            with Reader(store.directory) as reader:
                require_cache(reader)
            raise


def _open_backend(settings: Settings, cache: ImageCache) -> FetchBackend:
    """Return who downloads and decodes.  Raises `ConfigError` and `ClusterError` where a cluster cannot be joined."""
    if settings.fetch_backend == "local":
        return LocalBackend(settings, cache)
    from etl.fetch.workers.ray import RayCluster
    from etl.fetch.workers.remote import ClusterBackend

    return ClusterBackend(settings, cache, RayCluster(settings))
