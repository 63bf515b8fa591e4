"""Tables in, tables out: columns in their order, values as they came, and the captions behind them."""

import csv
import datetime
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.errors import ConfigError
from etl.export.columns import ADDED, MOST

parquet = pytest.importorskip("pyarrow.parquet")

CELLS = [
    ["", " Titel ", "id", "image url", "note, with comma", "=name", "titel"],
    ["0", "007", "a", "http://h.example/a.jpg", 'say "cheese"', "=1+1", "1e5"],
    ["1", "two\nlines", "b", "http://h.example/b, c.jpg", "", "'=1+1", "-3"],
    ["2", "\r\nends\r", "c", "http://h.example/c.jpg", "  spaces  ", "+49 30 123", "1.10"],
    ["3", "é\u2028\u202e", "d", "http://h.example/d.jpg", "null", "\ttab", "true"],
    ["4", '"', "e", "http://h.example/e.jpg", ";|,", "@x", "12345678901234567890.5"],
    ["5", "last row is short", "f", "http://h.example/f.jpg"],
]
CAPTIONS = {key: f'Caption, "of"\n{key}.' for key in "abcef"}


def rows_of(data: bytes) -> list[list[str]]:
    """Return the cells of a CSV."""
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_csv_in_csv_out(tmp_path: Path) -> None:
    """Every cell comes back as it was, in its place, whatever stood between, and once more from the export itself."""
    width = len(CELLS[0])
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=";").writerows(CELLS)
    data = text.getvalue().encode("utf-16")
    for number in range(2):
        made = MadeState(tmp_path / str(number))
        made.directory.mkdir()
        made.ingest(data, "in.csv")
        made.finish(CAPTIONS, dead_captions={"d": "generation"})
        data, _ = made.export("out.csv", format_options={"escape_formulae": False})
        found = rows_of(data)
        assert [row[:width] for row in found] == [row + [""] * (width - len(row)) for row in CELLS]
        assert tuple(found[0][width:]) == ADDED
        assert [row[width] for row in found[1:]] == [CAPTIONS.get(row[2], "") for row in CELLS[1:]]
        assert [row[width + 3] for row in found[1:]] == ["", "", "", "generation", "", ""]


def test_columns_of_records_that_differ(tmp_path: Path) -> None:
    """Each field has one column, where it first comes; a value that is no text is its JSON; there is a limit."""
    made = MadeState(tmp_path)
    made.ingest(
        b'{"id": "a", "url": "http://h/a", "n": 1.10, "deep": {"x": [1, null]}, "vlm_caption": "old", "vlm_key": 7}\n'
        b'{"id": "b", "url": "http://h/b", "z": "\\ud800", "n": true, "vlm_provenance": "mine"}\n'
    )
    made.finish({"a": "New."})
    rows = rows_of(made.export("out.csv")[0])
    assert rows[0][:6] == ["id", "url", "n", "deep", "z", "vlm_provenance"]
    assert rows[1][2:7] == ["1.10", '{"x": [1, null]}', "", "", "New."]
    assert rows[2][2:7] == ["true", "", "?", "mine", ""]
    rows = rows_of(made.export("told.csv", provenance=True)[0])
    assert '"recipe": "abab' in rows[1][5] and rows[2][5] == "mine"
    made.export("out.parquet")
    typed = parquet.read_table(tmp_path / "out.parquet")
    assert typed.column("n").to_pylist() == ["1.10", "true"] and typed.column("z").to_pylist() == [None, "?"]
    assert typed.column("deep").to_pylist() == [{"x": [1, None]}, None]
    made.ingest(b"id,url,tag,tag\nd,http://h/d,1,2\n", "twice.csv")
    rows = rows_of(made.export("twice-out.csv")[0])
    assert rows[0][6:8] == ["tag", "tag#2"] and rows[3][6:8] == ["1", "2"]
    wide = ", ".join(f'"f{number}": 0' for number in range(MOST))
    made.ingest(b'{"id": "c", "url": "http://h/c", %s}\n' % wide.encode(), "wide.jsonl")
    with pytest.raises(ConfigError, match="more than 5,000 different fields; export them as jsonl"):
        made.export("out.csv")


def test_parquet_in_parquet_out(tmp_path: Path) -> None:
    """Columns keep their types and values; where the file has gone, those that JSON knows."""
    import pyarrow as arrow

    at = datetime.datetime(1950, 1, 2, 3, 4, 5, 678901)
    values: dict[str, tuple[Any, list[Any]]] = {
        "id": (arrow.string(), ["a", "b"]),
        "url": (arrow.large_string(), ["http://h.example/a.jpg", "http://h.example/b.jpg"]),
        "small": (arrow.int8(), [-3, None]),
        "large": (arrow.uint64(), [2**64 - 1, 0]),
        "single": (arrow.float32(), [0.5, None]),
        "whole": (arrow.float64(), [1.0, 1e300]),
        "yes": (arrow.bool_(), [True, None]),
        "tags": (arrow.list_(arrow.string()), [["x", None], []]),
        "deep": (
            arrow.struct([("at", arrow.timestamp("us")), ("b", arrow.list_(arrow.binary()))]),
            [{"at": at, "b": [b"\xff\0", b"text", b"/9j/"]}, None],
        ),
        "at": (arrow.timestamp("us"), [at, None]),
        "zone": (arrow.timestamp("ms", tz="UTC"), [None, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)]),
        "day": (arrow.date32(), [datetime.date(1950, 1, 2), None]),
        "price": (arrow.decimal128(9, 2), [Decimal("1.10"), None]),
        "data": (arrow.binary(), [bytes(range(256)), b"plain"]),
        "image": (
            arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
            [{"bytes": b"\x89PNG", "path": "p"}, None],
        ),
        "kind": (arrow.dictionary(arrow.int32(), arrow.string()), ["k", None]),
        "clock": (arrow.time64("us"), [datetime.time(1, 2, 3), None]),
        "none": (arrow.null(), [None, None]),
    }
    schema = arrow.schema([(name, kind) for name, (kind, _) in values.items()])
    table = arrow.table({name: cells for name, (_, cells) in values.items()}, schema)
    parquet.write_table(table, tmp_path / "made.parquet")
    made = MadeState(tmp_path)
    made.ingest((tmp_path / "made.parquet").read_bytes(), "in.parquet")
    made.finish({"a": "A."})
    made.export("out.parquet")
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*values, *ADDED]
    text = {"clock": ["01:02:03", None], "none": [None, None]}
    for name, (kind, cells) in values.items():
        assert found.column(name).to_pylist() == text.get(name, cells), name
        assert found.schema.field(name).type == (arrow.string() if name in text else kind), name
    assert found.column("vlm_caption").to_pylist() == ["A.", None]
    (tmp_path / "in.parquet").unlink()
    made.export("gone.parquet")
    gone = parquet.read_table(tmp_path / "gone.parquet").schema
    types = {"small": "int64", "whole": "double", "yes": "bool", "tags": "list<element: string>", "at": "string"}
    assert {name: str(gone.field(name).type) for name in types} == types
