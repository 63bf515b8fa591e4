"""Ingest: lines become records, once, whatever happens to the manifest or to the process in between."""

import dataclasses
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState
from support.states import assert_sound, captioned, fetch_all, fetched, query, settings_for, use_recipe
from support.workbench import write_manifest

from etl.clock import now_ms
from etl.domain.statuses import Stage
from etl.domain.views import IngestSummary
from etl.errors import ManifestError
from etl.ingest import stage as module
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.prompts import PromptTemplate
from etl.ingest.stage import ingest, reselect
from etl.settings import Settings
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store

REAL = Path(__file__).parents[2].parent / "shared/data/manifest_clean.jsonl.gz"

EVERYTHING = (
    "SELECT key, position, hex(line_sha256), s.url, p.text, state, outcome, r.error_class, r.error, hex(l.line) "
    "FROM records r JOIN record_lines l ON l.record = r.id LEFT JOIN sources s ON s.id = r.source "
    "LEFT JOIN prompts p ON p.id = r.prompt WHERE state <> 'removed' ORDER BY position, key"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the manifest of a test lies."""
    return tmp_path / "m.jsonl"


def _records(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"k{n}", "url": f"http://a.example/{n}.jpg", **more} for n in range(count)]


def _ingest(store: Store, path: Path, content: bytes | list[dict[str, Any]], **options: Any) -> IngestSummary:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_manifest(path, content)
    return ingest(store, Manifest(str(path)), IngestOptions(**options))


def _counts(summary: IngestSummary) -> dict[str, int]:
    """Return the numbers of a summary that are not zero."""
    return {name: n for name, n in dataclasses.asdict(summary).items() if isinstance(n, int) and n}


def _rows(store: Store, sql: str = EVERYTHING) -> list[tuple[Any, ...]]:
    return store._connection.rows(sql)


def _states(store: Store) -> dict[str, tuple[str, str | None]]:
    return {key: (state, slug) for key, state, slug in _rows(store, "SELECT key, state, error_class FROM records")}


def test_second_ingest_changes_nothing(store: Store, state: Path, path: Path) -> None:
    """The same file again costs one look at it: not one row is written."""
    records = _records(7)
    assert _counts(_ingest(store, path, records)) == {"records": 7, "selected": 7, "added": 7}
    before = list(store._connection.db.conn.iterdump())
    assert _counts(_ingest(store, path, records)) == {"records": 7, "selected": 7, "unchanged": 1}
    assert list(store._connection.db.conn.iterdump()) == before
    assert_sound(state)


def test_edited_manifest_touches_what_was_edited(store: Store, state: Path, path: Path) -> None:
    """After lines were changed, moved, added and taken away, the state is that of a fresh ingest, and no id changed."""
    records = _records(8)
    _ingest(store, path, records)
    numbers = dict(_rows(store, "SELECT key, id FROM records"))
    edited = [records[3], records[1] | {"url": "http://b.example/new.jpg"}, {"id": "new", "url": "x.jpg"}, records[0]]
    summary = _ingest(store, path, edited + records[5:])
    assert _counts(summary) == {"records": 7, "selected": 7, "added": 1, "changed": 1, "removed": 2}
    again = dict(_rows(store, "SELECT key, id FROM records"))
    assert again == numbers | {"new": 9}
    assert {key for key, (state, _) in _states(store).items() if state == "removed"} == {"k2", "k4"}
    with Store.open(settings_for(state.parent / "fresh")) as fresh:
        _ingest(fresh, path, edited + records[5:])
        assert _rows(fresh) == _rows(store)
    urls = dict(_rows(store, "SELECT url, status FROM sources"))
    assert [urls[f"http://a.example/{n}.jpg"] for n in (1, 2, 4)] == ["cancelled"] * 3
    assert_sound(state)


def test_record_that_comes_back_keeps_its_caption(store: Store, state: Path, path: Path) -> None:
    """A record that was taken away and put back is captioned as it was; nothing is fetched or captioned again."""
    records = _records(3)
    _ingest(store, path, records)
    fetch_all(store)
    queue = store.captions(store.begin_run([Stage.CAPTION]), use_recipe(store))
    queue.enqueue_possible()
    queue.commit([captioned(item) for item in queue.claim(9)], now_ms())
    _ingest(store, path, records[:1])
    _ingest(store, path, records[::-1])
    assert _rows(store, "SELECT DISTINCT outcome, state FROM records") == [("captioned", "active")]
    assert _rows(store, "SELECT DISTINCT status FROM sources") == [("done",)]
    assert queue.enqueue_possible() == 0
    assert_sound(state)


def test_reordered_manifest_changes_only_positions(store: Store, path: Path) -> None:
    """The order of the lines is the order of the export and nothing else."""
    records = _records(5)
    _ingest(store, path, records)
    assert _counts(_ingest(store, path, records[::-1])) == {"records": 5, "selected": 5}
    assert _rows(store, "SELECT key FROM records ORDER BY position") == [(f"k{n}",) for n in range(4, -1, -1)]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stopped_ingest_goes_on_behind_its_last_batch(
    store: Store, state: Path, path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """An ingest that was stopped is resumed at its batch and leaves the state of one that never stopped."""
    monkeypatch.setattr(module, "BATCH", 4)
    records = [*_records(5), {"bad": 1}, *_records(9)[3:]]
    write_manifest(path, records)
    batches = list[int]()
    summary = ingest(
        store, Manifest(str(path)), IngestOptions(), on_batch=batches.append,
        should_stop=lambda: len(batches) == stop_after,
    )  # fmt: skip
    assert summary.records == min(4 * stop_after, 12)
    assert query(state, "SELECT complete FROM manifests") == [(0,)]
    resumed = ingest(store, Manifest(str(path)), IngestOptions(), on_batch=batches.append)
    assert resumed.resumed_at == min(4 * stop_after, 12)
    assert batches == [4, 8, 12]
    with Store.open(settings_for(state.parent / "fresh")) as fresh:
        _ingest(fresh, path, records)
        assert _rows(fresh) == _rows(store)
    assert_sound(state)


def test_removed_only_after_the_whole_file_was_read(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a changed file is half read, what it has not yet named is still there; at its end it is removed."""
    monkeypatch.setattr(module, "BATCH", 2)
    _ingest(store, path, _records(6))
    write_manifest(path, _records(4)[::-1])
    ingest(store, Manifest(str(path)), IngestOptions(), should_stop=lambda: True)
    assert {state for state, _ in _states(store).values()} == {"active"}
    summary = ingest(store, Manifest(str(path)), IngestOptions())
    assert (summary.removed, summary.records) == (2, 4)


def test_file_cut_short_removes_nothing(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed manifest whose end is missing is an error; what was read is kept, and the whole file goes on there.

    Over a manifest that is complete in the state it changes nothing at all.
    """
    monkeypatch.setattr(module, "BATCH", 50)
    write_manifest(path, [record | {"note": os.urandom(3000).hex()} for record in _records(400)])
    whole = gzip.compress(path.read_bytes(), 1)
    with pytest.raises(ManifestError, match="cut short"):
        _ingest(store, path, whole[: len(whole) * 2 // 3])
    kept = len(_states(store))
    assert 0 < kept < 400
    summary = _ingest(store, path, whole)
    assert (summary.records, summary.resumed_at, summary.added) == (400, kept, 400 - kept)
    before = list(store._connection.db.conn.iterdump())
    with pytest.raises(ManifestError, match="cut short"):
        _ingest(store, path, whole[: len(whole) * 2 // 3])
    assert list(store._connection.db.conn.iterdump()) == before


def test_changed_beginning_is_read_again(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-read manifest is not resumed when the part already read has changed or is gone."""
    monkeypatch.setattr(module, "BATCH", 3)
    write_manifest(path, _records(9))
    ingest(store, Manifest(str(path)), IngestOptions(), should_stop=lambda: True)
    summary = _ingest(store, path, _records(9, note="changed"))
    assert (summary.resumed_at, summary.changed, summary.added) == (0, 3, 6)
    write_manifest(path, _records(9))
    ingest(store, Manifest(str(path)), IngestOptions(), should_stop=lambda: True)
    summary = _ingest(store, path, _records(2))
    assert (summary.resumed_at, summary.records, summary.removed) == (0, 2, 7)


KILLED = """
import os, signal, sys
from pathlib import Path
from etl.settings import Settings
from etl.ingest import stage as module
from etl.ingest.options import IngestOptions
from etl.ingest.manifest import Manifest
from etl.state.read.reader import Reader
from etl.state.store import Store
module.BATCH = 500
left = [int(sys.argv[3])]
def note(done):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(Settings(state=Path(sys.argv[1]))) as store:
    module.ingest(store, Manifest(sys.argv[2]), IngestOptions(), on_batch=note)
"""


def test_killed_ingest_is_resumed_to_the_same_state(state: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes killed by SIGKILL in the middle of an ingest lose and repeat nothing."""
    write_manifest(path, _records(3000))
    for batches in (2, 3):
        command = [sys.executable, "-c", KILLED, str(state), str(path), str(batches)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    monkeypatch.setattr(module, "BATCH", 500)
    with Store.open(settings_for(state)) as store, Store.open(settings_for(state.parent / "fresh")) as fresh:
        summary = ingest(store, Manifest(str(path)), IngestOptions())
        assert (summary.resumed_at, summary.added) == (2500, 500)
        ingest(fresh, Manifest(str(path)), IngestOptions())
        tables = ("records", "record_lines", "sources", "prompts", "manifests", "counters")
        for table in tables:
            assert _rows(store, f"SELECT * FROM {table}") == _rows(fresh, f"SELECT * FROM {table}")
    assert_sound(state)


@pytest.mark.parametrize(
    ("line", "slug", "reason"),
    [
        (b"not json", "invalid_json", "not JSON"),
        (b'{"id": "1", "url": "x"', "invalid_json", "not JSON"),
        (b'["id"]', "invalid_json", "a JSON list, not an object"),
        (b"17", "invalid_json", "a JSON int"),
        (b"null", "invalid_json", "a JSON NoneType"),
        (b'{"id": "1", "url": "caf\xe9.jpg"}', "invalid_json", "not UTF-8: byte 0xe9"),
        (b"\x00\x01\xff\xfe\x89PNG", "invalid_json", "not"),
        (b"[" * 100_000, "invalid_json", "nested more than"),
        (b'{"id": ' + b"9" * 5000 + b', "url": "x.jpg"}', "invalid_json", "not JSON"),
        (b'{"id": "1"}', "no_image_field", "none of the fields"),
        (b'{"id": "1", "url": ""}', "no_image_field", "none of the fields"),
        (b'{"id": "1", "url": 7}', "no_image_field", "none of the fields"),
        (b'{"id": "1", "url": "ftp://a.example/1.jpg"}', "invalid_url", "neither http, https, s3, gs, hf nor"),
        (b'{"id": "1", "url": "http:///1.jpg"}', "invalid_url", "no valid host"),
        (b'{"id": "1", "url": "http://[::1/1.jpg"}', "invalid_url", "malformed"),
        (b'{"id": "1", "url": "\\ud800.jpg"}', "invalid_record", "half a surrogate pair"),
        (b'{"id": "\\ud800", "url": "x.jpg"}', "invalid_record", "half a surrogate pair"),
        (b'{"id": "a\\u0000b", "url": "x.jpg"}', "invalid_record", "NUL"),
        (b'{"id": "1", "url": "a\\u0000b.jpg"}', "invalid_record", "NUL"),
        (b'{"id": "' + b"x" * 600 + b'", "url": "x.jpg"}', "invalid_record", "600 characters"),
    ],
)
def test_bad_line_is_an_invalid_record_of_its_own(
    store: Store, state: Path, path: Path, line: bytes, slug: str, reason: str
) -> None:
    """A bad line is kept byte for byte with its reason, its neighbours are read, and a second look finds it again."""
    good = [json.dumps(record).encode() for record in _records(2)]
    content = b"\n".join([good[0], line, good[1], b""])
    assert _counts(_ingest(store, path, content)) == {"records": 3, "selected": 2, "invalid": 1, "added": 3}
    rows = _rows(store, "SELECT position, error_class, error, line FROM records JOIN record_lines ON record = id "
                        "WHERE state = 'invalid'")  # fmt: skip
    assert len(rows) == 1
    assert rows[0][:2] == (2, slug)
    assert reason in rows[0][2]
    assert rows[0][3] == line + b"\n"
    assert _counts(_ingest(store, path, content + b"\n")) == {"records": 3, "selected": 2, "invalid": 1}
    assert_sound(state)


def test_strict_stops_at_the_first_bad_line(store: Store, path: Path) -> None:
    """With ``strict`` a bad line ends the ingest with its number, and its batch is not stored."""
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 3: no image"):
        _ingest(store, path, [*_records(2), {"id": "x"}, *_records(5)[3:]], strict=True)
    assert _states(store) == {}


def test_odd_but_right_lines_are_read(store: Store, path: Path) -> None:
    """CRLF, a mark at the beginning, blank lines, no last line end, numbers for keys and not-a-number are no faults."""
    content = (
        b'\xef\xbb\xbf{"id": 1, "url": "http://a.example/1.jpg", "n": NaN}\r\n\r\n   \n'
        b'  {"id": " two ", "url": " http://a.example/2.jpg "}\r\n{"url": "pictures/3.jpg", "note": "\\ud800"}'
    )
    _ingest(store, path, content)
    rows = _rows(store, "SELECT key, position, url, hex(line) FROM records r JOIN sources s ON s.id = r.source "
                        "JOIN record_lines l ON l.record = r.id ORDER BY position")  # fmt: skip
    assert [row[:3] for row in rows] == [
        ("1", 1, "http://a.example/1.jpg"),
        ("two", 4, "http://a.example/2.jpg"),
        ("m.jsonl:5", 5, str(path.parent / "pictures/3.jpg")),
    ]
    assert bytes.fromhex(rows[0][3]).endswith(b"NaN}\r\n")


def test_same_key_twice_keeps_the_first(store: Store, state: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that comes again for the same picture, in this batch or a later one, is invalid and names the first line.

    With another picture it is a record of its own, numbered.
    """
    monkeypatch.setattr(module, "BATCH", 3)
    records = _records(3)
    again = [records[2] | {"id": "k0", "n": n, "url": f"http://a.example/more-{n}.jpg"} for n in range(9)]
    content = [records[0], records[0], records[1], records[0] | {"n": 2}, *again, records[2]]
    summary = _ingest(store, path, content)
    assert (summary.records, summary.invalid) == (14, 2)
    assert _rows(store, "SELECT key, error FROM records WHERE state = 'invalid' ORDER BY position") == [
        ("k0 (line 2)", "line 1 has the same key 'k0'"),
        ("k0 (line 4)", "line 1 has the same key 'k0'"),
    ]
    numbered = _rows(store, "SELECT key FROM records WHERE key LIKE 'k0#%' ORDER BY position")
    assert numbered == [(f"k0#{n}",) for n in range(2, 11)]
    assert _ingest(store, path, content).unchanged
    assert _counts(_ingest(store, path, content[1:])) == {
        "records": 13, "selected": 12, "invalid": 1, "added": 1, "removed": 2,
    }  # fmt: skip
    assert_sound(state)


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0]])
def test_key_that_looks_like_a_duplicates_key(
    store: Store, state: Path, path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int], batch: int
) -> None:
    """A manifest that holds the very keys which duplicates are given is ingested, again and again, to the same."""
    monkeypatch.setattr(module, "BATCH", batch)
    keys = ["a", "a (line 3)", "a", "a (line 3) (line 3)"]
    content = [{"id": keys[n], "url": f"http://a.example/{n}.jpg"} for n in order]
    assert _ingest(store, path, content).records == 4
    before = _rows(store)
    summary = _ingest(store, path, json.dumps(content[0]).encode() + b" \n" + path.read_bytes().partition(b"\n")[2])
    assert (summary.records, summary.removed, summary.changed) == (4, 0, 1)
    assert [row[0] for row in _rows(store)] == [row[0] for row in before]
    assert_sound(state)


