"""What is long, or has many parts, takes time in proportion to its length."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator

import pytest

from etl.data_urls import data_url, decoded, taken_out
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


@pytest.mark.parametrize("name", LONG)
def test_length_costs_in_proportion(name: str) -> None:
    """A second of the processor at most, of which a few hundredths are taken; by the square it would be several."""
    begun = time.thread_time()
    assert LONG[name]()
    assert time.thread_time() - begun < 1
