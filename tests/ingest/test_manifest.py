"""Reading manifests: every format becomes lines, and what cannot be read ends with one clear error."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etl.compression import zstd
from etl.errors import ManifestError
from etl.images.formats import suffixes
from etl.ingest import manifest_formats
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats import csv_rows, jsonl
from etl.ingest.manifest_formats.file import BadRow, ManifestFile

Pack = Callable[[bytes], bytes]

LINES = [b'{"id":"1","url":"http://a.example/1.jpg"}\n', b"\n", b'{"id":"2","url":"http://a.example/2.jpg"}\r\n', b"{}"]


def _lines(path: Path) -> list[bytes]:
    return list(Manifest(str(path)).lines())


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "pack"),
    [("m.jsonl", bytes), ("m.jsonl.gz", gzip.compress), ("m.zst", zstd.compress), ("m", zstd.compress)],
)
def test_json_lines_come_out_byte_for_byte(tmp_path: Path, name: str, pack: Pack) -> None:
    """Plain or compressed, whatever its name, a file gives its lines with their line ends, blank ones included."""
    manifest = Manifest(str(_written(tmp_path / name, pack(b"".join(LINES)))))
    assert list(manifest.lines()) == LINES
    assert list(manifest.lines()) == LINES, "it can be read again"
    assert manifest.rereadable
    assert manifest.path == str((tmp_path / name).resolve())


def test_many_gzip_members_and_zstd_frames_are_one_file(tmp_path: Path) -> None:
    """Files put together with ``cat`` are read to the end of the last part."""
    for name, pack in (("m.gz", gzip.compress), ("m.zst", zstd.compress)):
        assert _lines(_written(tmp_path / name, b"".join(map(pack, LINES)))) == LINES


def test_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    """The mark that some editors write before the first record is not part of it."""
    assert _lines(_written(tmp_path / "m.jsonl", b"\xef\xbb\xbf" + LINES[0])) == LINES[:1]


def test_file_cut_short_gives_its_beginning_and_then_an_error(tmp_path: Path) -> None:
    """Lines before the cut are read; the cut is an error, not the end of the file."""
    lines = [b'{"id": %d, "random": "%s"}\n' % (n, os.urandom(30).hex().encode()) for n in range(30_000)]
    packs: tuple[Pack, ...] = (gzip.compress, zstd.compress, lambda data: bz2.compress(data, 1), _quick_xz)
    for pack in packs:
        packed = pack(b"".join(lines))
        seen: list[bytes] = []
        with pytest.raises(ManifestError, match="cut short or damaged"):
            seen.extend(iter(Manifest(str(_written(tmp_path / "m", packed[: len(packed) // 2]))).lines()))
        assert seen
        assert seen == lines[: len(seen)]


def _quick_xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=0)


def _checked_zstd(content: bytes) -> bytes:
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


@pytest.mark.parametrize("pack", [gzip.compress, _checked_zstd])
def test_damaged_compression_is_an_error(tmp_path: Path, pack: Pack) -> None:
    """Garbage in the middle of a compressed file is noticed, by its checksum if by nothing else."""
    packed = bytearray(pack(os.urandom(50_000).hex().encode()))
    packed[20_000:20_100] = b"\xff" * 100
    with pytest.raises(ManifestError, match="cut short or damaged"):
        _lines(_written(tmp_path / "m", bytes(packed)))


def test_missing_file(tmp_path: Path) -> None:
    """A manifest that is not there, or whose name cannot be one, is a usage error."""
    for name in ("nothing.jsonl", "x" * 5000, "nul\0byte"):
        with pytest.raises(ManifestError, match="no manifest") as caught:
            Manifest(str(tmp_path / name))
        assert caught.value.exit_code == 2


def test_empty_file_has_no_lines(tmp_path: Path) -> None:
    """An empty file is no error of the reader's."""
    assert _lines(_written(tmp_path / "m.jsonl", b"")) == []


