"""Small states for tests: records without a manifest file, fetched images without a network, checks of the whole."""

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etl.clock import now_ms
from etl.domain.items import (
    CaptionItem,
    CaptionResult,
    DecodedImage,
    FetchedImage,
    ItemFailure,
    SourceItem,
    WorkingCopy,
)
from etl.domain.statuses import FinishReason, HostState, Stage
from etl.domain.views import FailureFilter, HostInfo, IngestSummary
from etl.images.cache import ImageCache
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.settings import Settings
from etl.state.checks import problems
from etl.state.read.reader import Reader
from etl.state.store import Store


class StateDirectory:
    """A state directory, and the settings of all that is done to it.  Nothing holds its lock between calls.

    What tests make states of adds how these come about: `MadeState`, `Work` and, with real stages, `Workbench`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.settings.state

    def change(self, **settings: Any) -> None:
        """Use other settings from now on."""
        self.settings = dataclasses.replace(self.settings, **settings)

    def ingest_path(self, path: str, options: IngestOptions | None = None) -> IngestSummary:
        """Ingest a manifest that is there, in a run of its own."""
        with Store.open(self.settings) as store, store.run((Stage.INGEST,)):
            return ingest(store, Manifest(path), options or IngestOptions())

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Ask the state's database."""
        return query(self.state, sql, *arguments)

    def execute(self, sql: str) -> None:
        """Change the database behind the program's back, as a crash or an earlier version may have left it."""
        with Store.open(self.settings) as store, store._connection.transaction() as db:
            db.conn.execute(sql)

    def retry(self) -> dict[str, int]:
        """Give everything that failed another chance."""
        with Store.open(self.settings) as store:
            return store.retry_failed(FailureFilter())


def query(state: Path, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Ask the database of a state directory, as another process would."""
    connection = sqlite3.connect(f"{(state / 'state.db').resolve().as_uri()}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(sql, arguments).fetchall()
    finally:
        connection.close()


def settings_for(directory: Path, **changes: Any) -> Settings:
    """Return settings with no waits between attempts, for the state directory ``directory``."""
    usual: dict[str, Any] = {"state": directory, "backoff": 0.0, "max_attempts": 3}
    return Settings(**(usual | changes))


def put_records(store: Store, records: Iterable[dict[str, Any]], options: IngestOptions | None = None) -> None:
    """Ingest these records as the one manifest of the state, kept beside the state directory."""
    path = store.directory.parent / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    ingest(store, Manifest(str(path)), options or IngestOptions())


def put_sources(store: Store, *urls: str) -> None:
    """Ingest one record for each URL; its key is its place, from 0."""
    put_records(store, ({"id": str(number), "url": url} for number, url in enumerate(urls)))


def fetched(
    source: SourceItem, content: str | None = None, *, copy: WorkingCopy | None = None, size: int = 100,
    pixels: tuple[int, int] = (40, 30), original_kept: bool = False,
) -> FetchedImage:  # fmt: skip
    """Return what fetching a source would give, were ``content`` (default: its URL) its bytes."""
    sha256 = hashlib.sha256((content or source.url).encode()).hexdigest()
    working = copy or WorkingCopy(hashlib.sha256(sha256.encode()).hexdigest(), 10, 4, 3, 1024)
    return FetchedImage(
        source=source,
        sha256=sha256,
        size=size,
        decoded=DecodedImage("image/jpeg", *pixels, working),
        original_kept=original_kept,
        started_at=now_ms(),
        http_status=200,
        etag="tag",
    )


def put_picture(
    cache: ImageCache, source: SourceItem, original: str, working: bytes, *, keep: bool, edge: int = 1024
) -> FetchedImage:
    """Put the working copy of a source into the cache, and its original where that is to be kept, as a decoder does."""
    image = fetched(
        source, original, copy=WorkingCopy(cache.put_working(working), len(working), 4, 3, edge), size=len(original),
        original_kept=keep,
    )  # fmt: skip
    if keep:
        part = cache.new_part()
        part.write_text(original)
        cache.keep_original(part, image.sha256)
    return image


def captioned(item: CaptionItem, text: str = "A street.") -> CaptionResult:
    """Return a caption for a claimed item."""
    return CaptionResult(item.id, text, 3, FinishReason.STOP)


def failed(
    item: int, slug: str = "timeout", *, retryable: bool = True, message: str | None = None, **more: Any
) -> ItemFailure:
    """Return a failure of a claimed item."""
    said = f"it was {slug}" if message is None else message
    return ItemFailure(id=item, slug=slug, message=said, retryable=retryable, started_at=now_ms(), **more)


def slowed(host: str) -> HostInfo:
    """Return how a host fares that is asked more slowly."""
    return HostInfo(
        host=host, state=HostState.SLOWED, reason="busy", until=None, allowed=4, in_flight=3, done=8, failed=5
    )


def use_recipe(store: Store, name: str = "one") -> int:
    """Make a recipe of this name the current one."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return store.use_recipe(sha256=sha256, model=name, revision="main", spec="{}")


def fetch_all(store: Store, contents: Sequence[str] = ()) -> None:
    """Fetch every source that is due; in the order of their numbers their bytes are ``contents``."""
    with store.run((Stage.FETCH,)) as run:
        queue = store.sources(run)
        items = sorted(
            (item for host in queue.ready_hosts() for item in queue.claim(host, 1000)), key=lambda item: item.id
        )
        named = [*contents, *(item.url for item in items[len(contents) :])]
        queue.commit([fetched(item, content) for item, content in zip(items, named, strict=False)])


def assert_sound(state: Path) -> None:
    """Assert that the database is whole, its counters true, and every outcome what the view says."""
    with Reader(state) as reader:
        assert reader.rows("PRAGMA integrity_check") == [("ok",)]
        assert list(problems(reader)) == []
