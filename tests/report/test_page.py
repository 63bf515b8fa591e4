"""The report: one file that needs nothing else, says what the state says, and lets no stranger's text act."""

import base64
import hashlib
import io
import json
import re
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.made_state import MadeState
from support.reported import HOSTILE, make_state

from etl.cli.app import main
from etl.errors import ConfigError
from etl.report.page import ReportOptions, ReportSummary, write_report
from etl.state.read.reader import Reader

KEY, TITLE, DATE, OUTCOME, HOST, URL, ERROR, MESSAGE, TEXT, FLAGS, AT, PICTURE = range(12)


def report(state: MadeState, path: Path, **options: int) -> tuple[str, ReportSummary]:
    """Write a report; return it and its summary."""
    with Reader(state.settings.state) as reader:
        summary = write_report(reader, path, ReportOptions(**options))
    return path.read_text(encoding="utf-8"), summary


def data(page: str) -> tuple[list[list[Any]], list[str | None]]:
    """Return the rows and the pictures of a page."""
    blocks = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    return [row for block in blocks for row in block["rows"]], [one for block in blocks for one in block["pictures"]]


@pytest.fixture(scope="module")
def page(state: MadeState, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(state, tmp_path_factory.mktemp("page") / "report.html")[0]


def test_each_record_is_there_with_its_outcome(page: str) -> None:
    """Captioned, failed at either stage, still to be done, and no record at all."""
    rows, _ = data(page)
    assert [row[KEY] for row in rows[:12]] == [f"r{n}" for n in range(12)]
    assert Counter(row[OUTCOME] for row in rows) == {"captioned": 9, "failed": 2, "pending": 1, "invalid": 1}
    by_key = {row[KEY]: row for row in rows}
    assert by_key["r2"][TEXT].startswith("A street with 2 trams.\n")
    assert (by_key["r2"][FLAGS], by_key["r2"][DATE]) == (["repetition", "truncated"], "1902")
    assert (by_key["r9"][ERROR], by_key["r9"][MESSAGE], by_key["r9"][TEXT]) == ("http_404", "it failed", "")
    assert by_key["r10"][ERROR] == "generation"
    assert (rows[-1][OUTCOME], rows[-1][ERROR]) == ("invalid", "invalid_json")


def test_pictures_are_small_and_shared(page: str) -> None:
    """A picture that two records share is there once; each is a WebP of the size that was asked for."""
    rows, pictures = data(page)
    by_key = {row[KEY]: row for row in rows}
    assert by_key["r0"][PICTURE] == by_key["r1"][PICTURE]
    assert len(pictures) == len({row[PICTURE] for row in rows if row[PICTURE] is not None}) == 9
    for picture in pictures:
        assert picture is not None
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert (image.format, image.size) == ("WEBP", (160, 80))


def test_the_figures_are_the_state_s(page: str) -> None:
    """Counts as `etl status` has them, failures by class and host, and the runs with their cost."""
    figures = {name: value for value, name in re.findall(r"<div><b>([^<]*)</b><span>([^<]*)</span>", page)}
    expected = {"records selected": "12", "captioned": "9", "failed": "2", "still to do": "1", "not selected": "0"}
    assert figures.items() >= (expected | {"invalid lines": "1"}).items()
    assert float(figures["spent"]) > 0
    assert re.search(r'data-error="http_404">http_404</button></td><td class="number">1<', page)
    assert re.search(r"<td>b\.example</td><td>http_404</td><td class=\"number\">1</td>", page)
    assert page.count("<td>fetch + caption</td>") == 1


def test_nothing_is_loaded_and_no_text_ends_its_place(page: str) -> None:
    """No address is named outside the data, a policy forbids what is not ours, and hostile text stays text."""
    outside = re.sub(r'<script type="application/json">.*?</script>', "", page)
    # The host table names hosts, and nothing else may look like an address.
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?://""", outside)
    assert HOSTILE not in page
    assert "document.title=" not in outside
    assert "secret" not in page
    [(style, script)] = re.findall(r"style-src '([^']+)'; script-src '([^']+)'", page)
    for tag, named in (("style", style), ("script", script)):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", outside, re.DOTALL)
        assert named == "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_of_many_records_some_are_shown(state: MadeState, tmp_path: Path) -> None:
    """With a limit every so-manieth record is there, and the page says so; figures stay those of all."""
    page, summary = report(state, tmp_path / "some.html", limit=5, edge=0)
    rows, pictures = data(page)
    assert [row[KEY] for row in rows] == ["r0", "r3", "r6", "r9", "manifest.jsonl:13"]
    assert (pictures, summary.records, summary.pictures) == ([], 5, 0)
    assert "One record in 3 is shown: 5 of 13." in page
    assert "<b>9</b><span>captioned</span>" in page


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """A damaged or missing working copy costs its picture, not the page."""
    state = make_state(tmp_path)
    copies = sorted((tmp_path / "state" / "images").rglob("*.jpg"))
    copies[0].write_bytes(b"no picture")
    copies[1].unlink()
    _, pictures = data(report(state, tmp_path / "report.html")[0])
    assert pictures.count(None) == 2


def test_an_empty_state_has_a_page(tmp_path: Path) -> None:
    """Before anything was fetched there is nothing to plot, and the page says so."""
    state = MadeState(tmp_path)
    state.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n')
    page, summary = report(state, tmp_path / "report.html")
    assert (summary.records, summary.pictures) == (1, 0)
    assert "Nothing was fetched or captioned yet." in page
    assert "Nothing failed." in page


def test_the_file_is_replaced_whole_or_not_at_all(state: MadeState, tmp_path: Path) -> None:
    """A directory is refused; an earlier page stays when the new one cannot be written."""
    with pytest.raises(ConfigError, match="is a directory"):
        report(state, tmp_path)
    old = tmp_path / "report.html"
    old.write_text("old")
    (tmp_path / "none").mkdir()
    copy = MadeState(tmp_path / "none")
    copy.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n')
    with Reader(copy.settings.state) as reader:
        # What fails in the middle of writing.
        reader.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            write_report(reader, old, ReportOptions())
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_the_command(state: MadeState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """``etl report`` writes the file and says what is in it."""
    target = tmp_path / "seen.html"
    command = ["etl", "report", "--state", str(state.settings.state), "-o", str(target), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    assert said == {"path": str(target), "records": 13, "pictures": 9, "size": target.stat().st_size}


def test_no_text_of_a_stranger_is_longer_than_a_line(tmp_path: Path) -> None:
    """Megabytes of titles, dates, captions, errors, addresses, hosts, classes and messages make no large page."""
    long = "w\u00f6rd " * 50_000
    made = MadeState(tmp_path)
    lines = [
        {"id": f"r{n}", "url": f"http://a.example/{n}.jpg", "title": f"{n} {long}", "Date": long} for n in range(6)
    ]
    made.ingest(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    made.finish({f"r{n}": f"caption {n}" for n in range(2)}, dead_sources={f"r{n}": f"x{n}" for n in range(2, 6)})
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        for column in (
            "captions.text", "captions.flags", "sources.error", "sources.error_class", "sources.host", "runs.message",
            "runs.uid", "manifests.path", "recipes.model",
        ):  # fmt: skip
            table, name = column.split(".")
            database.execute(f"UPDATE {table} SET {name} = rowid || ?", (long,))
        database.execute("UPDATE sources SET url = url || ?", (long,))
    page, summary = report(made, tmp_path / "report.html")
    rows, _ = data(page)
    assert len(rows) == 6 and summary.size < 200_000
    longest = {field: max(len(str(row[field])) for row in rows) for field in range(12)}
    assert longest.pop(TEXT) == 4000
    assert all(length <= 512 + len("['']") for length in longest.values()), longest
    assert rows[0][TITLE].startswith("0 w\u00f6rd ") and rows[0][TITLE].endswith("...")
    outside = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert max(map(len, re.findall(r">([^<]+)<", outside))) < 1000
