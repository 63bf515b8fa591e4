"""A whole state written by a stranger: no command lets anything through to the terminal."""

import json
import sqlite3
from pathlib import Path

import pytest
from cli.conftest import Etl
from support.hostile import HOSTILE, acting, assert_harmless, poison
from support.made_state import MadeState
from support.states import slowed

from etl.domain.statuses import Stage
from etl.state.store import Store

COMMANDS = (
    ("status",), ("failures",), ("runs",), ("why", "{key}"), ("why", "none"), ("verify",), ("verify", "--deep"),
    ("gc",), ("gc", "--dry-run"),
    ("retry-failed", "--dry-run"), ("retry-failed",), ("retry-failed", "--flag", "repetition"), ("fetch", "--dry-run"),
    ("export", "out.jsonl"), ("export", "out.csv"), ("export", "out.jsonl", "--provenance"),
    ("report", "--output", "r.html"), ("pause",), ("stop",), ("fetch", "-vv"),
    ("run", "--model", "none/none", "--all"),
)  # fmt: skip
"""Every command that looks at a state, with every way to look."""

LOOKING = (
    *(words for words in COMMANDS if words[0] in ("status", "failures", "runs", "why", "export", "report")),
    ("verify", "--deep"), ("retry-failed", "--dry-run"), ("fetch", "--dry-run"), ("export", "out.parquet"),
)  # fmt: skip
"""Those that change nothing but a file beside it."""

FOUND_BY = frozenset(
    {"runs.state", "hosts.state", "runs.stages", "captions.flags", "records.error_class"}
    | {f"records.{name}" for name in ("id", "key", "manifest", "source", "prompt", "position")}
    | {"counters.n", "counters.recipe", "images.sha256", "images.working_sha256", "recipes.sha256", "sources.image"}
    | {f"{table}.id" for table in ("runs", "manifests", "prompts", "recipes", "images", "sources", "captions")}
    | {f"captions.{name}" for name in ("image", "prompt", "recipe")}
)  # fmt: skip
"""Columns that rows are found by, without which no command comes far."""


@pytest.fixture
def stranger(made: MadeState) -> MadeState:
    """Return a state with rows in every table, whose texts are all hostile."""
    records = [{"id": f"k{n}", "url": f"http://127.0.0.1:9/{n}.jpg", "title": HOSTILE} for n in range(6)]
    made.ingest("".join(json.dumps(record) + "\n" for record in records).encode() + b"not json\n")
    made.finish({"k0": "words", "k1": "words"}, dead_sources={"k2": "http_404"}, dead_captions={"k3": "generation"},
                flags=("repetition",))  # fmt: skip
    with Store.open(made.settings) as store, store.run((Stage.FETCH,)) as run:
        store.hosts(run).record([slowed("127.0.0.1")])
    return made


def _key(state: Path) -> str:
    with sqlite3.connect(state / "state.db") as connection:
        found: str = connection.execute("SELECT key FROM records ORDER BY id").fetchone()[0]
    return found


@pytest.mark.parametrize(
    ("form", "but"),
    [((), {"runs.state", "hosts.state", "runs.stages"}), (("--json",), {"runs.state", "hosts.state"}), ((), set())],
)
def test_no_command_shows_a_stranger_s_state_harmfully(
    stranger: MadeState, etl: Etl, form: tuple[str, ...], but: set[str]
) -> None:
    """Whatever stands in the database, each command ends with an exit code, harmless text and no traceback."""
    assert len(poison(stranger.settings.state, but=frozenset(but))) > 30
    key = _key(stranger.settings.state)
    for words in COMMANDS:
        answer = etl(*(word.format(key=key) for word in words), *form)
        assert_harmless(answer.err)
        assert "Traceback" not in answer.err, words
        if form:
            assert not acting(answer.out), words
            assert all(json.loads(line) is not None for line in answer.out.splitlines())
        else:
            assert_harmless(answer.out)


ODD = {
    "no UTF-8": ("TEXT", "CAST(x'41ff42' || rowid AS TEXT)"),
    "NUL": ("TEXT", "'a' || char(0) || 'b' || rowid"),
    "half a pair": ("TEXT", """'{"host": "\\ud800", "deadline": "\\ud800", "n": ' || rowid || '}'"""),
    "no JSON": ("TEXT", "'[' || rowid"),
    "huge": ("INTEGER", "9223372036854775807"),
    "hugely negative": ("INTEGER", "-9223372036854775808"),
}
"""Values that STRICT tables let in and nothing of ours writes: type of the columns, and SQL."""


@pytest.mark.parametrize("name", ODD)
def test_no_value_of_a_stranger_is_a_fault_of_ours(stranger: MadeState, etl: Etl, name: str) -> None:
    """Each command shows it as well as it can, or says in one line what is wrong."""
    kind, value = ODD[name]
    stranger.export()
    assert len(poison(stranger.settings.state, but=FOUND_BY, kind=kind, value=value)) > 15
    for words in LOOKING:
        answer = etl(*(word.format(key="k0") for word in words))
        assert "Traceback" not in answer.err, words
        errors = [line for line in answer.err.splitlines() if line.startswith("error:")]
        assert len(errors) <= 1 and all(len(line) < 1000 for line in errors), (words, answer.err)


def test_a_caption_that_is_no_text_costs_nothing_but_itself(made: MadeState, etl: Etl) -> None:
    """It is exported and shown with U+FFFD in the place of what is damaged; `verify --deep` names its row."""
    made.ingest(b'{"id": "a", "url": "http://a.example/a.jpg"}\n{"id": "b", "url": "http://a.example/b.jpg"}\n')
    made.finish({"a": "A street.", "b": "A square."})
    with sqlite3.connect(made.settings.state / "state.db") as connection:
        connection.execute("UPDATE captions SET text = CAST(x'41ff42' AS TEXT) WHERE id = 1")
    captions = [json.loads(line)["vlm_caption"] for line in made.export()[0].splitlines()]
    assert captions == ["A\ufffdB", "A square."]
    assert "A\ufffdB" in etl("why", "a").out
    answer = etl("verify", "--deep")
    assert answer.code == 1
    assert "with a text that is not UTF-8: captions row 1, text" in answer.err
