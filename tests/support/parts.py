"""States whose work gives the same wherever it is done, to compare what was split with what was not."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.states import StateDirectory, failed, put_picture, put_records, settings_for, use_recipe

from etl.clock import now_ms
from etl.domain.items import CaptionItem, CaptionResult, FetchedImage, ItemFailure, SourceItem
from etl.domain.statuses import FinishReason, Stage
from etl.export.stage import ExportOptions
from etl.images.cache import ImageCache
from etl.ingest.options import IngestOptions
from etl.maintenance.merge import MergeSummary, merge
from etl.maintenance.split import SplitSummary, split
from etl.run.pipeline import export_manifest
from etl.state.store import Store


class Work(StateDirectory):
    """One state directory; every stage is a run of its own, and what becomes of a picture is in its URL alone.

    ``gone`` in a URL is a 404, ``same`` in it gives the same bytes as ``same`` in any other; captions of pictures whose
    URL says ``long`` fail.
    """

    def __init__(self, state: Path, **settings: Any) -> None:
        super().__init__(settings_for(state, **settings))

    def ingest(self, records: Sequence[dict[str, Any]], options: IngestOptions | None = None) -> None:
        """Make these records the manifest."""
        with Store.open(self.settings) as store, store.run((Stage.INGEST,)):
            put_records(store, records, options)

    def fetch(self, limit: int = 10_000) -> None:
        """Fetch up to so many sources."""
        with Store.open(self.settings) as store, store.run((Stage.FETCH,)) as run:
            queue = store.sources(run)
            items = [item for host in queue.ready_hosts() for item in queue.claim(host, limit)]
            queue.commit([self._picture(item) for item in items if "gone" not in item.url])
            queue.fail([failed(item.id, "http_404", retryable=False) for item in items if "gone" in item.url])

    def _picture(self, item: SourceItem) -> FetchedImage:
        content = "same" if "same" in item.url else item.url
        return put_picture(
            ImageCache.of_state(self.state), item, f"original {content}", f"working {content}".encode(),
            keep=self.settings.keep_originals, edge=self.settings.longest_edge,
        )  # fmt: skip

    def caption(self, limit: int = 10_000, *, recipe: str = "one", words: str = "A view") -> None:
        """Caption up to so many pictures."""
        with Store.open(self.settings) as store, store.run((Stage.CAPTION,)) as run:
            number = use_recipe(store, recipe)
            queue = store.captions(run, number)
            queue.enqueue_possible()
            results: list[CaptionResult] = []
            failures: list[ItemFailure] = []
            for item in queue.claim(limit):
                if self._is_long(item):
                    failures.append(failed(item.id, "prompt_too_long", retryable=False))
                else:
                    text = f"{words} {item.working_sha256[:6]}, {item.prompt}"
                    results.append(CaptionResult(item.id, text, 3, FinishReason.STOP))
            queue.commit(results, now_ms())
            queue.fail(failures)

    def _is_long(self, item: CaptionItem) -> bool:
        path = ImageCache.of_state(self.state).working_path(item.working_sha256)
        return b"long" in path.read_bytes()

    def finish(self) -> None:
        """Do all that is left."""
        self.fetch()
        self.caption()

    def split(self, parts: int, directory: Path, **options: Any) -> tuple[SplitSummary, list["Work"]]:
        """Split it; return what was made, and the parts."""
        with Store.open(self.settings, create=False) as store:
            summary = split(store, parts, directory, **options)
        return summary, [Work(part.path, **self._more()) for part in summary.parts]

    def merge(self, *parts: "Work", **options: Any) -> list[MergeSummary]:
        """Merge parts into it."""
        with Store.open(self.settings) as store:
            return merge(store, [part.state for part in parts], **options)

    def _more(self) -> dict[str, Any]:
        return {"keep_originals": self.settings.keep_originals, "longest_edge": self.settings.longest_edge}

    def export(self, **options: Any) -> str:
        """Return the exported lines, their times left out."""
        target = self.state.with_name(f"{self.state.name}.jsonl")
        export_manifest(self.settings, str(target), ExportOptions(**options))
        return re.sub(r'"vlm_captioned_at":"[^"]*"', '"vlm_captioned_at":""', target.read_text(encoding="utf-8"))

    def dump(self) -> str:
        """Return all that the database holds, to tell whether anything changed."""
        with Store.open(self.settings) as store:
            return "\n".join(store._connection.db.conn.iterdump())

    def history(self) -> list[tuple[Any, ...]]:
        """Return what became of each record, by key, without times: the whole story that `etl why` tells."""
        sources = self.rows(
            "SELECT r.key, r.state, r.outcome, s.status, s.attempts, s.error_class, i.sha256, i.state, c.status, "
            "c.attempts, c.error_class, c.text FROM records r LEFT JOIN sources s ON s.id = r.source "
            "LEFT JOIN images i ON i.id = s.image LEFT JOIN recipes q ON q.current = 1 "
            "LEFT JOIN captions c ON c.image = i.id AND c.prompt = r.prompt AND c.recipe = q.id ORDER BY r.key"
        )
        attempts = self.rows(
            "SELECT a.stage, coalesce(s.url, p.text || m.sha256), a.n, a.error_class FROM attempts a "
            "LEFT JOIN sources s ON a.stage = 'fetch' AND s.id = a.item "
            "LEFT JOIN captions c ON a.stage = 'caption' AND c.id = a.item LEFT JOIN prompts p ON p.id = c.prompt "
            "LEFT JOIN images m ON m.id = c.image ORDER BY 1, 2, 3"
        )
        return [*sources, *attempts]


def records(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return one record for each of these names; its key is its place."""
    return [{"id": f"k{n}", "url": f"http://a.example/{url}", "title": f"T{n % 3}"} for n, url in enumerate(urls)]


def as_json(summary: MergeSummary) -> dict[str, Any]:
    """Return a summary as the command line gives it."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(summary), default=str))
    return value
