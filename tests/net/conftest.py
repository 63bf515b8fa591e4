"""Fixtures of the network tests: a server that misbehaves, and an environment without proxies."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.net.client import Download, Downloader, Validators
from etl.settings import Settings


@pytest.fixture
def settings() -> Settings:
    """Short limits, and loopback allowed."""
    return Settings(connect_timeout=0.3, read_timeout=0.4, min_rate=2000, max_bytes=500_000, allow_host=("127.0.0.1",))


@pytest.fixture
def fetch(settings: Settings, tmp_path: Path) -> Callable[..., Download]:
    """Download one URL with a downloader of its own; keyword arguments change the settings."""

    def run(url: str, *, etag: str | None = None, part: Path | None = None, **changes: Any) -> Download:
        async def go() -> Download:
            # A download that its own limits do not end fails its test here instead of hanging it.
            async with asyncio.timeout(8), Downloader(dataclasses.replace(settings, **changes)) as downloader:
                return await downloader.download(
                    url, part or tmp_path / "a.part", validators=Validators(etag, None) if etag else None
                )

        return asyncio.run(go())

    return run