@pytest.mark.parametrize("content", [b"", b"\n  \n\r\n"])
def test_empty_manifest_changes_nothing(store: Store, path: Path, content: bytes) -> None:
    """A file without records is an error, and what the state knows of that manifest is untouched."""
    _ingest(store, path, _records(3))
    before = list(store._connection.db.conn.iterdump())
    with pytest.raises(ManifestError, match="no records"):
        _ingest(store, path, content)
    assert list(store._connection.db.conn.iterdump()) == before


def test_broken_array_changes_nothing_of_a_whole_manifest(store: Store, path: Path) -> None:
    """A JSON array that is cut short before the first batch is full is refused before anything is written."""
    _ingest(store, path, _records(3))
    before = list(store._connection.db.conn.iterdump())
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 2: cut short"):
        _ingest(store, path, b'[{"id": 1},\n{"id": 2')
    assert list(store._connection.db.conn.iterdump()) == before


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), "0145"),
        (Selection(synthetic=True), "04"),
        (Selection(synthetic=False), "012345"),
        (Selection(limit=3), "01"),
        (Selection(offset=2), "45"),
        (Selection(offset=1, limit=4), "14"),
        (Selection(synthetic=False, offset=1, limit=2), "12"),
        (Selection(limit=0), ""),
        (Selection(offset=99), ""),
    ],
)
def test_selection(store: Store, state: Path, path: Path, selection: Selection, expected: str) -> None:
    """Window and description source choose what is captioned; the rest is kept but never claimed.

    Applying a selection to what the state holds gives the same as ingesting with it.
    """
    origins = ["synthetic", None, "original", "", "original+synthetic", None]
    content: list[dict[str, Any]] = []
    for number, (record, origin) in enumerate(zip(_records(6), origins, strict=True)):
        content.append({"id": str(number), "url": record["url"]})
        if origin is not None:
            content[-1]["description_source"] = origin
    _ingest(store, path, content)
    reselect(store, selection)
    again = _rows(store)
    with Store.open(settings_for(state.parent / "fresh")) as fresh:
        _ingest(fresh, path, content, selection=selection)
        assert _rows(fresh) == again
        active = "".join(key for (key,) in _rows(fresh, "SELECT key FROM records WHERE state = 'active' ORDER BY key"))
        assert active == expected
        _assert_claims(fresh, expected)
    _assert_claims(store, expected)


