"""Export: what a line gains, what stays byte for byte, and that a file appears whole or not at all."""

import gzip
import hashlib
import io
import json
import os
import re
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.made_state import RECIPE, MadeState

from etl.compression import zstd
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.errors import ConfigError, EtlError, StateError
from etl.export import lines as export_lines
from etl.export.stage import ExportOptions, with_fields
from etl.ingest.options import Selection
from etl.run.pipeline import export_manifest
from etl.state.read import reader as queries
from etl.state.read.export_rows import export_rows
from etl.state.read.manifests import manifest_lines
from etl.state.read.reader import Reader
from etl.state.store import Store

REAL_MANIFEST = Path(__file__).parents[2].parent / "shared" / "data" / "manifest_clean.jsonl.gz"


@pytest.fixture
def made(tmp_path: Path) -> MadeState:
    return MadeState(tmp_path)


def lines_of(*records: dict[str, Any]) -> bytes:
    """Return records as JSON Lines."""
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def pictures(*keys: str) -> bytes:
    """Return a manifest with one picture for each key."""
    return lines_of(*({"id": key, "url": f"http://archive.example/{key}.jpg"} for key in keys))


def read(data: bytes) -> list[dict[str, Any]]:
    """Return the objects of an export."""
    return [json.loads(line) for line in data.splitlines()]


def test_real_manifest_without_captions(made: MadeState) -> None:
    """With nothing captioned, the export of the real manifest is that manifest, byte for byte."""
    if not REAL_MANIFEST.exists():
        pytest.skip("the real manifest does not lie beside this checkout")
    content = gzip.decompress(REAL_MANIFEST.read_bytes())
    made.ingest(content)
    data, summary = made.export()
    assert data == content
    assert (summary.rows, summary.pending) == (14_822, 14_822)
    assert summary.sha256 == hashlib.sha256(content).hexdigest()


ODD_LINES = [
    b'{"id":"a","url":"http://archive.example/a.jpg","price":1.10,"big":123456789012345678901234567890,"e":1E+2}\n',
    b'  { "url" : "http://archive.example/b.jpg" ,\t"id": "b" , "text": "caf\\u00e9 \xc3\xa9 \\/ \\ud800" }  \r\n',
    b'{"z":[1.0,{"y":-0.0}],"id":"c","url":"http://archive.example/c.jpg","z":2}',
]
"""Whatever JSON allows: spellings of numbers and text, white space, CRLF, a doubled field, no line end at the end."""


def test_nothing_done_changes_nothing(made: MadeState) -> None:
    """Pending and unselected lines come out byte for byte: numbers, escapes, white space, CRLF, missing line end."""
    content = b"".join(ODD_LINES)
    made.ingest(content, selection=Selection(synthetic=False, limit=1))
    data, summary = made.export()
    assert data == content
    assert (summary.rows, summary.pending, summary.unselected) == (3, 1, 2)


def test_captioned_lines_keep_every_byte(made: MadeState) -> None:
    """A captioned line is its input with fields added before its last brace, its line end kept."""
    made.ingest(b"".join(ODD_LINES))
    made.finish({"a": "One.", "b": "Two.", "c": "Three."})
    data, _ = made.export()
    for line, out in zip(ODD_LINES, data.splitlines(keepends=True), strict=True):
        body, end = line.rstrip(), line[len(line.rstrip()) :]
        assert out.startswith(body[:-1].rstrip() + b',"vlm_caption":"')
        assert out.endswith(b"}" + end)


def test_fields_of_a_captioned_record(made: MadeState) -> None:
    """A captioned record keeps its fields in order and gains caption, time and source, UTF-8 as it is."""
    made.ingest(lines_of({"b": 1, "id": "k", "url": "http://archive.example/k.jpg", "a": "\u00e9t\u00e9"}))
    made.finish({"k": "Une \u00e9glise \u6559\u4f1a \U0001f600."})
    data, _ = made.export()
    assert "Une \u00e9glise \u6559\u4f1a \U0001f600.".encode() in data
    record = read(data)[0]
    assert list(record) == ["b", "id", "url", "a", "vlm_caption", "vlm_captioned_at", "vlm_caption_source"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["vlm_captioned_at"])
    assert record["vlm_caption_source"] == "some/llava@0123abcd"


