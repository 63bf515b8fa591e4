"""The report in a real browser without a network: it is read, searched and filtered, and nothing hostile runs."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState
from support.reported import make_state

from etl.report.page import ReportOptions, write_report
from etl.state.read.reader import Reader

RECORDS = 14_822
"""As many as the archive has."""


@pytest.fixture(scope="module")
def opened(state: MadeState, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    with Reader(state.settings.state) as reader:
        write_report(reader, path, ReportOptions())
    page = chromium.new_page(offline=True, viewport={"width": 1280, "height": 900})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url.partition(":")[0]))
    page.goto(path.as_uri())
    yield page
    page.close()


def cards(page: Any) -> list[str]:
    """Return the titles of the cards that are shown."""
    titles: list[str] = page.locator(".sheet .title").all_inner_texts()
    return titles


def test_the_page_opens_offline_and_no_text_of_strangers_runs(opened: Any) -> None:
    """All records are shown with their pictures, nothing is asked of a network, and the title is ours."""
    assert opened.title() == "Captions of manifest.jsonl"
    assert len(cards(opened)) == 13
    assert "</script>" in cards(opened)[3]
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth == 160)")
    assert opened.said == []
    assert set(opened.asked) <= {"file", "data"}


def test_searching_and_filtering(opened: Any) -> None:
    """Words, outcomes, flags, errors and hosts narrow what is shown; clearing brings all back."""
    opened.fill("[name=text]", "WITH 4 TRAMS")
    opened.locator("output", has_text="1 of 13 records").wait_for()
    assert cards(opened) == ["Rue 4"]
    opened.click("button[type=reset]")
    opened.locator("output", has_text="13 of 13 records").wait_for()
    for name, value, left in (
        ("outcome", "failed", 2),
        ("outcome", "invalid", 1),
        ("flag", "repetition", 9),
        ("host", "b.example", 5),
    ):
        opened.select_option(f"[name={name}]", value)
        opened.locator("output", has_text=f"{left} of 13 records").wait_for()
        opened.click("button[type=reset]")
        opened.locator("output", has_text="13 of 13 records").wait_for()
    opened.click("button[data-error=generation]")
    opened.locator("output", has_text="1 of 13 records").wait_for()
    assert cards(opened) == ["Rue 10"]
    opened.click("button[type=reset]")


def test_one_record_is_opened_by_key(opened: Any) -> None:
    """Enter on a card shows everything that is known of its record; Escape closes it."""
    opened.locator(".sheet article").nth(9).focus()
    opened.keyboard.press("Enter")
    dialog = opened.locator("dialog[open]")
    assert "http_404" in dialog.inner_text()
    assert "token=..." in dialog.inner_text()
    opened.keyboard.press("Escape")
    assert opened.locator("dialog[open]").count() == 0


@pytest.mark.soak
def test_the_whole_archive_is_looked_through(chromium: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page of 14,822 records opens, scrolls and answers to a search within seconds."""
    state = make_state(tmp_path, RECORDS)
    with Reader(state.settings.state) as reader:
        begun = time.monotonic()
        summary = write_report(reader, tmp_path / "report.html", ReportOptions())
        written = time.monotonic() - begun
    page = chromium.new_page(offline=True)
    begun = time.monotonic()
    page.goto((tmp_path / "report.html").as_uri())
    page.locator("output", has_text="14,823 of 14,823 records").wait_for()
    opened = time.monotonic() - begun
    begun = time.monotonic()
    page.fill("[name=text]", "with 14821")
    page.fill("[name=text]", "with 7000 trams")
    page.locator("output", has_text="1 of 14,823 records").wait_for()
    searched = time.monotonic() - begun
    with capsys.disabled():
        print(
            f"\n  {summary.records:,} records, {summary.pictures:,} pictures, {summary.size / 1e6:.1f} MB: written in "
            f"{written:.1f} s, opened in {opened:.1f} s, searched in {searched:.2f} s"
        )
    assert opened < 30
    assert searched < 10
