"""Manifests that lie elsewhere: brought by the downloader of the pictures, read as files of this machine are."""

import gzip
import io
import json
import zipfile
from dataclasses import replace

import pytest
from support.fault_server import Exchange, FaultServer, ranged, status
from support.workbench import Workbench, scenes

from etl.domain.statuses import Stage
from etl.errors import InvalidUrlError, ManifestError
from etl.ingest.manifest import Manifest, remote_name
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.maintenance.gc import Removed, gc
from etl.net.urls import beside
from etl.state.manifests import roots
from etl.state.read.reader import Reader
from etl.state.store import Store

ROWS = "".join(json.dumps({"id": n, "file_name": f"pictures/{n} é.jpg", "text": "x" * 900}) + "\n" for n in range(300))


def broken(exchange: Exchange) -> None:
    """Send half of the body and end the connection; say of what it is the half."""
    body = exchange.resource.body
    exchange.head(200, {"Content-Length": str(len(body)), "ETag": exchange.resource.etag})
    exchange.send(body[: len(body) // 2])
    exchange.close()


def test_a_manifest_elsewhere_is_read_like_one_that_is_here(server: FaultServer, bench: Workbench) -> None:
    """Packed, busy at first, then broken in its middle; its pictures lie beside it, no directory is opened for them."""
    url = server.add("/lists/rows 1.jsonl.gz", gzip.compress(ROWS.encode(), 0), "application/gzip")
    server.fail("/lists/rows 1.jsonl.gz", status(503, retry_after="0"), times=1)
    signed = url.replace(" ", "%20").replace("//", "//me:secret@") + "?page=2&X-Amz-Signature=0f&X-Amz-Date=1"
    bench.ingest_path(signed)
    behaviours = iter((broken, ranged))
    server.fail("/lists/rows 1.jsonl.gz", lambda exchange: next(behaviours)(exchange))
    bench.ingest_path(signed.replace("=0f", "=1e"))
    known = f"{server.base}/lists/rows%201.jsonl.gz?page=2"
    assert bench.rows("SELECT path, root, complete, rows FROM manifests") == [(known, None, 1, 300)]
    assert bench.rows("SELECT url, host FROM sources WHERE id = 8") == [
        (f"{server.base}/lists/pictures/7%20%C3%A9.jpg", "127.0.0.1")
    ]
    asked = [request for request in server.log if request.path == "/lists/rows 1.jsonl.gz"]
    assert [request.headers["Accept"] for request in asked] == ["*/*"] * 4
    assert "Range" in asked[-1].headers
    assert bench.rows("SELECT generation FROM manifests") == [(1,)]
    with Reader(bench.state) as reader:
        assert roots(reader) == []


def test_a_list_whose_download_was_cut_goes_on_in_the_next_run(server: FaultServer, bench: Workbench) -> None:
    """What came is among the unfinished files of the state, under the newest signature too; nothing stays behind."""
    url = server.add("/rows.jsonl", ROWS.encode())
    server.fail("/rows.jsonl", broken, times=1)
    bench.settings = replace(bench.settings, max_attempts=1)
    with pytest.raises(ManifestError, match="ended early"):
        bench.ingest_path(f"{url}?token=1")
    assert sum(file.stat().st_size for file in bench.files("parts")) > len(ROWS) // 2
    server.fail("/rows.jsonl", ranged)
    bench.ingest_path(f"{url}?token=2")
    assert "Range" in server.log[-1].headers
    assert bench.rows("SELECT count(*) FROM records") == [(300,)]
    assert bench.files("parts") == []
    server.add("/cut.csv.gz", gzip.compress(b"id,url\n" * 9)[:-3])
    with pytest.raises(ManifestError, match=r"^cut\.csv\.gz is cut short or damaged"):
        bench.ingest_path(server.url("/cut.csv.gz"))
    assert bench.files("parts") == []


def test_an_archive_of_pictures_is_brought_once(server: FaultServer, bench: Workbench) -> None:
    """It stays with the state until no record of it is left; one that holds a list alone does not."""
    (_, picture), *_ = scenes(1)
    for name, files in (("p.zip", {"a/1.jpg": picture, "note.md": b""}), ("l.zip", {"l.txt": b"x/1.jpg"})):
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            for inner, content in files.items():
                archive.writestr(inner, content)
        for _ in range(2):
            bench.ingest_path(server.add(f"/{name}", held.getvalue(), "application/zip") + "?token=1")
    assert [request.path for request in server.log] == ["/p.zip", "/l.zip", "/l.zip"]
    assert [file.name[17:] for file in (bench.state / "archives").iterdir()] == ["p.zip"]
    found = bench.rows("SELECT r.key, s.url FROM records r JOIN sources s ON s.id = r.source ORDER BY r.id")
    assert found[0] == ("a/1.jpg", f"{next((bench.state / 'archives').iterdir())}/a/1.jpg")
    assert found[1][1] == server.url("/x/1.jpg")
    bench.fetch()
    assert bench.rows("SELECT status FROM sources ORDER BY id")[0] == ("done",)
    with pytest.raises(ManifestError, match="cut short, damaged"):
        bench.ingest_path(server.add("/cut.zip", held.getvalue()[:-9]))
    assert len(list((bench.state / "archives").iterdir())) == 1
    with Store.open(bench.settings) as store:
        assert gc(store).archives == Removed()
        (bench.state / "archives" / "0-lost.zip").write_bytes(b"x")
        assert gc(store, dry_run=True).archives == gc(store).archives == Removed(1, 1)
        server.add("/p.zip", b"")
    bench.ingest({"id": "a/1.jpg", "url": server.url("/1.jpg")})
    with Store.open(bench.settings) as store:
        assert gc(store).archives.files == 1, "its record points elsewhere now"


def test_what_cannot_be_brought_is_one_line(server: FaultServer, bench: Workbench) -> None:
    """The address without its secrets, and why; nothing is stored, and a stop ends it without a word."""
    server.fail("/gone.csv", status(404))
    with pytest.raises(
        ManifestError, match=r"cannot be fetched: HTTP 404: http://127\.0\.0\.1:\d+/gone\.csv\?key=\.\.\.$"
    ):
        bench.ingest_path(server.url("/gone.csv?key=secret"))
    server.fail("/busy.csv", status(503, retry_after="9000"))
    with pytest.raises(ManifestError, match="asks to wait 9000 s"):
        bench.ingest_path(server.url("/busy.csv"))
    server.fail("/slow.csv", status(503, retry_after="800"))
    with Store.open(bench.settings) as store, store.run((Stage.INGEST,)):
        summary = ingest(store, Manifest(server.url("/slow.csv")), IngestOptions(), should_stop=lambda: True)
    assert summary.records == 0
    assert bench.rows("SELECT * FROM manifests") == []
    for path in ("ftp://a.example/x.csv", "https:///x.csv", "s3:/x"):
        with pytest.raises(ManifestError, match=f"there is no manifest {path}"):
            Manifest(path)


def test_names_of_files_elsewhere() -> None:
    """The last part of the path, which tells the format, whatever it is made of."""
    assert remote_name("https://a.example/x/ma%20liste.csv?format=tsv") == "ma liste.csv"
    assert remote_name("https://a.example/a%2F..%2F.tsv") == "a_.._.tsv"
    assert [remote_name(url) for url in ("https://a.example/", "https://a.example", "http://a.example/..")] == [
        "manifest"
    ] * 3
    assert len(remote_name(f"https://a.example/{'é' * 300}.csv").encode()) <= 200


def test_a_relative_name_stays_at_its_host() -> None:
    """Files of this machine are never named by a manifest of another, nor is what lies above the host's root."""
    base = "https://a.example/lists/2024/rows.csv?x=/y/"
    assert beside(base, "../a b%20c#.jpg") == "https://a.example/lists/a%20b%20c%23.jpg"
    assert beside(base, "./thumb.php?id=3&x=é") == "https://a.example/lists/2024/thumb.php?id=3&x=%C3%A9"
    assert beside(base, "/etc/passwd") == "https://a.example/etc/passwd"
    for name in ("file:///etc/passwd", "../../../x.jpg"):
        with pytest.raises(InvalidUrlError):
            beside(base, name)
