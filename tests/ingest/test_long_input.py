"""What is long, or has many parts, takes time in proportion to its length."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.workbench import Workbench

from etl.data_urls import data_url, decoded, taken_out
from etl.errors import ManifestError
from etl.ingest import record_parser
from etl.ingest.fields import split
from etl.ingest.manifest_formats import json_documents
from etl.ingest.manifest_formats.json_scanner import Scanner
from etl.ingest.record_parser import _depth


def pictures_in_a_record() -> bool:
    texts = [base64.b64encode(b"GIF89a%060d" % number).decode() for number in range(15_000)]
    line = taken_out(json.dumps(texts).encode(), {text: data_url(decoded(text)) for text in texts})
    return not any(text.encode() in line for text in texts[:3])


def members_of_an_object() -> bool:
    text = json.dumps({f"a{number}": [] if number % 2 else "x y" for number in range(6000)})
    return _kept(json_documents._members(Scanner(io.StringIO(text), ""))) == 6000


def _kept(members: Iterator[object]) -> int:
    try:
        while True:
            next(members)
    except StopIteration as done:
        return len(done.value)


LONG: dict[str, Callable[[], bool]] = {
    "spaces before an address": lambda: split(" " * 100_000 + "x://") == ["x://"],
    "quotes in a text without an end": lambda: _depth(b"[" * 201 + b'"' + b'\\"' * 20_000) == 201,
    "members of an object": members_of_an_object,
    "pictures in a record": pictures_in_a_record,
}


def test_an_object_without_end_is_not_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it is longer than a record, unless its members are records; they may begin without any."""
    monkeypatch.setattr(json_documents, "MAX_LINE", 20_000)
    for value, found in (({"x": "y" * 90}, 0), ({"url": "http://a.example/1.jpg"}, 1000)):
        members = {f"a{number}": value if number > 3 else {"x": "y"} for number in range(1000)}
        scanner = Scanner(io.StringIO(json.dumps(members)), "")
        records = json_documents._members(scanner)
        if found:
            assert len(list(records)) == found
            continue
        with pytest.raises(ManifestError, match="a record of more than 20000 characters"):
            next(records)
        assert 20_000 < scanner.offset < 30_000


@pytest.mark.parametrize("name", LONG)
def test_length_costs_in_proportion(name: str) -> None:
    """A second of the processor at most, of which a few hundredths are taken; by the square it would be several."""
    begun = time.thread_time()
    assert LONG[name]()
    assert time.thread_time() - begun < 1


def test_a_line_that_is_kept_for_each_of_very_many_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would swell as the square of their number; one line says why and what to do, others go on."""
    monkeypatch.setattr(record_parser, "MAX_COPIES", 20_000)
    bench, urls = Workbench(tmp_path), [f"http://a.example/{number:03}.jpg" for number in range(40)]
    urls[5] = base64.b64encode(b"GIF89a%0500d" % 1).decode()
    bench.ingest({"id": "many", "images": urls}, {"id": "few", "images": urls[:9]}, {"id": "one", "url": urls[0]})
    (tmp_path / "long.jsonl").write_text(f'{{"id": "long", "url": "{urls[0]}", "x": "{"y" * 30_000}"}}\n')
    bench.ingest_path(str(tmp_path / "long.jsonl"))
    assert bench.rows("SELECT key, error FROM records WHERE state = 'invalid'") == [(
        "many", "40 pictures in a line of 1.2 KiB, which state and exports would have once for each: 47.1 KiB, more "
        "than 19.5 KiB; give each picture, or every few, a line of its own",
    )]  # fmt: skip
    assert bench.rows("SELECT count(*) FROM records WHERE state = 'active'") == [(11,)]
    assert bench.rows("SELECT instr(line, ?) > 0 FROM record_lines LIMIT 1", urls[5]) == [(1,)], "it is as it came"
