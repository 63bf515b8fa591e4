"""A manifest that lies elsewhere is brought here, by the downloader of the pictures, before it is read."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from etl.errors import FetchError, ManifestError
from etl.images.cache import ImageCache
from etl.net import resume
from etl.net.client import Downloader
from etl.net.object_stores import is_store
from etl.net.signatures import without_signature
from etl.redaction import redact_url
from etl.settings import Settings
from etl.state.work_queue import RetryPolicy
from etl.text import clean

log = logging.getLogger(__name__)

MAX_BYTES = 10**12
"""Of a manifest; the disk is full before."""

LOOK_S = 0.2
"""Seconds between two looks whether to stop."""


@contextmanager
def brought(url: str, settings: Settings, should_stop: Callable[[], bool]) -> Iterator[Path | None]:
    """Yield a file with what lies at the URL, which is gone afterwards; ``None`` where it was to stop.

    It lies among the unfinished files of the state's image cache: a download that breaks, or whose process was killed,
    goes on where it stopped, and what is left behind is swept like these.  ``max_attempts`` and its waits are those of
    pictures.

    Raises `ManifestError` when it cannot be brought, `DiskFullError` and `StateError` when it cannot be written.
    """
    log.info("fetching the manifest %s", redact_url(url))
    part = ImageCache.of_state(settings.state).part_of(without_signature(url))
    try:
        whole = asyncio.run(_bring(url, part, replace(settings, max_bytes=MAX_BYTES), should_stop))
    except FetchError as error:
        failed = ManifestError(f"the manifest cannot be fetched: {clean(str(error), 500)}")
        if is_store(url) and error.http_status == 404:
            failed.with_cure("if it is a folder, write / at its end")
        raise failed from error
    if not whole:
        yield None
        return
    try:
        yield part
    finally:
        resume.forget(part)


async def _bring(url: str, part: Path, settings: Settings, should_stop: Callable[[], bool]) -> bool:
    """Return whether the file is whole."""
    task = asyncio.create_task(_download(url, part, settings))
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK_S)
        if should_stop() and not task.done():
            task.cancel()
            await asyncio.wait({task})
            return False
    task.result()
    return True


async def _download(url: str, part: Path, settings: Settings) -> None:
    policy, attempt = RetryPolicy.of(settings), 0
    async with Downloader(settings) as downloader:
        while True:
            attempt += 1
            try:
                await downloader.download(url, part, accept="*/*")
                return
            except FetchError as error:
                wait_s = policy.wait_ms(attempt, error.retry_after_s) / 1000
                if not error.retryable or attempt >= policy.max_attempts or wait_s > settings.host_patience:
                    raise
                log.warning("the manifest is asked for again in %.0f s: %s", wait_s, error)
            await asyncio.sleep(wait_s)
