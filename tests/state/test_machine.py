"""Any order of events leaves a state sound, and nothing is captioned twice or forgotten.

A hypothesis state machine drives real ingests, claims, results, crashes and re-openings of one state against a
model of what each source and caption should have become.
"""

import dataclasses
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.states import assert_sound, captioned, failed, fetched, put_records, settings_for, use_recipe

from etl.clock import now_ms
from etl.domain.items import CaptionItem, SourceItem
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.prompts import PromptTemplate
from etl.ingest.stage import reselect
from etl.state.checks import deep_problems
from etl.state.images import EvictionReason
from etl.state.read.reader import Reader
from etl.state.store import Store

PICTURES = [f"http://{host}.example/{n}.jpg" for host in "ab" for n in range(3)]
TEMPLATES = ["Describe {{ title }}.", "What is it?"]

records = st.lists(
    st.fixed_dictionaries({"id": st.sampled_from("123456"), "url": st.sampled_from([*PICTURES, ""])}), min_size=1
)


class StateMachine(RuleBasedStateMachine):
    """One state directory and all that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self._directory = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._settings = settings_for(Path(self._directory.name) / "state")
        self._recipe_name = "one"
        self._texts: dict[int, str] = {}
        self._replaced: dict[int, list[str]] = {}
        self._committed = 0
        self._open()

    def _open(self) -> None:
        """Open the state and begin a run with nothing in its hands."""
        self._store = Store.open(self._settings)
        self._run = self._store.begin_run([Stage.FETCH, Stage.CAPTION])
        self._recipe = use_recipe(self._store, self._recipe_name)
        self._sources = self._store.sources(self._run)
        self._captions = self._store.captions(self._run, self._recipe)
        self._held_sources: list[SourceItem] = []
        self._held_captions: list[CaptionItem] = []

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._store._connection.rows(sql)

    def teardown(self) -> None:
        self._store.close()
        self._directory.cleanup()

    @initialize(manifest=records)
    def first_ingest(self, manifest: list[dict[str, str]]) -> None:
        self.ingest(manifest, 0)

    @rule(manifest=records, template=st.sampled_from([0, 0, 1]))
    def ingest(self, manifest: list[dict[str, str]], template: int) -> None:
        """Ingest an edited manifest, now and then with another prompt; what it says is what the state then says."""
        self.release()  # an ingest never runs beside a fetch
        put_records(self._store, manifest, IngestOptions(template=PromptTemplate(TEMPLATES[template])))
        first: dict[str, str] = {}
        for record in manifest:
            key, url = record["id"], record["url"]
            if key in first and url not in ("", first[key]):
                key = next(other for n in count(2) if (other := f"{key}#{n}") not in first)
            first.setdefault(key, url)
        found = self._rows(
            "SELECT r.key, s.url FROM records r JOIN sources s ON s.id = r.source WHERE r.state = 'active'"
        )
        assert dict(found) == {key: url for key, url in first.items() if url}
        assert len(self._rows("SELECT 1 FROM records WHERE state <> 'removed'")) == len(manifest)

    @rule(offset=st.integers(0, 3), limit=st.none() | st.integers(0, 3))
    def select(self, offset: int, limit: int | None) -> None:
        """Caption only a window of the manifest."""
        self.release()
        reselect(self._store, Selection(offset=offset, limit=limit))

    @rule(host=st.sampled_from(["a.example", "b.example"]), limit=st.integers(1, 3))
    def claim_sources(self, host: str, limit: int) -> None:
        items = self._sources.claim(host, limit)
        assert not {item.id for item in items} & {item.id for item in self._held_sources}
        self._held_sources += items

    @precondition(lambda self: self._held_sources)
    @rule(content=st.sampled_from(["same", None]), queue=st.booleans())
    def commit_source(self, content: str | None, queue: bool) -> None:
        item = self._held_sources.pop()
        assert self._sources.commit([fetched(item, content)], self._recipe if queue else None) == 1
        assert self._sources.commit([fetched(item, "late")]) == 0

    @precondition(lambda self: self._held_sources)
    @rule(retryable=st.booleans(), crashed=st.booleans())
    def fail_source(self, retryable: bool, crashed: bool) -> None:
        item = self._held_sources.pop()
        (dead,) = self._sources.fail([failed(item.id, retryable=retryable, crashed=crashed)])
        if not crashed:
            assert dead == (not retryable or item.attempts + 1 >= self._settings.max_attempts)

    @rule()
    def enqueue(self) -> None:
        self._captions.enqueue_possible()

    @rule(limit=st.integers(1, 3), alone=st.booleans())
    def claim_captions(self, limit: int, alone: bool) -> None:
        suspect = self._captions.claim_suspect() if alone else None
        items = [suspect] if suspect else self._captions.claim(limit)
        assert not {item.id for item in items} & {item.id for item in self._held_captions}
        assert not {item.id for item in items} & self._texts.keys(), "captioned twice"
        self._held_captions += items

    @precondition(lambda self: self._held_captions)
    @rule(flagged=st.booleans())
    def commit_caption(self, flagged: bool) -> None:
        item = self._held_captions.pop()
        assert (item.repetition_penalty or 1.0) == min(1.0 + 0.4 * len(self._replaced.get(item.id, [])), 2.0)
        self._committed += 1
        text = f"{item.prompt} {self._committed}"
        result = dataclasses.replace(captioned(item, text), flags=("repetition",) if flagged else ())
        assert self._captions.commit([result], now_ms()) == 1
        assert self._captions.commit([captioned(item, "late")], now_ms()) == 0
        self._texts[item.id] = text

    @rule()
    def make_again(self) -> None:
        """Put flagged captions back; nothing else moves, and each has its text kept."""
        chosen = FailureFilter(flag=QualityFlag.REPETITION, repetition_penalty=1.4)
        counted = self._store.recaption(chosen, dry_run=True)
        assert self._store.recaption(chosen) == counted
        done = {caption for (caption,) in self._rows("SELECT id FROM captions WHERE status = 'done'")}
        again = self._texts.keys() - done
        assert len(again) == counted.caption
        for caption in again:
            self._replaced.setdefault(caption, []).append(self._texts.pop(caption))

    @precondition(lambda self: self._held_captions)
    @rule(retryable=st.booleans())
    def fail_caption(self, retryable: bool) -> None:
        self._captions.fail([failed(self._held_captions.pop().id, "generation", retryable=retryable)])

    @rule()
    def release(self) -> None:
        self._sources.release([item.id for item in self._held_sources])
        self._captions.release_all()
        self._held_sources, self._held_captions = [], []

    @rule()
    def crash(self) -> None:
        """Let the process die with all that it holds, and open the state again; its late results count for nothing."""
        held = self._held_sources, self._held_captions
        run, recipe = self._run, self._recipe
        self._store.close()
        with Store.open(self._settings), Reader(self._settings.state) as reader:
            assert list(deep_problems(reader)) == []
        self._open()
        assert self._store.sources(run).commit([fetched(item) for item in held[0]], recipe) == 0
        assert self._store.captions(run, recipe).commit([captioned(item, "late") for item in held[1]], 0) == 0
        assert not any(self._store.captions(run, recipe).fail([failed(item.id) for item in held[1]]))

    @rule(stage=st.sampled_from([None, Stage.FETCH, Stage.CAPTION]))
    def retry(self, stage: Stage | None) -> None:
        counted = self._store.retry_failed(FailureFilter(stage=stage), dry_run=True)
        assert self._store.retry_failed(FailureFilter(stage=stage)) == counted

    @rule()
    def lose_pictures(self) -> None:
        present = self._rows("SELECT id FROM images WHERE state = 'present' ORDER BY id LIMIT 1")
        self._store.images().requeue_missing([image for (image,) in present])

    @rule(grounds=st.sampled_from([EvictionReason.UNNEEDED, EvictionReason.CAPTIONED]))
    def evict(self, grounds: EvictionReason) -> None:
        """Make room beside whatever is held; what may go goes, and what else is asked for does not."""
        images = self._store.images()
        candidates = images.candidates(grounds, 0, 100)
        images.evict(grounds, [one.image for one in candidates])
        left = {one.image for one in images.candidates(grounds, 0, 100)}
        assert left == {one.image for one in candidates if not one.may_go}

    @rule(name=st.sampled_from(["one", "two"]))
    def change_recipe(self, name: str) -> None:
        self.release()
        self._recipe_name, self._recipe = name, use_recipe(self._store, name)
        self._captions = self._store.captions(self._run, self._recipe)

    @invariant()
    def state_is_sound(self) -> None:
        """Integrity, foreign keys, counters against the tables, outcomes against the view."""
        assert_sound(self._settings.state)

    @invariant()
    def leases_are_those_that_are_held(self) -> None:
        """Exactly what this run holds is running; whatever else, nothing is leased."""
        for table, held in (("sources", self._held_sources), ("captions", self._held_captions)):
            leased = self._rows(f"SELECT id, lease_run FROM {table} WHERE status = 'running'")
            assert sorted(leased) == sorted((item.id, self._run) for item in held)
            assert not self._rows(f"SELECT 1 FROM {table} WHERE status <> 'running' AND lease_run IS NOT NULL")

    @invariant()
    def no_caption_waits_for_an_evicted_picture(self) -> None:
        """It would be claimed and fail; it is cancelled until the picture is back."""
        assert not self._rows(
            "SELECT 1 FROM captions c JOIN images i ON i.id = c.image WHERE i.state = 'evicted' "
            "AND c.status IN ('ready', 'retry', 'running')"
        )

    @invariant()
    def captions_stay_what_they_were(self) -> None:
        assert dict(self._rows("SELECT id, text FROM captions WHERE status = 'done'")) == self._texts

    @invariant()
    def replaced_captions_are_kept(self) -> None:
        kept: dict[int, list[str]] = {}
        for caption, text in self._rows("SELECT caption, text FROM earlier_captions ORDER BY id"):
            kept.setdefault(caption, []).append(text)
        assert kept == self._replaced

    @invariant()
    def no_record_loses_its_caption(self) -> None:
        """Whatever becomes of an attempt to make it again, what has a caption under the current recipe is captioned."""
        lost = self._rows(
            "SELECT r.key FROM records r JOIN sources s ON s.id = r.source JOIN captions c ON c.image = s.image "
            "AND c.prompt = r.prompt AND c.recipe = (SELECT id FROM recipes WHERE current = 1) "
            "WHERE r.state = 'active' AND r.outcome <> 'captioned' "
            "AND (c.text IS NOT NULL OR c.id IN (SELECT caption FROM earlier_captions))"
        )
        assert lost == []

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Every record to be captioned has its source in a state from which something will still come, or has come."""
        stuck = self._rows(
            "SELECT r.key, s.status, i.state FROM records r JOIN sources s ON s.id = r.source "
            "LEFT JOIN images i ON i.id = s.image LEFT JOIN captions c ON c.image = i.id AND c.prompt = r.prompt "
            "AND c.recipe = (SELECT id FROM recipes WHERE current = 1) "
            "WHERE r.state = 'active' AND (s.status = 'cancelled' OR s.status = 'done' AND i.state <> 'present' "
            "AND NOT (i.state = 'evicted' AND coalesce(c.status, '') IN ('done', 'dead')))"
        )
        assert stuck == []
        unneeded = self._rows(
            "SELECT s.url FROM sources s WHERE s.status IN ('ready', 'retry') AND s.id NOT IN "
            "(SELECT source FROM records WHERE state = 'active')"
        )
        assert unneeded == []


StateMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestAnyOrderOfEvents = StateMachine.TestCase
