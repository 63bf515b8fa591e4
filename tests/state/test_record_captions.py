"""Which captions a record asks for and has: one answer, whoever asks, and SQL that says so in one place alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.states import captioned, failed, fetch_all, put_records, use_recipe

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.state.record_captions import (
    CAPTIONS_OF_RECORDS,
    CURRENT_RECIPE,
    asked_by_record,
    caption_of_record,
    records_of_caption,
    without_caption,
)
from etl.state.store import Store

ROOT = Path(__file__).parents[2]

RECORDS = [
    {"id": "a", "url": "http://h.example/1.jpg", "name": "x"},
    {"id": "same picture and prompt", "url": "http://h.example/1.jpg", "name": "x"},
    {"id": "another prompt", "url": "http://h.example/1.jpg", "name": "y"},
    {"id": "the same bytes", "url": "http://h.example/2.jpg", "name": "x"},
    {"id": "failed", "url": "http://h.example/3.jpg", "name": "x"},
    {"id": "no picture yet", "url": "http://h.example/4.jpg", "name": "x"},
    {"id": "bad"},
]


@pytest.fixture
def asked(store: Store) -> Iterator[Store]:
    """Yield a state in which captions of two recipes are shared, missing, failed and waiting."""
    put_records(store, RECORDS[:5], IngestOptions(template=PromptTemplate("{{ record.name }}?")))
    fetch_all(store, ["one", "one", "three"])
    for name in ("earlier", "current"):
        recipe = use_recipe(store, name)
        with store.run((Stage.CAPTION,)) as run:
            queue = store.captions(run, recipe)
            queue.enqueue_possible()
            *others, last = queue.claim(10)
            queue.commit([captioned(item, f"{name} {item.prompt}") for item in others], now_ms())
            queue.fail([failed(last.id, retryable=False)])
    put_records(store, RECORDS, IngestOptions(template=PromptTemplate("{{ record.name }}?")))
    yield store


def of(store: Store, sql: str) -> list[tuple[str, Any]]:
    return sorted(store._connection.rows(sql), key=str)


_RECORDS = "FROM records r LEFT JOIN sources s ON s.id = r.source"


def test_a_record_has_the_caption_that_its_outcome_speaks_of(asked: Store) -> None:
    """The caption under the current recipe is that of the view by which the triggers settle outcomes."""
    mine = of(asked, f"SELECT r.key, c.id {_RECORDS} {caption_of_record(CURRENT_RECIPE)}")
    assert mine == of(asked, "SELECT r.key, o.caption FROM records r JOIN record_outcomes o ON o.record = r.id")
    found = dict(mine)
    assert found["a"] == found["same picture and prompt"] == found["the same bytes"] != found["another prompt"]
    assert (found["no picture yet"], found["bad"], len(mine)) == (None, None, len(RECORDS))


def test_the_ways_there_and_back_are_one(asked: Store) -> None:
    """From records to captions, from captions to records and by a record's key the same pairs are found."""
    there = of(asked, f"SELECT r.key, c.id FROM {CAPTIONS_OF_RECORDS}")
    pairs = "SELECT r.key, t.id FROM captions t JOIN records r ON r.id IN"
    assert there == of(asked, f"{pairs} (SELECT r.id {records_of_caption('t')})")
    by_key = {
        (key, caption)
        for key in dict(there)
        for (caption,) in asked._connection.rows(
            f"SELECT t.id FROM captions t WHERE {asked_by_record('t', 'r.key = ?')}", (key,)
        )
    }
    assert (by_key, len(there)) == (set(there), 10)


def test_a_record_without_its_caption_is_known(asked: Store) -> None:
    """What has no caption of the current recipe in a status is what the caption itself says."""
    for statuses in (("done",), ("done", "dead")):
        lacking = {key for key, _ in of(asked, f"SELECT r.key, 0 {_RECORDS} WHERE {without_caption(*statuses)}")}
        has = of(asked, f"SELECT r.key, c.status {_RECORDS} {caption_of_record(CURRENT_RECIPE)}")
        assert lacking == {key for key, status in has if status not in statuses}
        assert ("failed" in lacking) is ("dead" not in statuses)


ALLOWED = {
    "etl/state/record_captions.py": "the one place",
    "etl/state/schema.py": "as it was first released",
    "etl/state/migrations.py": "the view by which triggers settle outcomes",
}
"""Where SQL may join by a record's prompt, and why."""

JOINED = re.compile(r"\br\.prompt\s*=|=\s*r\.prompt\b|\br\.prompt\b[^\"]*FROM records|WHERE current = 1\)")
QUERY = re.compile(r"\b(SELECT|UPDATE|DELETE|INSERT)\b[^\n]*\b(FROM|SET|INTO|WHERE)\b")


def _modules() -> Iterator[tuple[str, str]]:
    for path in [*ROOT.glob("etl/**/*.py"), *ROOT.glob("tui/**/*.py")]:
        yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def test_only_one_place_joins_records_with_captions() -> None:
    """No other SQL of the product says by hand which captions are a record's, or which recipe is the current one."""
    assert {name for name, text in _modules() if JOINED.search(text)} <= set(ALLOWED)
    for before in (
        "AND c.prompt = r.prompt ",
        "WHERE r.prompt = t.prompt",
        "(SELECT id FROM recipes WHERE current = 1)",
    ):
        assert JOINED.search(before)


def test_only_the_state_knows_the_database() -> None:
    """Outside its folder nobody writes SQL."""
    assert {name for name, text in _modules() if QUERY.search(text) and not name.startswith("etl/state/")} == set()
    assert QUERY.search('reader.rows("SELECT 1 FROM splits WHERE role = 1")')
