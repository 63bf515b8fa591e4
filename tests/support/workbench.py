"""A state directory to work on inside a test: real ingest, fetch and caption, and questions to its database."""

import dataclasses
import io
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from support.states import StateDirectory
from support.watching import wait_for

from etl.caption.captioner import Captioner, never
from etl.caption.recipe import Recipe
from etl.caption.stage import caption
from etl.demo.scenes import Scene, random_scene
from etl.domain.items import CaptionItem, CaptionResult, ItemFailure
from etl.domain.statuses import FinishReason, Stage
from etl.domain.views import EngineSample, StageSummary
from etl.errors import CaptionError
from etl.fetch.stage import fetch
from etl.images.cache import ImageCache
from etl.images.working_copies import open_working_copy
from etl.ingest.options import IngestOptions
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.reader import Reader
from etl.state.read.story import record_story
from etl.state.store import Store


def scenes(count: int, seed: int = 1) -> list[tuple[Scene, bytes]]:
    """Return different drawn scenes and their JPEG files."""
    rng = random.Random(seed)
    drawn = [random_scene(rng) for _ in range(count)]
    return [(scene, encoded(scene.draw(224, 224))) for scene in drawn]


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the picture as a file; ``options`` are those of Pillow."""
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


def write_manifest(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as JSON Lines; return the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


class Workbench(StateDirectory):
    """One state directory; each stage is a run of its own.

    Attributes:
        settings: loopback allowed, waits of hundredths of a second, one decoder.
    """

    def __init__(self, directory: Path, **changes: Any) -> None:
        self._directory = directory
        values: dict[str, Any] = {
            "state": directory / "state", "allow_host": ("127.0.0.1",), "decoders": 1, "min_free": 0,
            "max_attempts": 3, "backoff": 0.02, "backoff_cap": 0.1, "connect_timeout": 1.0,
            "read_timeout": 5.0, "longest_edge": 256, "batch_size": 4, "model": "demo", "device": "cpu",
            "max_new_tokens": 64,
        }  # fmt: skip
        super().__init__(Settings(**(values | changes)))

    def ingest(self, *records: dict[str, Any] | str, options: IngestOptions | None = None) -> None:
        """Make these records the manifest; a text stands for a record with that URL."""
        whole = [r if isinstance(r, dict) else {"id": f"r{n}", "url": r} for n, r in enumerate(records)]
        self.ingest_path(str(write_manifest(self._directory / "manifest.jsonl", whole)), options)

    def fetch(self, control: RunControl | None = None, *, refresh: bool = False, **changes: Any) -> StageSummary:
        """Fetch until nothing is left, or until stopped; ``changes`` are settings."""
        settings = dataclasses.replace(self.settings, **changes)
        with Store.open(settings) as store, store.run((Stage.FETCH,)) as run:
            return fetch(store, run, settings, control or RunControl(), refresh=refresh)

    def story(self, key: str) -> dict[str, Any]:
        """Return all that is known of one record."""
        with Reader(self.state) as reader:
            found = record_story(reader, key)
        assert found is not None
        return found

    def caption(
        self, captioner: Captioner, control: RunControl | None = None, *, more_coming: Callable[[], bool] = never
    ) -> StageSummary:
        """Caption until nothing is left, or until stopped."""
        with Store.open(self.settings) as store, store.run((Stage.CAPTION,)) as run:
            return caption(store, run, self.settings, captioner, control or RunControl(), more_coming=more_coming)

    @contextmanager
    def beside(self, work: Callable[[RunControl], StageSummary]) -> Iterator[tuple[RunControl, "Future[StageSummary]"]]:
        """Run a stage in a thread; yield its run control and its summary to come.  Leaving stops it."""
        control = RunControl()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work, control)
            try:
                yield control, future
            finally:
                control.stop()

    def wait_until(self, sql: str) -> None:
        """Wait until a question to the state's database is answered with yes."""
        wait_for(lambda: self.rows(sql)[0][0])

    def counts(self, table: str) -> dict[str, int]:
        """Return the number of items by status."""
        return dict(self.rows(f"SELECT status, count(*) FROM {table} GROUP BY status"))

    def files(self, *parts: str) -> list[Path]:
        """Return the files below a directory of the image cache."""
        return [path for path in self.state.joinpath("images", *parts).rglob("*") if path.is_file()]


class PlainCaptioner:
    """A second, small implementation of `Captioner`, for tests in which the words do not matter.

    The caption is the prompt with the beginning of the picture's hash.

    Attributes:
        calls: the items of each call to `caption`, in the order in which they were pulled.
        before: called with each item before it is captioned.
        closed: whether `close` was called.
    """

    def __init__(self, model: str = "plain", before: Callable[[CaptionItem], object] = lambda _: None) -> None:
        self.recipe = Recipe(
            model=model,
            revision="1",
            engine="test",
            dtype="float32",
            preprocessing={"longest_edge": 256},
            generation={"max_new_tokens": 8},
        )
        self.calls: list[list[CaptionItem]] = []
        self.before = before
        self.closed = False
        self.captions = 0

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Caption one item after the other."""
        pulled: list[CaptionItem] = []
        for item in items:
            if item is None:
                return
            if not pulled:
                self.calls.append(pulled)
            pulled.append(item)
            self.before(item)
            if should_stop():
                return
            yield CaptionResult(item.id, f"{item.prompt} {item.working_sha256[:8]}", 3, FinishReason.STOP)
            self.captions += 1

    def samples(self) -> tuple[EngineSample]:
        """Return a sample of one slot."""
        return (EngineSample(worker=0, slots=1, in_use=0, waiting=0, captions=self.captions, tokens=3 * self.captions),)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True


class OpeningCaptioner(PlainCaptioner):
    """One that opens each picture, as the real ones do, and fails where it cannot."""

    def __init__(self, state: Path, before: Callable[[CaptionItem], object] = lambda _: None) -> None:
        super().__init__(before=before)
        self._cache = ImageCache.of_state(state)

    def caption(
        self, items: Iterable[CaptionItem | None], *, should_stop: Callable[[], bool] = never
    ) -> Iterator[CaptionResult | ItemFailure]:
        """Caption one item after the other."""
        for item in items:
            if item is None or should_stop():
                return
            self.before(item)
            try:
                open_working_copy(self._cache.working_path(item.working_sha256))
            except CaptionError as error:
                yield ItemFailure(
                    id=item.id, slug=error.slug, message=str(error), retryable=error.retryable, started_at=0
                )
                continue
            yield CaptionResult(item.id, f"{item.prompt} {item.working_sha256[:8]}", 3, FinishReason.STOP)
            self.captions += 1


class Turnstile:
    """Holds work until it is let through; tells how much came."""

    def __init__(self, free: int = 0) -> None:
        self._tickets = threading.Semaphore(free)
        self.arrived = 0

    def __call__(self, *_: object) -> None:
        self.arrived += 1
        assert self._tickets.acquire(timeout=20), "nobody let the work through"

    def let(self, count: int = 1_000_000) -> None:
        """Let so many through."""
        self._tickets.release(count)