def test_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the limit ends the reading with its number, and is never held in memory whole."""
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    path = _written(tmp_path / "m.jsonl", LINES[0] + b"x" * 1000 + b"\n")
    with pytest.raises(ManifestError, match="line 2: longer than 1000 bytes"):
        _lines(path)
    assert len(_lines(_written(path, b"{" * 1000))) == 1


def _csv(tmp_path: Path, content: bytes, name: str = "m.csv") -> list[dict[str, object]]:
    return [json.loads(line) for line in _lines(_written(tmp_path / name, content))]


def test_csv_rows_become_objects(tmp_path: Path) -> None:
    """Quotes, commas and line ends inside values survive; missing values are null; a mark and CRLF do no harm."""
    content = b'\xef\xbb\xbfid,title,url\r\n1,"A ""quay"",\r\nwith\nboats",http://a.example/1.jpg\r\n\r\n2,\xc3\xa9\r\n'
    assert _csv(tmp_path, content) == [
        {"id": "1", "title": 'A "quay",\r\nwith\nboats', "url": "http://a.example/1.jpg"},
        {"id": "2", "title": "é", "url": None},
    ]
    assert _csv(tmp_path, gzip.compress(content), "m.CSV.gz")[1]["title"] == "é"


def test_csv_row_that_is_not_utf8_is_a_bad_line_of_its_own(tmp_path: Path) -> None:
    """A byte that is no UTF-8 reaches the record that it stands in, and no other."""
    first, second = _lines(_written(tmp_path / "m.csv", b"id,title\n1,caf\xe9\n2,caf\xc3\xa9\n"))
    with pytest.raises(UnicodeDecodeError):
        first.decode()
    assert json.loads(second) == {"id": "2", "title": "café"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,a,b", "3 values, more than the 2 columns of the header"),
        (b'1,"a', "not valid CSV"),
        (b'1,"a"b', "not valid CSV"),
        (b'"1,a\n2,b', "not valid CSV"),
    ],
)
def test_broken_csv_row_costs_only_itself(tmp_path: Path, row: bytes, reason: str) -> None:
    """A value too many or a stray quote, also one that a later row closes, spoils its own line and no other."""
    path = _written(tmp_path / "m.csv", b"id,url\n0,x\n" + row + b'\n8,"x"\n9,\n')
    found = _lines(path)
    bad = [line for line in found if isinstance(line, BadRow)]
    assert [line.reason.partition(":")[0] for line in bad] == [reason]
    good = [json.loads(line)["id"] for line in found if line not in bad]
    assert good == (["0", "2", "8", "9"] if b"\n" in row else ["0", "8", "9"])


def test_directory_gives_its_pictures_in_order(tmp_path: Path) -> None:
    """Every picture below the directory is a record, sorted by path; other files and hidden ones are only counted.

    A state and an export that lie there are neither.
    """
    pictures = [f"c/{number:02}{suffix.upper() if number % 2 else suffix}" for number, suffix in enumerate(suffixes())]
    hidden = ("._a.png", ".DS_Store", "b/.x/1.jpg", "__MACOSX/a.png", "b/Thumbs.db", "Desktop.ini", ".hidden.gif")
    for name in ("b/2.JPG", "a.png", "b/1.tif", "notes.txt", "n.TXT", "README", "b/c/scan.pdf", *hidden, *pictures):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    # What a run in this very directory leaves there.
    for name in ("state/state.db", "state/images/working/00/1.jpg", "out/.shards.json", "out/shard-00000/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    manifest = Manifest(str(tmp_path))
    for _ in range(2):
        assert [json.loads(line)["path"] for line in manifest.lines()] == [
            "a.png", "b/1.tif", "b/2.JPG", "b/c/scan.pdf", *pictures,
        ]  # fmt: skip
        assert manifest.skipped == {"hidden": 7, ".txt": 2, "without a suffix": 1}
    assert manifest.base == tmp_path.resolve()


def test_a_file_whose_name_cannot_be_stored_is_told(tmp_path: Path) -> None:
    """A name in another encoding than UTF-8 makes a bad row, which says what to do; its neighbours are read."""
    for name in (b"a.jpg", b"caf\xe9.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    good, bad = _lines(tmp_path)
    assert json.loads(good)["id"] == "a.jpg"
    assert isinstance(bad, BadRow)
    assert bad.reason == r"a name that is not UTF-8: caf\xe9.jpg; rename the file"


def test_odd_file_names_stay_paths(tmp_path: Path) -> None:
    """A colon does not make a file name a URL, and white space at its beginning stays."""
    for name in ("Plan: Montreal.jpg", " spaced.jpg", "http:x.jpg"):
        (tmp_path / name).write_bytes(b"")
    records = [json.loads(line) for line in Manifest(str(tmp_path)).lines()]
    assert [record["id"] for record in records] == [" spaced.jpg", "Plan: Montreal.jpg", "http:x.jpg"]
    assert all(record["path"] == f"./{record['id']}" for record in records)


def test_standard_input_can_be_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` reads standard input, packed or not, and resolves paths against the working directory."""
    for content in (b"".join(LINES), gzip.compress(b"".join(LINES))):
        reading, writing = os.pipe()
        with os.fdopen(reading) as stdin:
            os.write(writing, content)
            os.close(writing)
            monkeypatch.setattr("sys.stdin", stdin)
            manifest = Manifest("-")
            assert (manifest.name, manifest.rereadable, list(manifest.lines())) == ("stdin", False, LINES)
            assert manifest.base == Path.cwd()


def test_endless_csv_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row may be no longer than a line of JSON; one that quotes spread over lines costs its first; many may be."""
    monkeypatch.setattr(csv_rows, "MAX_LINE", 1000)
    path = tmp_path / "m.csv"
    path.write_bytes(b"a" + b",a" * 900)
    with pytest.raises(ManifestError, match="a row of more than 1000 characters"):
        list(Manifest(str(path)).lines())
    path.write_bytes(b'id,url\n"' + b"x,y\n" * 900)
    assert [isinstance(line, BadRow) for line in _lines(path)] == [True] + 899 * [False]
    path.write_bytes(b"id,url\n" + b"1,http://a.example\n" * 300)
    assert len(list(Manifest(str(path)).lines())) == 300


def _tab_separated(file: ManifestFile) -> Iterator[bytes]:
    """A reader that somebody adds."""
    with file.open() as stream:
        for line in stream:
            yield json.dumps(dict(zip(("id", "url"), line.decode().split(), strict=True))).encode() + b"\n"


def test_another_format_is_a_reader_and_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a format that was added to the table are read by its reader, compressed ones too, the others as ever."""
    line = manifest_formats.has_suffix(".tsv"), _tab_separated
    monkeypatch.setattr(manifest_formats, "READERS", (line, *manifest_formats.READERS))
    rows = b"a\thttp://a.example/1.jpg\nb\thttp://a.example/2.jpg\n"
    wanted = [{"id": "a", "url": "http://a.example/1.jpg"}, {"id": "b", "url": "http://a.example/2.jpg"}]
    assert _csv(tmp_path, rows, "m.tsv") == _csv(tmp_path, gzip.compress(rows), "m.TSV.gz") == wanted
    assert _lines(_written(tmp_path / "m.jsonl", b"".join(LINES))) == LINES