def test_failed_and_pending_records(made: MadeState) -> None:
    """A failed record says so with its error class, a pending one gains nothing; there is one line for each."""
    content = pictures("a", "b", "c", "d")
    made.ingest(content)
    made.finish({"a": "One."}, dead_sources={"b": "http_404"}, dead_captions={"c": "generation"})
    data, summary = made.export()
    records = read(data)
    assert [record["id"] for record in records] == ["a", "b", "c", "d"]
    assert records[1] | {"vlm_caption": None, "vlm_error": "http_404"} == records[1]
    assert records[2] | {"vlm_caption": None, "vlm_error": "generation"} == records[2]
    assert not {"vlm_captioned_at", "vlm_caption_source"} & (records[1].keys() | records[2].keys())
    assert data.splitlines()[3] == content.splitlines()[3]
    assert (summary.captioned, summary.failed, summary.pending) == (1, 2, 1)


@pytest.mark.parametrize("outcome", ["captioned", "failed"])
def test_existing_fields_are_replaced(made: MadeState, outcome: str) -> None:
    """Fields of an earlier captioning are replaced, however they are spelt; the rest keeps every byte."""
    line = (
        b'{"vlm_caption":"old, {\\"x\\"}", "id":"k", "n": 1.10,"\\u0076lm_error":"old", '
        b'"url":"http://archive.example/k.jpg" ,"vlm_provenance":{"a":[1]}}\n'
    )
    made.ingest(line)
    if outcome == "captioned":
        made.finish({"k": "New."})
    else:
        made.finish(dead_sources={"k": "tls"})
    data, _ = made.export()
    assert data.startswith(b'{ "id":"k", "n": 1.10, "url":"http://archive.example/k.jpg","vlm_caption":')
    pairs = json.loads(data, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    assert dict(pairs)["vlm_caption"] == ("New." if outcome == "captioned" else None)
    assert "old" not in data.decode()


def test_existing_fields_of_pending_records_stay(made: MadeState) -> None:
    """A record that is not done yet keeps what an earlier captioning gave it."""
    content = lines_of({"id": "k", "url": "http://archive.example/k.jpg", "vlm_caption": "old"})
    made.ingest(content)
    assert made.export()[0] == content


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{}", b'{"x":1}'),
        (b"{ }\r\n", b'{"x":1}\r\n'),
        (b'{"vlm_caption":1}\n', b'{"x":1}\n'),
        (b'{"vlm_caption":1,"a":2}\n', b'{"a":2,"x":1}\n'),
        (b'{"a":"vlm_caption","vlm_x":"}"}', b'{"a":"vlm_caption","vlm_x":"}","x":1}'),
        (
            b'\xef\xbb\xbf{"a":"\\ud800,\\"vlm_caption\\":1"}\n',
            b'\xef\xbb\xbf{"a":"\\ud800,\\"vlm_caption\\":1","x":1}\n',
        ),
    ],
)
def test_with_fields(line: bytes, expected: bytes) -> None:
    """Fields are added to any object, and only fields of the top level are replaced."""
    assert with_fields(line, {"x": 1}) == expected


def test_lone_surrogates_stay_escapes(made: MadeState) -> None:
    """Half a surrogate pair in a line stays the escape that it was, and the export stays valid UTF-8."""
    made.ingest(b'{"id":"k","url":"http://archive.example/k.jpg","t":"\\ud83d","vlm_error":null}\n')
    made.finish({"k": "Caf\u00e9."})
    data, _ = made.export()
    assert b'"t":"\\ud83d"' in data
    assert "Caf\u00e9." in data.decode()


