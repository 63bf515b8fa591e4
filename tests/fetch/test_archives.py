"""Pictures that lie in archives."""

import bz2
import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from support.workbench import Workbench, scenes

from etl import archives
from etl.domain.views import StageSummary
from etl.fetch import archives as fetch_archives
from etl.fetch.estimate import estimate_of
from etl.images.cache import ImageCache
from etl.run_control import RunControl
from etl.state.read.reader import Reader

FIRST, SECOND, THIRD = (body for _, body in scenes(3))


def tarred(files: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return held.getvalue()


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path, keep_originals=True, max_bytes=1 << 20)


def test_what_is_to_come_of_archives_is_known_before(bench: Workbench, tmp_path: Path) -> None:
    """A dry run tells the sizes of what lies in ZIP and tar archives; it decompresses no tar and minds no others."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("é/1.jpg", FIRST)
    (tmp_path / "t.tar").write_bytes(tarred({"2.jpg": SECOND}))
    (tmp_path / "p.tar.gz").write_bytes(gzip.compress(tarred({"3.jpg": THIRD})))
    (tmp_path / "none").write_bytes(b"x")
    names = ("z.zip/é/1.jpg", "z.zip/no.jpg", "t.tar/2.jpg", "p.tar.gz/3.jpg", "none/4.jpg")
    bench.ingest(*({"id": name, "path": name} for name in names))
    with Reader(bench.state) as reader:
        found = estimate_of(reader, bench.settings)
    assert (found.bytes, found.unknown) == (len(FIRST) + len(SECOND), 3)


def outcomes(bench: Workbench) -> list[tuple[str, str | None]]:
    """Return the end of each source's path, and the error that it has."""
    return [(Path(url).name, error) for url, error in bench.rows("SELECT url, error FROM sources ORDER BY id")]


def test_pictures_of_archives_are_fetched(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each becomes an image as a file does; every archive is gone through once, and nothing of it stays."""
    opened = list[Path]()

    def open_archive(path: Path, spool: Callable[[], io.FileIO]) -> archives.Archive:
        opened.append(path)
        return archives.open_archive(path, spool)

    monkeypatch.setattr(fetch_archives, "open_archive", open_archive)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("é/1.jpg", FIRST)
        archive.writestr("large.bmp", bytes(2 << 20))
    (tmp_path / "p.tar.bz2").write_bytes(bz2.compress(tarred({"1.jpg": FIRST, "2.jpg": SECOND})))
    (tmp_path / "l.tar").write_bytes(tarred({"3.jpg": THIRD, "l.csv": b"path\n3.jpg\nno.jpg\n"}))
    # The directory is that of a list of its own.
    bench.ingest({"id": "a", "path": "z.zip/é/1.jpg"}, {"id": "b", "path": "p.tar.bz2/2.jpg"})
    for name in ("z.zip", "p.tar.bz2", "l.tar"):
        bench.ingest_path(str(tmp_path / name))
    assert bench.fetch() == StageSummary(done=4, dead=2)
    assert outcomes(bench) == [
        ("1.jpg", None), ("2.jpg", None),
        ("large.bmp", "the body is larger than the limit of 1048576 bytes"), ("1.jpg", None), ("3.jpg", None),
        ("no.jpg", f"no such file in the archive: {tmp_path}/l.tar, no.jpg"),
    ]  # fmt: skip
    assert (len(bench.files("original")), bench.files("parts")) == (3, [])
    assert sorted(opened) == [tmp_path / name for name in ("l.tar", "p.tar.bz2", "z.zip")]


def test_an_archive_that_changes(bench: Workbench, tmp_path: Path) -> None:
    """What was fetched stays; what is due is taken from the archive as it is now, or its fault is told of each."""
    path = tmp_path / "p.tar"
    path.write_bytes(tarred({"1.jpg": FIRST, "2.jpg": SECOND}))
    bench.ingest_path(str(path))
    path.write_bytes(tarred({"0.jpg": THIRD, "2.jpg": SECOND}))
    assert bench.fetch() == StageSummary(done=1, dead=1)
    path.write_bytes(tarred({"1.jpg": FIRST})[:1000])
    bench.retry()
    assert bench.fetch() == StageSummary(dead=1)
    assert str(outcomes(bench)[0][1]).startswith("cut short, damaged or no archive")
    with closing(fetch_archives.Archives(ImageCache.of_state(bench.state), lambda: False)) as opened:
        for second, body in enumerate((SECOND, THIRD, THIRD)):
            path.write_bytes(tarred({"1.jpg": body}))
            os.utime(path, (second, second))
            part = bench.state / "part"
            assert opened.extract(path, "1.jpg", part, 1 << 20).size == len(part.read_bytes()) == len(body)
            assert part.read_bytes() == body
    path.unlink()
    bench.retry()
    bench.fetch()
    assert outcomes(bench)[0][1] == f"no such file: {path}/1.jpg"


def test_a_stop_is_not_held_up_by_an_archive(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompressing, which may take minutes, ends with the run; its pictures are charged nothing."""
    (tmp_path / "p.tar.bz2").write_bytes(bz2.compress(tarred({"1.jpg": FIRST})))
    bench.ingest_path(str(tmp_path / "p.tar.bz2"))
    control = RunControl()
    real = fetch_archives._Spool.write

    def write(file: fetch_archives._Spool, data: bytes) -> int:
        control.stop()
        return real(file, data)

    monkeypatch.setattr(fetch_archives._Spool, "write", write)
    bench.fetch(control)
    assert bench.rows("SELECT status, attempts FROM sources") == [("ready", 0)]
    assert bench.files("parts") == []
