"""The demo's server: it serves files, counts requests, and fails in the ways that it was told until it is healed."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from etl.demo.archive import build_archive, write_manifest
from etl.demo.server import DemoServer

BODY = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


def _get(url: str) -> tuple[int, Message, bytes]:
    """Return status, headers and body; raises IncompleteRead when the body is cut short."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_a_file_is_served_whole_with_its_type_and_counted(server: DemoServer) -> None:
    """Each request for a file returns its bytes and content type, and is counted under its path."""
    url = server.add("/a picture.png", BODY, "image/png")
    assert url == f"{server.base}/a%20picture.png"
    assert url.startswith("http://127.0.0.1:")
    for _ in range(2):
        status, headers, body = _get(url)
        assert (status, headers["Content-Type"], body) == (200, "image/png", BODY)
    assert server.requests == {"/a picture.png": 2}


def test_an_unknown_path_is_404_also_when_healed(server: DemoServer) -> None:
    """Healing brings back no file that never was."""
    assert _get(server.url("/gone.jpg"))[0] == 404
    server.heal()
    assert _get(server.url("/gone.jpg"))[0] == 404


def test_a_busy_file_is_refused_so_often_with_retry_after_and_then_served(server: DemoServer) -> None:
    """Two refusals are two answers 503 that ask to wait; the third request gets the file."""
    url = server.add("/busy.jpg", BODY, "image/jpeg", refusals=2)
    for _ in range(2):
        status, headers, _body = _get(url)
        assert (status, headers["Retry-After"]) == (503, "1")
    assert _get(url)[::2] == (200, BODY)


def test_healing_ends_refusals(server: DemoServer) -> None:
    """A healed server refuses nothing, however many refusals were left."""
    url = server.add("/busy.jpg", BODY, "image/jpeg", refusals=99)
    assert _get(url)[0] == 503
    server.heal()
    assert _get(url)[0] == 200


def test_a_cut_file_ends_early_until_the_server_is_healed(server: DemoServer) -> None:
    """The announced length is the whole file's, but half of it comes; after healing all of it."""
    url = server.add("/cut.jpg", BODY, "image/jpeg", cut_short=True)
    for _ in range(2):
        with pytest.raises(http.client.IncompleteRead) as caught:
            _get(url)
        assert len(caught.value.partial) == len(BODY) // 2
    server.heal()
    assert _get(url)[::2] == (200, BODY)


def test_the_archive_is_a_manifest_like_a_real_one(server: DemoServer, tmp_path: Path) -> None:
    """Lines have id, name, attributes_map and external_url; two share a URL; two URLs lead to no picture."""
    records = build_archive(server, 12)
    server.heal()
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(records, manifest)
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    assert len(rows) == 15
    assert all(set(row) == {"id", "name", "attributes_map", "external_url"} for row in rows)
    assert len({row["external_url"] for row in rows}) == 14
    answers = {row["id"]: _get(row["external_url"]) for row in rows}
    assert answers["gone"][0] == 404
    assert answers["viewer"][0] == 200 and answers["viewer"][1]["Content-Type"].startswith("text/html")
    assert all(status == 200 for key, (status, *_rest) in answers.items() if key != "gone")
    assert len({record.format for record in records if record.caption}) == 12