def test_provenance(made: MadeState) -> None:
    """``--provenance`` adds one object with recipe, finish reason, tokens, flags, the picture's hash and its mirror."""
    made.ingest(pictures("a", "b"))
    made.finish({"a": "Two words"}, dead_sources={"b": "dns"}, flags=("repetition", "short"))
    records = read(made.export(provenance=True)[0])
    assert records[0]["vlm_provenance"] == {
        "recipe": RECIPE, "finish_reason": "stop", "tokens": 2, "flags": ["repetition", "short"],
        "repetition_penalty": None, "mirror": None, "image_flags": [],
        "image_sha256": hashlib.sha256(b"http://archive.example/a.jpg").hexdigest(),
    }  # fmt: skip
    assert "vlm_provenance" not in records[1]


def test_provenance_tells_the_penalty_that_was_used(made: MadeState) -> None:
    """It is the caption's own where it was made again, else the recipe's; one that waits has what its words had."""
    spec = json.dumps({"generation": {"repetition_penalty": 1.0}})
    made.ingest(pictures("a", "b", "c"))
    made.finish({"a": "A a a.", "b": "B."}, flags=("repetition",), spec=spec)
    for key in "a", "b":
        with Store.open(made.settings) as store:
            store.recaption(FailureFilter(flag=QualityFlag.REPETITION, key=key))
        if key == "a":
            made.finish({"a": "A.", "c": "C."}, spec=spec)
    records = read(made.export(provenance=True)[0])
    found = [(r["vlm_caption"], r["vlm_provenance"]["repetition_penalty"]) for r in records]
    assert found == [("A.", 1.2), ("B.", 1.0), ("C.", 1.0)]


def test_only_captioned(made: MadeState) -> None:
    """``--only-captioned`` leaves out failed, pending and unselected records."""
    made.ingest(pictures("a", "b", "c", "d"), selection=Selection(synthetic=False, limit=3))
    made.finish({"b": "Two."}, dead_sources={"a": "dns"})
    data, summary = made.export(only_captioned=True)
    assert [record["id"] for record in read(data)] == ["b"]
    assert summary.rows == 1


def test_recipe(made: MadeState) -> None:
    """The latest recipe is exported, an earlier one when the beginning of its hash names it."""
    made.ingest(pictures("a", "b"))
    made.finish({"a": "Old one.", "b": "Old two."}, recipe="aa" * 32, model="old")
    made.finish({"a": "New one."}, recipe="ab" * 32, model="new")
    latest, earlier = read(made.export()[0]), read(made.export(recipe="AAA")[0])
    assert [record.get("vlm_caption") for record in latest] == ["New one.", None]
    assert [record["vlm_caption"] for record in earlier] == ["Old one.", "Old two."]
    assert earlier[0]["vlm_caption_source"] == "old@0123abcd"
    with pytest.raises(ConfigError, match="2 recipes begin with 'a'; known: aaaaaaaaaaaa"):
        made.export(recipe="a")