def _assert_claims(store: Store, expected: str) -> None:
    with store.run((Stage.FETCH,)) as run:
        assert "".join(item.url[-5] for item in store.sources(run).claim("a.example", 99)) == expected
    assert_sound(store.directory)


def test_narrowed_and_widened_selection_cancels_and_wakes(store: Store, state: Path, path: Path) -> None:
    """Sources outside a narrowed selection are cancelled, done ones kept; a widened one takes all back."""
    _ingest(store, path, _records(4))
    with store.run((Stage.FETCH,)) as run:
        queue = store.sources(run)
        queue.commit([fetched(item) for item in queue.claim("a.example", 2)])
    statuses = "SELECT status FROM sources ORDER BY id"
    reselect(store, Selection(offset=1, limit=2))
    assert [status for (status,) in _rows(store, statuses)] == ["done", "done", "ready", "cancelled"]
    reselect(store, Selection())
    assert [status for (status,) in _rows(store, statuses)] == ["done", "done", "ready", "ready"]
    assert _ingest(store, path, _records(4)).unchanged
    assert_sound(state)


def test_shared_picture_is_wanted_if_any_record_wants_it(
    store: Store, state: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of an unselected record is fetched when a selected one, even of a later batch, shares it."""
    monkeypatch.setattr(module, "BATCH", 1)
    url = "http://a.example/1.jpg"
    content = [{"id": str(n), "url": url, "description_source": s} for n, s in enumerate(["original", "synthetic"])]
    _ingest(store, path, content)
    assert _rows(store, "SELECT url, status FROM sources") == [(url, "ready")]
    assert_sound(state)


def test_changed_template_gives_new_prompts(store: Store, state: Path, path: Path) -> None:
    """Another prompt template re-points every record to its new prompt and leaves the sources alone."""
    records = _records(3, title="The harbour")
    _ingest(store, path, records)
    fetch_all(store)
    summary = _ingest(store, path, records, template=PromptTemplate("{{ record.id }}: {{ title }}?"))
    assert _counts(summary) == {"records": 3, "selected": 3, "changed": 3}
    found = _rows(store, "SELECT p.text FROM records r JOIN prompts p ON p.id = r.prompt ORDER BY r.id")
    assert found == [(f"k{n}: The harbour?",) for n in range(3)]
    assert _rows(store, "SELECT DISTINCT status FROM sources") == [("done",)]
    assert _ingest(store, path, records, template=PromptTemplate("{{ record.id }}: {{ title }}?")).unchanged
    assert_sound(state)


def test_template_that_fails_spoils_its_record_alone(store: Store, path: Path) -> None:
    """A record that the template cannot be filled in with is invalid; the others have their prompts."""
    template = PromptTemplate("{{ 10 // record.n }} things?")
    _ingest(store, path, [{"id": str(n), "url": "x.jpg", "n": n} for n in (0, 5)], template=template)
    assert _states(store) == {"0": ("invalid", "invalid_record"), "5": ("active", None)}


def test_named_fields(store: Store, path: Path) -> None:
    """Key and image are taken from the named fields alone; a record without them is invalid."""
    content = [{"ref": "a", "scan": "http://a.example/1.jpg", "id": "z", "url": "wrong.jpg"}, {"id": "b", "scan": "x"}]
    _ingest(store, path, content, id_field="ref", image_field="scan")
    assert _rows(store, "SELECT key, state, url FROM records r LEFT JOIN sources s ON s.id = r.source") == [
        ("a", "active", "http://a.example/1.jpg"), ("m.jsonl:2", "invalid", None),
    ]  # fmt: skip


def test_directory_of_pictures(store: Store, tmp_path: Path) -> None:
    """The pictures of a directory are local sources, whatever their names."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("deep/b.png", "a.jpg", "Plan: 1.jpg"):
        (folder / name).write_bytes(b"")
    summary = ingest(store, Manifest(str(folder)), IngestOptions())
    assert (summary.records, summary.invalid) == (3, 0)
    assert _rows(store, "SELECT url, host FROM sources ORDER BY url") == sorted(
        (str(folder / name), "") for name in ("deep/b.png", "a.jpg", "Plan: 1.jpg")
    )


def test_csv_manifest(store: Store, path: Path) -> None:
    """Rows of a CSV file are records; one that is not UTF-8 among others that are is invalid alone."""
    csv = path.with_suffix(".csv")
    rows = b"id,title,url\n1,qu\xc3\xa9,http://a.example/1.jpg\n2,caf\xe9,http://a.example/2.jpg\n"
    summary = _ingest(store, csv, rows)
    assert (summary.selected, summary.invalid) == (1, 1)
    assert _states(store) == {"1": ("active", None), "m.csv:2": ("invalid", "invalid_json")}


def test_standard_input_replaces_what_it_gave_before(
    store: Store, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard input is one manifest, read anew each time: what it no longer names is removed."""
    for count, removed in ((3, 0), (1, 2)):
        content = "".join(json.dumps(record) + "\n" for record in _records(count)).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert ingest(store, Manifest("-"), IngestOptions()).removed == removed
    assert query(state, "SELECT key FROM records WHERE state = 'active'") == [("k0",)]
    assert_sound(state)


@pytest.mark.skipif(not REAL.exists(), reason="the real manifest does not lie beside this checkout")
def test_real_manifest(store: Store, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest of the first user gives exactly the known numbers, stopped and resumed, and then costs nothing."""
    manifest = Manifest(str(REAL))
    monkeypatch.setattr(module, "BATCH", 4000)
    half = ingest(store, manifest, IngestOptions(), should_stop=lambda: True)
    assert half.records == 4000
    summary = ingest(store, manifest, IngestOptions())
    assert _counts(summary) == {
        "records": 14_822, "selected": 14_659, "unselected": 163, "added": 10_822, "resumed_at": 4000,
    }  # fmt: skip
    assert _rows(store, "SELECT count(*) FROM sources") == [(9859,)]
    hosts = dict(_rows(store, "SELECT host, count(*) FROM sources GROUP BY host"))
    assert set(hosts) == {"archivesdemontreal.com", "depot.ville.montreal.qc.ca"}
    assert ingest(store, manifest, IngestOptions()).unchanged
    reselect(store, Selection(synthetic=False))
    assert _rows(store, "SELECT count(*) FROM records WHERE state = 'active'") == [(14_822,)]
    assert_sound(state)


def test_strict_stops_at_a_duplicate_key_each_time(tmp_path: Path) -> None:
    """With strict, a key that occurs twice stops the ingest and names both lines, also when it is tried again."""
    manifest = tmp_path / "twice.jsonl"
    manifest.write_text('{"id": "a", "url": "http://h/1"}\n{"id": "a", "url": "http://h/2"}\n')
    with Store.open(Settings(state=tmp_path / "state")) as store:
        for _ in range(2):
            with pytest.raises(ManifestError, match=r"twice\.jsonl, line 2: line 1 has the same key 'a'"):
                ingest(store, Manifest(str(manifest)), IngestOptions(strict=True))
    with Reader(tmp_path / "state") as reader:
        assert read_progress(reader).records.get("active", 0) == 0


def test_a_pipe_is_read_once_and_whole(tmp_path: Path) -> None:
    """A manifest that comes through a named pipe is ingested although it can be read only once."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    line = '{"id": "a", "url": "http://h/1"}\n'
    threading.Thread(target=lambda: pipe.write_text(line), daemon=True).start()
    with Store.open(Settings(state=tmp_path / "state")) as store:
        assert ingest(store, Manifest(str(pipe)), IngestOptions()).selected == 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":"a","url":"http://a.example/1.jpg","x":%s}' % (b"[" * 400 + b"]" * 400),
        b'{"id":"a","url":"http://a.example/1.jpg","x":%s,"x":1}' % (b'{"y":' * 400 + b"1" + b"}" * 400),
        b'{"id":"a","url":"http://a.example/1.jpg","name":%s}' % (b"[" * 950 + b"]" * 950),
        b"[" * 100_000,
    ],
)
def test_lines_that_nest_too_deeply(store: Store, path: Path, line: bytes) -> None:
    """What nests deeper than every Python bears is an invalid line on each, also under a name that comes again."""
    _ingest(store, path, b'{"id":"b","url":"http://a.example/2.jpg"}\n' + line + b"\n")
    rows = _rows(store, "SELECT position, state, error_class, error FROM records ORDER BY position")
    assert rows == [
        (1, "active", None, None), (2, "invalid", "invalid_json", "nested more than 200 levels deep"),
    ]  # fmt: skip


def test_brackets_in_texts_do_not_nest(store: Store, path: Path) -> None:
    """Only brackets outside of texts count, and only those that are open at once."""
    _ingest(store, path, [{"id": "a", "url": "http://a.example/1.jpg", "x": '[\\"{' * 900, "y": [[]] * 900}])
    assert _rows(store, "SELECT state FROM records") == [("active",)]


def test_long_lines_are_committed_sooner(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is full by its bytes too, so that a few megabytes of compressed lines cannot take all memory."""
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    write_manifest(path, _records(5, x="x" * 600))
    seen: list[int] = []
    ingest(store, Manifest(str(path)), IngestOptions(), on_batch=seen.append)
    assert seen == [2, 4, 5]


def test_a_dead_source_that_passes_from_one_manifest_to_another_stays_dead(tmp_path: Path) -> None:
    """Another selection drops one manifest's record and takes the other's: somebody needed the source all along."""
    made = MadeState(tmp_path)
    window = Selection(synthetic=False, limit=1)
    made.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n', "one.jsonl", selection=window)
    other = b'{"id": "2", "url": "http://a.example/2.jpg"}\n{"id": "3", "url": "http://a.example/1.jpg"}\n'
    made.ingest(other, "two.jsonl", selection=window)
    made.finish(dead_sources={"1": "http_404"})
    with Store.open(made.settings) as store:
        reselect(store, Selection(synthetic=False, offset=1))
        rows = store._connection.rows("SELECT url, status, attempts FROM sources ORDER BY url")
    assert rows == [("http://a.example/1.jpg", "dead", 1), ("http://a.example/2.jpg", "cancelled", 0)]
