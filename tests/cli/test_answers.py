"""What commands that look answer: tables that fit, words for nothing, the nearest name for one that there is not."""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from support.made_state import MadeState
from support.states import failed, fetched

from etl.domain.statuses import RunState, Stage
from etl.domain.views import FailureFilter
from etl.state.store import Store

Etl = Callable[..., Any]


@pytest.fixture
def state(made: MadeState) -> MadeState:
    """A state with nine failed pictures of two classes on two hosts, a bad line, two captions and a pending record."""
    rows = [
        {"id": f"VM97-{n:02}", "url": f"http://{'ab'[n % 2]}.example/files/{n}.jpg?token=secret{n}"} for n in range(12)
    ]
    made.ingest("".join(json.dumps(row) + "\n" for row in rows).encode() + b"nope\n")
    dead = {f"VM97-{n:02}": "blocked_path" if n < 5 else "http_404" for n in range(2, 11)}
    made.finish({"VM97-00": "A.", "VM97-01": "B."}, dead_sources=dead)
    return made


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("failures", 0, "10 failed: 9 pictures, 1 manifest line\n failed  stage    class            host "),
        ("failures", 0, "      3  fetch    http_404         a.example  VM97-06\n"),
        ("failures --by class", 0, "      6  fetch    http_404         2 hosts  VM97-06\n"),
        ("failures --by host --limit 1", 0, "      5  in 2 rows more: raise --limit\n"),
        ("failures --by item --class blocked_path --limit 1", 0, "...\n2 more: raise --limit\nnext      if it is"),
        ("failures --class timeout", 0, "nothing that failed has --class timeout; 10 failed: 9"),
        ("failures --key VM97-00", 0, "nothing that failed has --key VM97-00;"),
        ("failures --class http_44", 2, "there is no error class 'http_44'; did you mean http_404?"),
        ("failures --class rain", 2, "classes of what failed here: blocked_path, http_404, invalid_json"),
        ("failures --host a.exmaple", 2, "no host 'a.exmaple'; did you mean a.example? hosts here: a.example, b."),
        ("failures", 0, "next      blocked_path: if it is meant, ingest the manifest again on this machine"),
        ("failures", 0, "next      `etl failures --by item` lists each; `etl retry-failed` tries again\n"),
        ("failures --stage ingest", 0, "next      mend the line of the manifest, or the options that it was read with, "
         "and ingest it again\n"),
        ("failures --key VM97-5", 2, "no record with the key 'VM97-5'; did you mean VM97-05?"),
        ("failures --stage export", 2, "--stage is ingest, fetch or caption"),
        ("retry-failed --host a.exmaple", 2, "did you mean a.example?"),
        ("retry-failed --class timeout", 0, "nothing that failed has --class timeout;"),
        ("retry-failed --class invalid_json", 2, "mend it, then run `etl ingest`"),
        ("retry-failed --stage ingest", 2, "mend it, then run `etl ingest`"),
        ("retry-failed --class blocked_path --dry-run", 0, "3 blocked_path will fail again unless this is done first"),
        ("retry-failed --class http_404 --key VM97-05", 0, "fetch: 1 failed item is ready again"),
        ("retry-failed --flag repetition", 0, "no caption that is meant is flagged repetition"),
        ("why VM97-02", 0, "`--allow-path DIR` when fetching; then `etl retry-failed --key VM97-02`, `etl run`"),
        ("why 7-11", 0, "next      `etl run` goes on with it"),
        ("why http://a.example/files/6.jpg?token=secret6", 0, "VM97-06: line 7"),
        ("why HTTPS://A.example/files/6.jpg", 0, "VM97-06: line 7"),
        ("why b.example/files/11.jpg", 0, "VM97-11: line 12"),
        ("why VM97-1", 2, "VM97-10\nVM97-11\nerror: 2 records are like 'VM97-1', see above"),
        ("why vm97", 2, "error: more than 10 records are like 'vm97'"),
        ("why b.example", 2, "error: 6 records are like"),
        ("why VM79-04", 2, "no record with the key 'VM79-04'; did you mean VM97-04?"),
        ("why Rembrandt", 2, "keys here look like VM97-00, VM97-01, VM97-02"),
        ("status", 0, "13 in the manifest, 12 selected: 2 captioned, 9 failed, 1 pending; 1 invalid"),
        ("status", 0, "next      `etl run` goes on with the 1 record that is pending"),
        ("status", 0, "(fetch, caption) on "),
        ("export out.jsonl", 0, "2 captioned, 9 failed, 1 pending; 1 invalid; 1 line without a JSON object left out"),
        ("runs", 0, "  run began            took did      fetched captioned failed    rate outcome\n"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("state")
def test_answers(etl: Etl, arguments: str, code: int, said: str) -> None:
    """Each answer says what there is, or what was wrong and what was meant, and no secret of an address."""
    answer = etl(*arguments.split())
    assert (answer.code, said in answer.out + answer.err) == (code, True), answer.out + answer.err
    assert (answer.out == "") == (code == 2 or arguments.startswith(("retry", "export")))
    assert "secret" not in answer.out + answer.err and "Traceback" not in answer.err


@pytest.mark.usefixtures("state")
def test_tables_fit_the_terminal(etl: Etl, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns no row of a table is longer; where there is room, runs tell machine and uid too."""
    uid = json.loads(etl("runs", "--json").out.splitlines()[0])["uid"]
    for arguments in (["failures"], ["failures", "--by", "host"], ["runs"]):
        table = [line for line in etl(*arguments).out.splitlines() if not line.startswith("next")]
        assert max(map(len, table)) <= 80
    assert uid not in etl("runs").out
    monkeypatch.setenv("COLUMNS", "160")
    assert uid in etl("runs").out


@pytest.mark.usefixtures("state")
def test_runs_have_the_numbers_that_an_export_takes(etl: Etl) -> None:
    """The first column is what ``--since`` takes; programs get number and counts too."""
    number = etl("runs").out.splitlines()[1].split()[0]
    latest = json.loads(etl("runs", "--json").out.splitlines()[0])
    assert (str(latest["number"]), latest["fetched"], latest["captioned"], latest["failed"]) == (number, 2, 2, 9)
    assert etl("export", "new.jsonl", "--since", number, "--json").json()["captioned"] == 2


def test_runs_count_records_that_ended_as_failed(etl: Etl, made: MadeState) -> None:
    """Not attempts: what came good in the same run, or waits after a stop, has not failed; what two records share has
    failed for both, also once a later run has made good of it.
    """
    names = {"a": "good", "b": "shared", "c": "shared", "d": "waits"}
    made.ingest(
        "".join(json.dumps({"id": key, "url": f"http://h/{name}"}) + "\n" for key, name in names.items()).encode()
    )
    with Store.open(made.settings) as store:

        def attempt(run: int, name: str, retryable: bool | None) -> None:
            sources = store.sources(run)
            with store._connection.transaction() as db:
                db.conn.execute("UPDATE sources SET not_before = 0")
            (item,) = (item for item in sources.claim("h", 9) if item.url.endswith(name))
            if retryable is None:
                sources.commit([fetched(item)])
            else:
                sources.fail([failed(item.id, retryable=retryable)])
            sources.release_all()

        with store.run((Stage.FETCH,)) as run:
            attempt(run, "good", True)
            attempt(run, "good", None)
            attempt(run, "shared", True)
            attempt(run, "shared", False)
        run = store.begin_run((Stage.FETCH,))
        attempt(run, "waits", True)
        store.end_run(run, RunState.INTERRUPTED)
        store.retry_failed(FailureFilter())
        with store.run((Stage.FETCH,)) as run:
            attempt(run, "shared", None)
            attempt(run, "waits", False)
    runs = [json.loads(line) for line in etl("runs", "--json").out.splitlines()]
    assert [(run["fetched"], run["failed"]) for run in runs] == [(1, 1), (0, 0), (1, 2), (0, 0)]


def test_a_finished_run_has_no_speed(etl: Etl, state: MadeState) -> None:
    """A run that has ended says when and how, and neither it nor a host shows a rate or a heartbeat."""
    told = etl("status").out
    assert re.search(r": ended well \d+s ago, 20\d\d-", told)
    assert not any(words in told for words in ("/s", "heartbeat", "at once"))
    assert "host      b.example 1 to come\n" in told
    assert state.settings.state.is_dir()


def test_nothing_failed(etl: Etl, made: MadeState) -> None:
    """Where nothing failed that is said, to programs beside stdout; an empty state says what to do."""
    made.ingest(b'{"id": "a", "url": "http://a.example/1.jpg"}\n')
    assert etl("failures").out == "nothing has failed\n"
    answer = etl("failures", "--json")
    assert (answer.code, answer.out, answer.err) == (0, "", "nothing has failed\n")
    assert etl("retry-failed").err == "nothing has failed\n"
    assert etl("retry-failed", "--json").json() == {"fetch": 0, "caption": 0}


def test_a_stranger_s_negative_attempts(etl: Etl, state: MadeState) -> None:
    """They are shown as none, and ``verify --deep`` names the row."""
    with contextlib.closing(sqlite3.connect(state.settings.state / "state.db")) as database, database:
        database.execute("UPDATE sources SET attempts = -5 WHERE url LIKE '%/6.jpg%'")
    assert "http_404 after 0 attempts:" in etl("why", "VM97-06").out
    assert "tried less often than never" in etl("verify", "--deep", "--accept-missing").err


@pytest.mark.usefixtures("state")
def test_the_demo_takes_no_state(etl: Etl) -> None:
    """``demo --state`` is refused with what is meant, in place of being ignored."""
    answer = etl("demo", "--state", "kept")
    assert (answer.code, answer.out) == (2, "")
    assert "name the directory to keep, as in `etl demo kept`" in answer.err
