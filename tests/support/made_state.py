"""State directories in any condition, made through the product's own writer but without pictures or a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.states import StateDirectory, failed, fetched

from etl.clock import now_ms
from etl.domain.items import CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason, Stage
from etl.domain.views import ExportSummary, IngestSummary
from etl.export.stage import ExportOptions
from etl.images.cache import ImageCache
from etl.ingest.options import IngestOptions, Selection
from etl.run.pipeline import export_manifest
from etl.settings import Settings
from etl.state.store import Store

RECIPE = "ab" * 32
"""Hash of the recipe that captions are made with unless another is named."""


class MadeState(StateDirectory):
    """One state directory.  Nothing holds its lock between calls.

    Attributes:
        settings: defaults, but for the state directory.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        super().__init__(Settings(state=directory / "state", **settings))
        self.directory = directory

    def ingest(
        self, content: bytes, name: str = "manifest.jsonl", *, selection: Selection | None = None, **options: Any
    ) -> IngestSummary:
        """Write a manifest beside the state and ingest it."""
        path = self.directory / name
        path.write_bytes(content)
        wanted = IngestOptions(selection=selection or Selection(synthetic=False), **options)
        return self.ingest_path(str(path), wanted)

    def finish(
        self,
        captioned: Mapping[str, str] | None = None,
        *,
        dead_sources: Mapping[str, str] | None = None,
        dead_captions: Mapping[str, str] | None = None,
        message: str = "it failed",
        recipe: str = RECIPE,
        model: str = "some/llava",
        revision: str = "0123abcd",
        flags: tuple[str, ...] = (),
        spec: str = "{}",
    ) -> None:
        """End records by key: ``captioned`` with these texts, dead with these error classes; leave the others."""
        captioned, dead_sources, dead_captions = captioned or {}, dead_sources or {}, dead_captions or {}

        def failures(items: Mapping[str, int], dead: Mapping[str, str]) -> list[ItemFailure]:
            return [failed(items[key], slug, retryable=False, message=message) for key, slug in dead.items()]

        with Store.open(self.settings) as store, store.run((Stage.FETCH, Stage.CAPTION)) as run:
            number = store.use_recipe(sha256=recipe, model=model, revision=revision, spec=spec)
            sources = store.sources(run)
            items = {item.id: item for host in sources.ready_hosts() for item in sources.claim(host, 10_000)}
            of_key = dict(self.rows("SELECT key, source FROM records"))
            wanted = {of_key[key] for key in (*captioned, *dead_captions)} & set(items)
            # A cache that lacks these pictures, not one that is not there.
            ImageCache.of_state(self.settings.state).prepare(originals=False)
            sources.commit([fetched(items[item]) for item in sorted(wanted)])
            sources.fail(failures(of_key, dead_sources))
            captions = store.captions(run, number)
            captions.enqueue_possible()
            captions.claim(10_000)
            of_key = dict(
                self.rows(
                    "SELECT r.key, c.id FROM records r JOIN sources s ON s.id = r.source "
                    "JOIN captions c ON c.image = s.image AND c.prompt = r.prompt WHERE c.recipe = ?",
                    number,
                )
            )
            captions.commit(
                [
                    CaptionResult(of_key[key], text, len(text.split()), FinishReason.STOP, flags)
                    for key, text in captioned.items()
                ],
                now_ms(),
            )
            captions.fail(failures(of_key, dead_captions))

    def export(self, target: str | Path = "out.jsonl", **options: Any) -> tuple[bytes, ExportSummary]:
        """Export to a file beside the state; return its bytes and the summary."""
        path = self.directory / target
        summary = export_manifest(self.settings, str(path), ExportOptions(**options))
        return path.read_bytes(), summary
