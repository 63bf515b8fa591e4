"""Manifests from strangers: every line is judged by itself, and no file ends in anything but an error of ours."""

import csv
import gzip
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.fuzzing import SOAK_FACTOR, Tally, harmed, inputs, own_memory
from support.states import assert_sound, query, settings_for

from etl.compression import zstd
from etl.errors import ManifestError, item_error_classes
from etl.export.stage import ExportOptions, export, with_fields
from etl.ingest import stage as ingest_module
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats import csv_rows, json_documents, jsonl, url_list
from etl.ingest.options import IngestOptions
from etl.ingest.record_parser import MAX_DEPTH
from etl.ingest.stage import ingest
from etl.state.read import reader as queries_module
from etl.state.read.reader import Reader
from etl.state.store import Store

LINES, FILES = 240, 26
LINES_IN_ONE = 150

MEMORY, SPARE_MEMORY = 20, 24 * 2**20
"""Times the limit of a line, and bytes beside it, which a file may take: a batch, a row's columns, SQLite's cache."""

SLUGS = {cls.slug for cls in item_error_classes()}
ROWS = (
    "SELECT position, state, coalesce(r.error_class, ''), coalesce(r.error, ''), l.line FROM records r "
    "JOIN record_lines l ON l.record = r.id"
)
PICTURE = re.compile(rb"(?<=;base64,)[^\"]*")
"""What stands in the state under a name, and in an export as it came."""

ADDED = {"vlm_caption": "Un cône \u2028 \U0001f600", "vlm_error": None}

READ_FIELDS = (
    "metadata_filename", "id", "key", "external_url", "url", "image_url", "image", "path", "description_source",
    "name", "title", "cote", "date", "attributes_map", "portal_record", "vlm_caption", "vlm_error",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -0.0, 1e308, 10**4000, -(10**600), 0.1, "", " ", "a\0b", "\ud800", "x\udfff", "\u202e\u2066", [],
    {}, [[]], {"Date": [1, {"a": None}]}, {"Date": {"Date": "x"}}, "x" * 700, "file:///%00", "file://[", "http://[::1",
    "//", "http://a\x1b[2J.example/", "http://user:pw@a.example:99999/", "http://xn--\u00e9.example/",
    "../../etc/passwd", "file://host/share", "http://\ud800.example/", "data:image/png;base64,xx", "synthetic",
    ["synthetic"],
)  # fmt: skip


def record(rng: random.Random, number: int) -> dict[str, Any]:
    """Return a record shaped like the archive's."""
    date = rng.choice(("Décennie 1920", "1932", "", "s. d."))
    cote = f"VM94,SY,SS1,SSS17,D{number}"
    url = f"http://depot.example/phototheque-archives/jpeg/VM94-Z{number}.jpg"
    return {
        "metadata_filename": f"metadata_{number}.json", "image_exists": True, "image_size_bytes": rng.randrange(10**7),
        "name": rng.choice(("Rue Saint-Antoine", cote, "S/O", "")), "description": "À l'angle de la rue\n\"est\" \\",
        "attributes": [{"trait_type": "Date", "value": date}, {"trait_type": "Cote", "value": cote}],
        "external_url": url, "portal_record": {"_id": number, "Titre": "Rue", "Date": date, "Cote": cote},
        "aerial_matches": [], "attributes_map": {"Date": date, "Cote": cote}, "cote": cote,
        "description_source": rng.choice(("original", "synthetic", "original+synthetic")),
        "metadata_quality": {"quality_flags": ["synthetic-description"], "score": 0.25},
    }  # fmt: skip


def dumped(value: object, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.3, separators=rng.choice(((",", ":"), (", ", ": "))))
    return text.encode("utf-8", "surrogatepass")


def good_line(rng: random.Random, number: int) -> bytes:
    return dumped(record(rng, number), rng)


def wrong_type(rng: random.Random, number: int) -> bytes:
    """A field that the program reads holds what no archive would put there."""
    fields = record(rng, number)
    for name in rng.sample(READ_FIELDS, rng.randint(1, 3)):
        fields[name] = rng.choice(ODD_VALUES)
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return dumped(fields, rng)
    finally:
        sys.set_int_max_str_digits(limit)