def test_invalid_lines(made: MadeState) -> None:
    """Lines that are no JSON objects are left out and counted; other invalid records come out with their error."""
    content = pictures("a", "a") + b"not json\n\n[1]\n" + lines_of({"id": "d"}) + b'{"id":"\xff"}\n'
    made.ingest(content)
    data, summary = made.export()
    assert [record.get("vlm_error") for record in read(data)] == [None, "duplicate_key", "no_image_field"]
    assert (summary.rows, summary.failed, summary.invalid, summary.left_out) == (3, 0, 5, 3)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed(made: MadeState, suffix: str) -> None:
    """The name's suffix compresses; the summary's size and hash are those of the lines."""
    content = pictures(*"abc")
    made.ingest(content)
    data, summary = made.export(f"out.jsonl{suffix}")
    assert (gzip.decompress(data) if suffix == ".gz" else zstd.decompress(data)) == content
    assert (summary.size, summary.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert made.export(f"again.jsonl{suffix}")[0] == data


def test_stdout(made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` writes the lines to standard output."""
    content = pictures(*"abc")
    made.ingest(content)
    with io.BytesIO() as raw, io.TextIOWrapper(raw) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        summary = export_manifest(made.settings, "-", ExportOptions())
        assert raw.getvalue() == content
    assert summary.path == "-"


def test_failure_leaves_the_old_file(made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails half-way leaves the old file as it was and nothing beside it."""
    made.ingest(pictures(*"abc"))
    old = made.directory / "out.jsonl"
    old.write_bytes(b"precious")

    def broken(reader: Reader, manifest: int, recipe: int | None, *after: Any) -> Any:
        yield from list(rows(reader, manifest, recipe, *after))[:2]
        raise OSError(5, "Input/output error")

    rows = export_rows
    monkeypatch.setattr(export_lines, "export_rows", broken)
    with pytest.raises(EtlError, match="Input/output error"):
        made.export()
    assert old.read_bytes() == b"precious"
    assert {path.name for path in made.directory.iterdir()} == {"manifest.jsonl", "out.jsonl", "state"}


def test_links_and_pipes(made: MadeState) -> None:
    """A link stays a link to the new file; a named pipe is written, not replaced by a file."""
    content = pictures(*"abc")
    made.ingest(content)
    (made.directory / "real").mkdir()
    (made.directory / "link.jsonl").symlink_to("real/out.jsonl")
    made.export("link.jsonl")
    assert (made.directory / "link.jsonl").is_symlink()
    assert (made.directory / "real" / "out.jsonl").read_bytes() == content

    pipe = made.directory / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    export_manifest(made.settings, str(pipe), ExportOptions())
    reader.join(5)
    assert got == [content]
    assert pipe.is_fifo()


def test_two_manifests(made: MadeState) -> None:
    """Manifests follow each other in the order of their ingests; a missing line end between them is added."""
    first, second = pictures("b", "a").rstrip(b"\n"), pictures("d", "c").rstrip(b"\n")
    made.ingest(first, "z.jsonl")
    made.ingest(second, "a.jsonl")
    made.finish({"a": "One.", "c": "Two."})
    data, summary = made.export()
    assert [record["id"] for record in read(data)] == ["b", "a", "d", "c"]
    assert not data.endswith(b"\n")
    assert summary.rows == 4


def test_removed_records_and_new_order(made: MadeState) -> None:
    """After a changed manifest was ingested, the export follows it: order, changed lines, removed records."""
    made.ingest(pictures("a", "b", "c"))
    made.finish({"a": "One.", "b": "Two.", "c": "Three."})
    made.ingest(pictures("c", "x", "a"))
    data, _ = made.export()
    assert [(record["id"], record.get("vlm_caption")) for record in read(data)] == [
        ("c", "Three."), ("x", None), ("a", "One."),
    ]  # fmt: skip


def test_beside_a_live_run(made: MadeState) -> None:
    """While another run holds the state an export still works; only an export of its own is recorded."""
    content = pictures(*"abc")
    made.ingest(content)
    recorded = "SELECT path, rows, bytes, sha256 FROM exports"
    with Store.open(made.settings) as store, store.run((Stage.FETCH,)):
        assert made.export()[0] == content
        with Reader(made.settings.state) as reader:
            assert reader.rows(recorded) == []
    made.export()
    with Reader(made.settings.state) as reader:
        expected = (str((made.directory / "out.jsonl").resolve()), 3, len(content), hashlib.sha256(content).hexdigest())
        assert reader.rows(recorded) == [expected]


def test_with_fields_takes_a_line_of_many_members_apart_in_one_pass() -> None:
    """A line of three megabytes in 400,000 members, which would take many minutes if each looked at all that follow."""
    members = b"".join(b',"%d":0' % n for n in range(400_000))
    assert with_fields(b'{"vlm_caption":0' + members + b"}", {"x": 1}) == b"{" + members[1:] + b',"x":1}'


def test_long_lines_are_read_a_few_at_once(made: MadeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is full by its bytes too; every line comes out once and in order."""
    pages: list[int] = []
    read = Reader.page

    def counted(reader: Reader, *arguments: Any, **named: Any) -> list[tuple[Any, ...]]:
        page = read(reader, *arguments, **named)
        pages.append(len(page))
        return page

    monkeypatch.setattr(Reader, "page", counted)
    monkeypatch.setattr(queries, "PAGE_BYTES", 30)
    lines = b"".join(b'{"id":"%d","path":"%d.jpg"}\n' % (n, n) for n in range(5))
    made.ingest(lines)
    with Reader(made.settings.state) as reader:
        assert b"".join(row.line for row in export_rows(reader, 1, None)) == lines
        assert [line for *_, line in manifest_lines(reader, 1)] == lines.splitlines(keepends=True)
    assert pages == [2, 2, 1, 0] * 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM record_lines WHERE record = 2", "counts 3 records but 2 could be read"),
        ("UPDATE captions SET recipe = 2 WHERE id = 1", "counts 2 captions but 1 could be read"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"only_captioned": True}, {"format": "csv"}, {"shard_size": 2}])
def test_what_is_not_what_the_state_counts_is_not_exported(
    made: MadeState, damage: str, said: str, options: dict[str, Any]
) -> None:
    """Records or captions that are counted and cannot be read cost the export, not the file that is there."""
    made.ingest(pictures(*"abc"))
    made.finish({"a": "One.", "b": "Two."})
    target = made.directory / ("dir" if "shard_size" in options else "out.jsonl")
    export_manifest(made.settings, str(target), ExportOptions(**options))
    before = {path.name: path.read_bytes() for path in [target, *target.glob("shard*")] if path.is_file()}
    with closing(sqlite3.connect(made.settings.state / "state.db")) as database, database:
        database.execute("INSERT INTO recipes VALUES (2, 'x', 'm', 'r', '{}', 0, 0)")
        assert database.execute(damage).rowcount == 1
    with pytest.raises(StateError, match=said):
        export_manifest(made.settings, str(target), ExportOptions(**options))
    if "shard_size" in options:
        assert not json.loads((target / ".shards.json").read_bytes())["complete"]
        assert (target / "shard-00001.jsonl").exists(), "what is surplus by a wrong count was removed"
    else:
        assert {path.name: path.read_bytes() for path in [target]} == before
    assert not list(made.directory.rglob("*.part"))


def test_since_is_counted_too(made: MadeState) -> None:
    """An export of a part of the records passes them all, and is refused where one of them is lost."""
    made.ingest(pictures(*"abc"))
    made.finish({"a": "One."})
    assert made.export(since="1")[1].rows == 1
    with closing(sqlite3.connect(made.settings.state / "state.db")) as database, database:
        database.execute("DELETE FROM record_lines WHERE record = 3")
    with pytest.raises(StateError, match="counts 3 records but 2"):
        made.export(since="1")


@pytest.mark.parametrize("length", [200, 201, 255])
def test_a_long_name_has_room_for_its_part(made: MadeState, length: int) -> None:
    """Whatever name a file can have an export can have."""
    made.ingest(pictures("a"))
    assert made.export("é" + "x" * (length - 2))[0] == pictures("a")


def test_a_part_that_is_no_file_of_ours_is_left_alone(made: MadeState) -> None:
    """A link, a pipe and a directory under a part's name, and parts of other names, are neither opened nor removed."""
    made.ingest(pictures("a"))
    odd = [made.directory / f".out.jsonl.{n:016x}.part" for n in range(3)]
    odd[0].symlink_to("precious")
    os.mkfifo(odd[1])
    odd[2].mkdir()
    other, dead = made.directory / f".b.out.jsonl.{9:016x}.part", made.directory / f".out.jsonl.{8:016x}.part"
    for path in (other, dead, made.directory / "precious"):
        path.write_text("mine")
    assert made.export()[0] == pictures("a")
    assert all(os.path.lexists(path) for path in (*odd, other))
    assert not dead.exists()
    assert (made.directory / "precious").read_text() == "mine"
