"""A whole state written by a stranger: no command lets anything through to the terminal."""

import json
import sqlite3
from pathlib import Path

import pytest
from cli.conftest import Etl
from support.hostile import HOSTILE, acting, assert_harmless, poison
from support.made_state import MadeState

from etl.models import HostInfo, HostState, Stage
from etl.state.store import Store

COMMANDS = (
    ("status",), ("failures",), ("runs",), ("why", "{key}"), ("why", "none"), ("verify",), ("gc",), ("gc", "--dry-run"),
    ("retry-failed", "--dry-run"), ("retry-failed",), ("retry-failed", "--flag", "repetition"), ("fetch", "--dry-run"),
    ("export", "out.jsonl"), ("export", "out.jsonl", "--provenance"),
    ("report", "--output", "r.html"), ("pause",), ("stop",), ("fetch", "-vv"),
    ("run", "--model", "none/none", "--all"),
)  # fmt: skip
"""Every command that looks at a state, with every way to look."""


@pytest.fixture
def stranger(made: MadeState) -> MadeState:
    """Return a state with rows in every table, whose texts are all hostile."""
    records = [{"id": f"k{n}", "url": f"http://127.0.0.1:9/{n}.jpg", "title": HOSTILE} for n in range(6)]
    made.ingest("".join(json.dumps(record) + "\n" for record in records).encode() + b"not json\n")
    made.finish({"k0": "words", "k1": "words"}, dead_sources={"k2": "http_404"}, dead_captions={"k3": "generation"},
                flags=("repetition",))  # fmt: skip
    with Store.open(made.settings) as store, store.run((Stage.FETCH,)) as run:
        store.hosts(run).record([HostInfo("127.0.0.1", HostState.SLOWED, "busy", None, 4, 3, 8, 5)])
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
