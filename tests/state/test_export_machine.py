"""Any order of events leaves a state whose export is, line by line, what a plain model of dicts predicts.

A hypothesis state machine ingests edited manifests, also halfway, claims, commits, fails, crashes, retries and sets the
clock; after every step the real export is compared with the one that `support.plain_state` predicts.
"""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.drawn_lines import HOSTS, TEMPLATES, edited, line_specs, lines_of
from support.plain_state import BACKOFF_S, CAP_S, MAX_ATTEMPTS, SUSPECT, Caption, Item, Line, PlainState
from support.states import assert_sound, captioned, failed, fetched, settings_for, use_recipe

from etl import clock
from etl.domain.items import CaptionItem, SourceItem
from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.export.stage import ExportOptions, export
from etl.ingest import stage as ingest_module
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.prompts import PromptTemplate
from etl.ingest.stage import ingest, reselect
from etl.state.read.reader import Reader
from etl.state.store import Store

BATCH = 2

HOUR, DAY = 3600, 86400
"""Longer than any wait, which is at most `CAP_S`; and what a wrong clock may be off by."""


class ExportMachine(RuleBasedStateMachine):
    """One state directory, its plain model, and all that may happen to both."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self._directory = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._root = Path(self._directory.name)
        self._settings = settings_for(
            self._root / "state", backoff=BACKOFF_S, backoff_cap=CAP_S, max_attempts=MAX_ATTEMPTS
        )
        self._now = 1_800_000_000
        self._patches = [(clock, "time", vars(clock)["time"]), (ingest_module, "BATCH", ingest_module.BATCH)]
        vars(clock)["time"] = SimpleNamespace(time_ns=lambda: self._now * 10**9)
        ingest_module.BATCH = BATCH
        self._model = PlainState()
        self._texts = 0
        self._open()

    def _open(self) -> None:
        self._store = Store.open(self._settings)
        self._model.recover(self._now)
        self._run = self._store.begin_run([Stage.FETCH, Stage.CAPTION])
        self._sources = self._store.sources(self._run)
        self._held_sources: list[SourceItem] = []
        self._held_captions: dict[int, Caption] = {}
        self._use_recipe(self._model.recipe)

    def _use_recipe(self, name: str) -> None:
        self._model.recipe, self._recipe = name, use_recipe(self._store, name)
        self._captions = self._store.captions(self._run, self._recipe)

    def teardown(self) -> None:
        try:
            assert_sound(self._settings.state)
        finally:
            self._store.close()
            self._directory.cleanup()
            for module, name, before in self._patches:
                setattr(module, name, before)

    # Ingest.

    @initialize(specs=line_specs)
    def first_ingest(self, specs: list[tuple[str, ...]]) -> None:
        self._ingest("one", lines_of("one", specs, 0, True), 0, None)

    @rule(
        name=st.sampled_from(["one", "one", "two"]), specs=line_specs, template=st.sampled_from([0, 0, 1]),
        whole=st.booleans(), line_end=st.booleans(),
    )  # fmt: skip
    def edit(self, name: str, specs: list[tuple[str, ...]], template: int, whole: bool, line_end: bool) -> None:
        """Ingest other lines, now and then with another prompt, or only the first batch of them."""
        self._ingest(name, lines_of(name, specs, template, line_end), template, None if whole else BATCH)

    @rule(name=st.sampled_from(["one", "two"]), how=st.sampled_from(["same", "reverse", "shorter", "twice"]))
    def edit_a_little(self, name: str, how: str) -> None:
        """Ingest the lines that are there again, as they are, in another order, fewer, or each twice."""
        if name not in self._model.manifests:
            return
        template = self._model.manifests[name].template
        self._ingest(name, edited(self._written[name], how), template, None)

    _written: dict[str, list[Line]]

    def _ingest(self, name: str, lines: list[Line], template: int, stop_after: int | None) -> None:
        self.release()  # an ingest never runs beside a fetch
        self._written = getattr(self, "_written", {}) | {name: lines}
        path = self._root / f"{name}.jsonl"
        path.write_bytes(b"".join(line.data for line in lines))
        options = IngestOptions(template=PromptTemplate(TEMPLATES[template]))
        ingest(self._store, Manifest(str(path)), options, should_stop=lambda: stop_after is not None)
        self._model.ingest(name, lines, template, stop_after)

    @rule(offset=st.integers(0, 2), limit=st.none() | st.integers(0, 3))
    def select(self, offset: int, limit: int | None) -> None:
        """Caption only a window of each manifest."""
        self.release()
        reselect(self._store, Selection(offset=offset, limit=limit))
        self._model.select(offset, limit)

    # Fetch.

    @rule(host=st.sampled_from(HOSTS), limit=st.integers(1, 3))
    def claim_sources(self, host: str, limit: int) -> None:
        """Exactly what is due is claimed, whatever the clock says by now."""
        due = {u for u, item in self._model.sources.items() if f"//{host}/" in u and item.is_due(self._now)}
        items = self._sources.claim(host, limit)
        assert {item.url for item in items} <= due
        assert len(items) == min(limit, len(due))
        for item in items:
            self._model.sources[item.url].status = "running"
        self._held_sources += items

    @precondition(lambda self: self._held_sources)
    @rule(content=st.sampled_from(["same", None, None]), queue=st.booleans())
    def commit_source(self, content: str | None, queue: bool) -> None:
        item = self._held_sources.pop()
        assert self._sources.commit([fetched(item, content)], self._recipe if queue else None) == 1
        source = self._model.sources[item.url]
        source.status, source.image, source.error = "done", content or item.url, None
        source.attempts += 1
        if queue:
            self._model.queue(self._model.wanted_captions([item.url]))

    @precondition(lambda self: self._held_sources)
    @rule(error=st.sampled_from(["timeout", "http_404"]))
    def fail_source(self, error: str) -> None:
        item = self._held_sources.pop()
        dead = self._model.sources[item.url].fail(self._now, error, retryable=error == "timeout")
        assert self._sources.fail([failed(item.id, error, retryable=error == "timeout")]) == [dead]

    # Caption.

    @rule()
    def enqueue(self) -> None:
        self._captions.enqueue_possible()
        self._model.enqueue()

    @rule(limit=st.integers(1, 3), alone=st.booleans())
    def claim_captions(self, limit: int, alone: bool) -> None:
        due = {
            caption: item
            for caption, item in self._model.captions.items()
            if caption[2] == self._model.recipe and item.is_due(self._now) and (item.crashes >= SUSPECT) == alone
        }
        suspect = self._captions.claim_suspect() if alone else None
        items = ([suspect] if suspect else []) if alone else self._captions.claim(limit)
        assert len(items) == min(1 if alone else limit, len(due))
        for item in items:
            caption = self._caption_of(item)
            assert caption in due
            due[caption].status = "running"
            self._held_captions[item.id] = caption

    def _caption_of(self, item: CaptionItem) -> Caption:
        ((image,),) = self._store._connection.rows(
            "SELECT s.url FROM captions c JOIN sources s ON s.image = c.image WHERE c.id = ? LIMIT 1", (item.id,)
        )
        content = self._model.sources[image].image
        assert content is not None
        return content, item.prompt, self._model.recipe

    def _pop_caption(self) -> tuple[int, Item]:
        number, caption = self._held_captions.popitem()
        return number, self._model.captions[caption]

    @precondition(lambda self: self._held_captions)
    @rule()
    def commit_caption(self) -> None:
        number, item = self._pop_caption()
        self._texts += 1
        text = f"Words \u00e9 {self._texts}."
        results = [captioned(CaptionItem(number, "", "", 0), text)]
        assert self._captions.commit(results, self._now * 1000) == 1
        item.status, item.text, item.done_at, item.error = "done", text, self._now, None
        item.attempts += 1

    @precondition(lambda self: self._held_captions)
    @rule(retryable=st.booleans())
    def fail_caption(self, retryable: bool) -> None:
        number, item = self._pop_caption()
        dead = item.fail(self._now, "generation", retryable=retryable)
        assert self._captions.fail([failed(number, "generation", retryable=retryable)]) == [dead]

    # Whole stages, without which few examples would come as far as their ends.

    @rule(ends=st.lists(st.sampled_from(["done", "done", "http_404", "timeout"]), min_size=1, max_size=3))
    def fetch_all(self, ends: list[str]) -> None:
        """Claim whatever is due, and end it in these ways, in turn."""
        for host in HOSTS:
            self.claim_sources(host, 9)
        for n in range(len(self._held_sources)):
            end = ends[n % len(ends)]
            if end == "done":
                self.commit_source(None, True)
            else:
                self.fail_source(end)

    @rule(ends=st.lists(st.sampled_from(["done", "dead", "retry"]), min_size=1, max_size=3))
    def caption_all(self, ends: list[str]) -> None:
        self.enqueue()
        self.claim_captions(9, False)
        for n in range(len(self._held_captions)):
            end = ends[n % len(ends)]
            if end == "done":
                self.commit_caption()
            else:
                self.fail_caption(end == "retry")

    # The run, the clock, and what people do.

    @rule()
    def release(self) -> None:
        self._sources.release_all()
        self._captions.release_all()
        for item in (*self._model.sources.values(), *self._model.captions.values()):
            if item.status == "running":
                item.put_back()
        self._held_sources, self._held_captions = [], {}

    @rule(busy=st.booleans(), times=st.sampled_from([1, 1, 1, 5]))
    def crash(self, busy: bool, times: int) -> None:
        """Let the process die, busy or not, and the next one begin; late results of the first count for nothing."""
        for _ in range(times):
            if busy:
                self.claim_captions(9, False)
                self.claim_captions(1, True)
            self._crash()

    def _crash(self) -> None:
        sources, captions = self._held_sources, self._held_captions
        run, recipe = self._run, self._recipe
        self._store.close()
        self._open()
        assert self._store.sources(run).commit([fetched(item) for item in sources], recipe) == 0
        late = [captioned(CaptionItem(number, "", "", 0), "late") for number in captions]
        assert self._store.captions(run, recipe).commit(late, 0) == 0

    @rule(seconds=st.sampled_from([HOUR, HOUR, DAY, -DAY]))
    def set_the_clock(self, seconds: int) -> None:
        self._now += seconds

    @rule(name=st.sampled_from(["one", "two"]))
    def change_recipe(self, name: str) -> None:
        self.release()
        self._use_recipe(name)

    @rule(
        stage=st.sampled_from([None, Stage.FETCH, Stage.CAPTION]), error=st.sampled_from([None, None, "http_404"]),
        host=st.sampled_from([None, None, "a.example"]), key=st.sampled_from([None, None, "one-1", "two-2"]),
    )  # fmt: skip
    def retry(self, stage: Stage | None, error: str | None, host: str | None, key: str | None) -> None:
        chosen = FailureFilter(stage=stage, error_class=error, host=host, key=key)
        assert self._store.retry_failed(chosen) == self._model.retry(stage, error, host, key)

    @rule(recipe=st.sampled_from(["one", "two"]))
    def export_only_captioned(self, recipe: str) -> None:
        """Also by the recipe of another moment."""
        known = {model: sha256 for sha256, model in self._store._connection.rows("SELECT sha256, model FROM recipes")}
        if recipe in known:
            written = self._export(ExportOptions(recipe=known[recipe], only_captioned=True))
            assert written == self._model.export(recipe, only_captioned=True)

    def _export(self, options: ExportOptions) -> bytes:
        target = self._root / "out.jsonl"
        with Reader(self._settings.state) as reader:
            export(reader, str(target), options)
        return target.read_bytes()

    @invariant()
    def the_export_is_what_the_model_says(self) -> None:
        """Every line, its place and its bytes."""
        assert self._export(ExportOptions()) == self._model.export(self._model.recipe)

    @invariant()
    def queues_are_what_the_model_says(self) -> None:
        """The status and attempts of every source, and the status of every caption of the recipe."""
        rows = self._store._connection.rows
        sources = {url: (item.status, item.attempts) for url, item in self._model.sources.items()}
        assert {url: (status, n) for url, status, n in rows("SELECT url, status, attempts FROM sources")} == sources
        captions = sorted(item.status for item in self._model.captions.values())
        assert sorted(status for (status,) in rows("SELECT status FROM captions")) == captions


class SoakMachine(ExportMachine):
    """The same with more of everything."""


_QUIET = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
ExportMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=30, **_QUIET)  # type: ignore[arg-type]
SoakMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MACHINE_EXAMPLES", "500")),
    stateful_step_count=50,
    **_QUIET,  # type: ignore[arg-type]
)
TestExport = ExportMachine.TestCase
TestExportLong = pytest.mark.soak(SoakMachine.TestCase)