def nested(rng: random.Random, number: int) -> bytes:
    """A field nests, often as deep as a parser just bears."""
    depth = rng.choice((3, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, 400, rng.randrange(880, 1010), 5000, 100_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"Date":', "}]")))
    value = opened * depth + rng.choice(("1", '"x"', "[]", "")) + closed * depth
    name = rng.choice(READ_FIELDS)
    fields = {key: value for key, value in record(rng, number).items() if key != name}
    return dumped(fields, rng)[:-1] + f',"{name}":{value},"vlm_caption":1}}'.encode()


def repeated_names(rng: random.Random, number: int) -> bytes:
    """A name comes twice or more, also spelt with escapes, also one of the export's own."""
    line = good_line(rng, number)[:-1]
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(READ_FIELDS)
        spelt = "".join(f"\\u{ord(c):04x}" if rng.random() < 0.2 else c for c in name)
        blank = rng.choice(("", " ", "\t", " \r "))
        value = json.dumps(rng.choice(("x", None, 5, {"a": ["}", '"']}, "http://b.example/x.jpg")))
        line += f',{blank}"{spelt}"{blank}:{blank}{value}{blank}'.encode()
    return line + b"}"


def numbers(rng: random.Random, number: int) -> bytes:
    """Numbers larger than any machine's, and words that are none in JSON."""
    texts = ("9" * 4299, "9" * 4301, "1e999", "-1e-999", "0." + "3" * 900, "NaN", "-Infinity", "00", "+1", "0x1", "1_0")
    name = rng.choice((*READ_FIELDS, "other"))
    return good_line(rng, number)[:-1] + f',"{name}":{rng.choice(texts)}}}'.encode()


def encodings(rng: random.Random, number: int) -> bytes:
    """Other encodings, byte order marks, and characters that some readers take for line ends."""
    line = good_line(rng, number)
    text = line.decode("utf-8", "replace")
    return rng.choice((
        b"\xef\xbb\xbf" + line, b"\xef\xbb\xbf" * 2 + line, text.encode("utf-16"), text.encode("utf-16-be"),
        text.encode("utf-32-le"), text.encode("cp1252", "replace"), line + b"\xc2\x85\xe2\x80\xa8", b"\x0b\x0c" + line,
        b"\0" * rng.randrange(1, 50), line.replace(b"e", b"\0", 1), b"\x1e" + line, line + b"\0", line + b"}", line * 2,
    ))  # fmt: skip


def many_members(rng: random.Random, number: int) -> bytes:
    """Far more names than any record has."""
    count = rng.choice((1_000, 20_000))
    return good_line(rng, number)[:-1] + b"".join(b',"vlm_%d":0' % n for n in range(count)) + b"}"


def harmed_line(rng: random.Random, number: int) -> bytes:
    return harmed(good_line(rng, number), rng)


LINE_KINDS: dict[str, Callable[[random.Random, int], bytes]] = {
    "unharmed": good_line, "bytes": harmed_line, "wrong type": wrong_type, "nesting": nested,
    "repeated names": repeated_names, "numbers": numbers, "encodings": encodings, "many members": many_members,
}  # fmt: skip


def judged(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line, judged without the program; ``None`` when it is none or nests too deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        # Pairs keep values whose names come again.
        pairs = json.loads(line.decode("utf-8-sig"), object_pairs_hook=Pairs)
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    finally:
        sys.setrecursionlimit(limit)
    return value if isinstance(value, dict) and depth(pairs) <= MAX_DEPTH else None


class Pairs(list[tuple[str, Any]]):
    """An object with all its members."""


def depth(value: object) -> int:
    """Return how deep arrays and objects lie in each other."""
    level, deepest = [value], 0
    while level := [one for one in level if isinstance(one, list)]:
        deepest += 1
        level = [inner for one in level for inner in ([last for _, last in one] if isinstance(one, Pairs) else one)]
    return deepest


def test_lines(tmp_path: Path, tally: Tally) -> None:
    """Every line is a record or an invalid one with its reason and number; valid ones are exported byte for byte."""
    feed_lines(tmp_path, LINES, tally)


def test_files(tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is ingested, or refused in one line with nothing half done, within bounded memory."""
    use_small_limits(monkeypatch)
    feed_files(tmp_path, FILE_KINDS, FILES, tally)


@pytest.mark.soak
def test_lines_soak(tmp_path: Path, tally: Tally) -> None:
    """The same with many more lines."""
    feed_lines(tmp_path, LINES * SOAK_FACTOR, tally)


@pytest.mark.soak
def test_files_soak(tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with many more files."""
    use_small_limits(monkeypatch)
    feed_files(tmp_path, FILE_KINDS, FILES * SOAK_FACTOR, tally)


@pytest.mark.soak
def test_great_files_soak(tmp_path: Path, tally: Tally) -> None:
    """The largest files, against the limits that the program has."""
    feed_files(tmp_path, ("bomb", "csv, endless", "giant line"), SOAK_FACTOR // 8, tally)


def use_small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bombs are made to these measures, so smaller ones show the same sooner."""
    monkeypatch.setattr(jsonl, "MAX_LINE", 2**20)
    for reader in (csv_rows, json_documents, url_list):
        monkeypatch.setattr(reader, "MAX_LINE", 2**20)
    monkeypatch.setattr(ingest_module, "BATCH_BYTES", 2**21)
    monkeypatch.setattr(queries_module, "PAGE_BYTES", 2**21)


def longest_line() -> int:
    """Return the limit that holds now."""
    return int(vars(jsonl)["MAX_LINE"])


# Lines ----------------------------------------------------------------------------------------------------------


def feed_lines(directory: Path, count: int, tally: Tally) -> None:
    batch: list[tuple[str, int, bytes]] = []
    with own_memory(tally):
        for kind, number, rng in inputs(LINE_KINDS, count):
            content = LINE_KINDS[kind](rng, number)
            batch += [(kind, number, line) for line in content.split(b"\n")]
            if number % LINES_IN_ONE == LINES_IN_ONE - 1 or number == count - 1:
                take_lines(directory / str(number), batch, tally)
                batch.clear()


def take_lines(directory: Path, batch: list[tuple[str, int, bytes]], tally: Tally) -> None:
    """Ingest lines as one manifest, export it, and judge each line."""
    directory.mkdir()
    manifest, state = directory / "m.jsonl", directory / "state"
    # The first line decides whether the file is an array, and loses its byte order mark.
    content = [b"", *(line for _, _, line in batch)]
    manifest.write_bytes(b"\n".join(content) + b"\n")
    with Store.open(settings_for(state)) as store:
        ingest(store, Manifest(str(manifest)), IngestOptions())
    with Reader(state) as reader:
        export(reader, str(directory / "out.jsonl"), ExportOptions())
    assert_sound(state)
    found = {row[0]: row[1:] for row in query(state, ROWS)}
    exported = iter((directory / "out.jsonl").read_bytes().split(b"\n"))
    for position, (kind, number, line) in enumerate(batch, 2):
        with tally.trying(kind, number) as outcome:
            if not line.strip():
                assert position not in found
                outcome.append("blank")
                continue
            outcome.append(judge_line(line, found.pop(position), exported))
    assert not found
    assert list(exported) == [b""]


def judge_line(line: bytes, row: tuple[str, str, str, bytes], exported: Any) -> str:
    """Compare what became of one line with what should; return it."""
    state, error_class, error, stored = row
    if stored == line.rstrip()[:-1] + b"\n" and line.rstrip().endswith(b"},"):
        # A comma behind an object is taken off.
        line = line.rstrip()[:-1]
    # So is what stands before one in a sequence of JSON texts (RFC 7464).
    line = line.removeprefix(b"\x1e")
    value = judged(line)
    assert stored == line + b"\n"
    assert (value is None) == (error_class == "invalid_json"), (error_class, error)
    if value is None:
        assert state == "invalid" and error
        return error_class
    out = next(exported)
    ours = {"vlm_caption", "vlm_error", "vlm_captioned_at", "vlm_caption_source", "vlm_provenance"}
    kept = {name: inner for name, inner in value.items() if name not in ours}
    assert same(json.loads(with_fields(line, ADDED)), kept | ADDED)
    if state != "invalid":
        assert out == line and not error_class
        return state
    assert error_class in SLUGS and error and error.isprintable(), error
    assert same(json.loads(out.decode("utf-8-sig")), kept | {"vlm_caption": None, "vlm_error": error_class})
    return error_class


def same(one: object, other: object) -> bool:
    """Return whether two values of JSON are the same, names in order."""
    return repr(one) == repr(other)


# Files ----------------------------------------------------------------------------------------------------------


def some_lines(rng: random.Random) -> bytes:
    return b"".join(good_line(rng, number) + b"\n" for number in range(rng.randint(1, 30)))


def packed(data: bytes, rng: random.Random) -> bytes:
    return gzip.compress(data, 1) if rng.random() < 0.5 else zstd.compress(data)


def bomb(rng: random.Random) -> bytes:
    """A few bytes that swell: one line without end, blanks, or long lines that are each a record."""
    if rng.random() < 0.5:
        head = rng.choice((b"", b'{"a":"', b"["))
        return packed(head + rng.choice((b" ", b"\n", b"a", b"[", b"\0", b",")) * int(1.2 * longest_line()), rng)
    line = b'{"id":"%d","url":"http://a.example/x.jpg","x":"' + b"x" * (longest_line() // 2) + b'"}\n'
    return b"".join(zstd.compress(line % n) for n in range(40))


def comma_separated(rng: random.Random) -> bytes:
    out = io.StringIO()
    names = rng.sample((*READ_FIELDS, "", "id", "url"), rng.randint(1, 8))
    rows = csv.writer(out, quoting=rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))
    rows.writerow(names)
    for _ in range(rng.randint(0, 20)):
        rows.writerow(
            [str(rng.choice(ODD_VALUES[7:]))[:50] for _ in range(len(names) + rng.choice((0, 0, 0, 0, -1, 1)))]
        )
    data = out.getvalue().encode("utf-8", "surrogatepass")
    return harmed(data, rng) if rng.random() < 0.5 else data


def endless_row(rng: random.Random) -> bytes:
    """A CSV whose header or first row does not end: in columns, in quotes, or in quoted line ends."""
    piece = rng.choice((b",", b"a,", b'"\n",', b'"' + b"a" * 1000 + b'\n",', b'"a\n'))
    return packed(rng.choice((b"", b"id,url\n")) + piece * (int(1.5 * longest_line()) // len(piece)), rng)


FILE_KINDS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "packed, harmed": ("m.gz", lambda rng: harmed(packed(some_lines(rng), rng), rng)),
    "packed, cut": ("m.zst", lambda rng: (data := packed(some_lines(rng), rng))[: rng.randrange(len(data))]),
    "packed, joined": ("m.gz", lambda rng: b"".join(packed(some_lines(rng), rng) for _ in range(3))),
    "packed, tail": ("m.gz", lambda rng: packed(some_lines(rng), rng) + rng.choice((bytes(9), b"x", b"\x1f\x8b"))),
    "packed twice": ("m.gz", lambda rng: packed(packed(some_lines(rng), rng), rng)),
    "bomb": ("m.jsonl.zst", bomb),
    "csv": ("m.csv", comma_separated),
    "csv, endless": ("m.csv.gz", endless_row),
    "csv, utf-16": ("m.csv", lambda rng: comma_separated(rng).decode("utf-8", "replace").encode("utf-16")),
    "jsonl, harmed": ("m.jsonl", lambda rng: harmed(some_lines(rng), rng)),
    "jsonl, utf-16": ("m.jsonl", lambda rng: some_lines(rng).decode("utf-8", "replace").encode("utf-16")),
    "array": ("m.json", lambda rng: b" [" + some_lines(rng).replace(b"\n", b",")),
    "array, harmed": ("m.json", lambda rng: harmed(b"[" + some_lines(rng).replace(b"}\n{", b"},\n{") + b"]", rng)),
    "wrapped": (
        "m.json", lambda rng: harmed(b'{"n": 1, "items": [' + some_lines(rng).replace(b"}\n{", b"},{") + b"]}", rng),
    ),
    "tsv, harmed": ("m.tsv", lambda rng: harmed(comma_separated(rng).replace(b",", b"\t"), rng)),
    "semicolons": ("m.csv", lambda rng: b"sep=;\n" + comma_separated(rng).replace(b",", b";")),
    "list, harmed": ("m.txt", lambda rng: harmed(b"http://a.example/x,y z.jpg\n" * rng.randint(1, 40), rng)),
    "no text": ("m.jsonl", lambda rng: rng.randbytes(rng.choice((0, 1, 3, 4, 500, 5000)))),
    "giant line": ("m.jsonl", lambda rng: good_line(rng, 1)[:-1] + b"," * (6 * longest_line())),
}  # fmt: skip


def feed_files(directory: Path, kinds: Iterable[str], count: int, tally: Tally) -> None:
    for kind, number, rng in inputs(kinds, count):
        name, make = FILE_KINDS[kind]
        folder = directory / str(number)
        folder.mkdir()
        (folder / name).write_bytes(make(rng))
        with tally.trying(kind, number) as outcome:
            outcome.append(take_file(folder / name, folder / "state", tally))
        shutil.rmtree(folder)
    assert tally.memory < SPARE_MEMORY + MEMORY * longest_line()


def take_file(manifest: Path, state: Path, tally: Tally) -> str:
    """Ingest a file, export what is in the state after it, judge both; return how it went."""
    outcome, out = "ingested", manifest.with_name("out.jsonl")
    with own_memory(tally):
        with Store.open(settings_for(state)) as store:
            try:
                assert ingest(store, Manifest(str(manifest)), IngestOptions()).records > 0
            except ManifestError as error:
                assert manifest.name in str(error)
                outcome = "refused"
        with Reader(state) as reader:
            export(reader, str(out), ExportOptions())
    assert_sound(state)
    rows = sorted(query(state, ROWS))
    for _, became, error_class, said, _ in rows:
        assert bool(said) == (became == "invalid") and error_class in SLUGS | {""}
    untouched = [PICTURE.sub(b"", line.rstrip(b"\n")) for _, became, _, _, line in rows if became != "invalid"]
    exported = [PICTURE.sub(b"", line) for line in out.read_bytes().split(b"\n") if line]
    assert untouched == [line for line in exported if b'"vlm_error":"' not in line]
    return outcome


def test_memory_is_measured() -> None:
    """The measure of memory sees what a block holds, or its limit would limit nothing."""
    tally = Tally("measure")
    with own_memory(tally):
        held = bytearray(64 * 2**20)
    assert len(held) <= tally.memory <= 2 * len(held)
