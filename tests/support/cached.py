"""A state with real files in its image cache, made without network, decoder or model."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from support.states import captioned, failed, put_picture, put_records, settings_for, use_recipe
from support.workbench import encoded

from etl.clock import now_ms
from etl.domain.items import FetchedImage, SourceItem
from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.images.cache import ImageCache
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.state.store import Store

WORKING, ORIGINAL = 1000, 500
"""Bytes of each working copy and of each original."""

_PICTURE = encoded(Image.new("RGB", (4, 3)))
"""What every working copy shows; what follows its end tells them apart."""


class CachedState:
    """One open state, a context manager; every stage is a run of its own.  Record ``n`` is at ``http://a.example/n``.

    Attributes:
        store: its writer.
        cache: its image cache.
        recipe: row of the current recipe.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.store = Store.open(settings_for(directory / "state", **settings))
        self.cache = ImageCache.of_state(self.store.directory)
        self.recipe = use_recipe(self.store)

    def __enter__(self) -> "CachedState":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def ingest(self, *keys: str, prompt: str = "Describe it.") -> None:
        """Make these records the manifest."""
        template = PromptTemplate(prompt)
        records = [{"id": key, "url": f"http://a.example/{key}"} for key in keys]
        put_records(self.store, records, IngestOptions(template=template))

    def fetch(
        self, contents: Mapping[str, str] | None = None, *, copies: Mapping[str, str] | None = None,
        originals: bool = False, recipe: int | None = None,
    ) -> list[str]:  # fmt: skip
        """Fetch what is due; return the keys.  ``contents`` and ``copies`` tell of which keys' originals and working
        copies the bytes are to be; by default each has its own.
        """
        with self.store.run((Stage.FETCH,)) as run:
            queue = self.store.sources(run)
            items = [item for host in queue.ready_hosts() for item in queue.claim(host, 1000)]
            images = [self.put(item, contents or {}, copies or {}, originals=originals) for item in items]
            assert queue.commit(images, recipe) == len(items)
        return [key_of(item) for item in items]

    def put(
        self, item: SourceItem, contents: Mapping[str, str], copies: Mapping[str, str], *, originals: bool = False
    ) -> FetchedImage:
        """Put the files of one source into the cache, as a decoder does."""
        key = contents.get(key_of(item), key_of(item))
        working = _PICTURE + f"working {copies.get(key, key)} ".encode().ljust(WORKING - len(_PICTURE), b".")
        return put_picture(self.cache, item, f"original {key} ".ljust(ORIGINAL, "."), working, keep=originals)

    def caption(self, *keys: str, dead: Collection[str] = ()) -> list[str]:
        """Caption what can be, or these records alone; let ``dead`` ones fail for good.  Return the keys."""
        with self.store.run((Stage.CAPTION,)) as run:
            queue = self.store.captions(run, self.recipe)
            queue.enqueue_possible()
            items = {self.key_of_caption(item.id): item for item in queue.claim(1000)}
            chosen = [key for key in items if not keys or key in keys]
            queue.commit([captioned(items[key]) for key in chosen if key not in dead], now_ms())
            queue.fail([failed(items[key].id, "prompt_too_long", retryable=False) for key in chosen if key in dead])
        return sorted(chosen)

    def retry(self) -> None:
        """Give everything that failed another chance."""
        self.store.retry_failed(FailureFilter())

    def use_recipe(self, name: str) -> None:
        """Make another recipe the current one."""
        self.recipe = use_recipe(self.store, name)

    def key_of_caption(self, caption: int) -> str:
        """Return the key of the first record that needs a caption."""
        sql = (
            "SELECT min(r.key) FROM captions c JOIN sources s ON s.image = c.image JOIN records r ON r.source = s.id "
            "AND r.prompt = c.prompt WHERE c.id = ?"
        )
        return str(self.rows(sql, caption)[0][0])

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        return self.store._connection.rows(sql, arguments)

    def states(self) -> dict[str, str]:
        """Return the state of each record's image, by key."""
        sql = "SELECT s.url, i.state FROM sources s JOIN images i ON i.id = s.image ORDER BY s.url"
        return {url.rpartition("/")[2]: state for url, state in self.rows(sql)}

    def ready(self) -> set[str]:
        """Return the keys whose sources are ready to be fetched."""
        return {url.rpartition("/")[2] for (url,) in self.rows("SELECT url FROM sources WHERE status = 'ready'")}

    def working_path(self, key: str) -> Path:
        """Return where the working copy of a record lies, or would lie."""
        sql = "SELECT i.working_sha256 FROM sources s JOIN images i ON i.id = s.image WHERE s.url = ?"
        return self.cache.working_path(self.rows(sql, f"http://a.example/{key}")[0][0])

    def original_path(self, key: str) -> Path:
        """Return where the original of a record lies, or would lie."""
        sql = "SELECT i.sha256 FROM sources s JOIN images i ON i.id = s.image WHERE s.url = ?"
        return self.cache.original_path(self.rows(sql, f"http://a.example/{key}")[0][0])

    def files(self) -> set[Path]:
        """Return every file of the cache."""
        return {path for path in self.cache.root.rglob("*") if path.is_file()}


def key_of(item: SourceItem) -> str:
    """Return the key of the record that a source belongs to."""
    return item.url.rpartition("/")[2]
