"""Captions beside their pictures: going through them, filters, search, and pictures that are not there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.driving import LARGE, SMALL, drive, text_of, typed, until
from textual.pilot import Pilot

from etl.state.read.reader import Reader
from etl.state.read.samples import NEWEST, CaptionFilter, Cursor, at_random, sample, step
from tui.picture import HALF, read


def records(count: int) -> list[dict[str, str]]:
    """Return records with titles and dates."""
    return [
        {"id": f"r{n}", "url": f"http://archive.example/{n}.jpg", "name": f"Église {n}", "date": f"19{n:02}"}
        for n in range(count)
    ]


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.soak)])
def test_going_through_captions(make_state: Any, size: tuple[int, int]) -> None:
    """The latest is shown with picture, title, date, tokens and key; older, newer and newest go through them."""
    state = make_state(records(4), pictures=True)
    state.fetch(done=4)
    state.caption("first street", "second street", "third street")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        shown = await until(pilot, "third street", "Église 2", "1902", "4 tokens, ended by stop", "r2", "by demo", HALF)
        assert sum(HALF in line for line in shown.splitlines()) > 8
        await pilot.press("n")
        await until(pilot, "second street", "Église 1")
        await pilot.press("right")
        await until(pilot, "first street")
        await pilot.press("n")
        await until(pilot, "first street", "This is the oldest.")
        await pilot.press("b")
        await until(pilot, "second street")
        await pilot.press("g")
        await until(pilot, "third street")
        await pilot.press("b")
        await until(pilot, "This is the newest.")
        await pilot.press("x")
        await until(pilot, "street")
        await pilot.press("enter")
        await until(pilot, "line ", "prompt ", "image/jpeg")
        await pilot.press("escape")
        await until(pilot, "street", "4 tokens")

    drive(state.path, steps, size)


def test_only_flagged_ones(make_state: Any) -> None:
    """m shows captions with quality flags alone, and all again; what the model reasoned stands below its words, also in
    the record's story, and what is suspicious about the picture above them.
    """
    state = make_state(records(4), pictures=True)
    state.fetch(done=4)
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE images SET flags = 'blank,tiny'")
    state.caption("broken words", flags=("repetition", "too_short"), thinking="It wants words.\x1b[2J")
    state.caption("good words", "better words")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        await until(pilot, "better words")
        await pilot.press("m")
        await until(pilot, "Captions with quality flags", "broken words", "flags: repetition, too_short")
        await until(pilot, "the picture: blank, tiny", "the model reasoned", "It wants words.\\x1b[2J")
        await pilot.press("enter")
        await until(pilot, "reasoned  It wants words.", "flags: blank,tiny")
        await pilot.press("escape", "n")
        await until(pilot, "There is none before this one.")
        await pilot.press("m")
        await until(pilot, "better words")

    drive(state.path, steps)


def test_searching(make_state: Any) -> None:
    """/ finds words in captions and in titles, whatever the case; escape shows all again."""
    state = make_state(records(6), pictures=True)
    state.fetch(done=6)
    state.caption("a tramway", "snow", "a Tramway again", "a crowd")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        await until(pilot, "a crowd")
        await pilot.press("slash")
        await typed(pilot, "tramWAY")
        await until(pilot, "Captions with tramWAY", "a Tramway again")
        await pilot.press("n")
        await until(pilot, "a tramway")
        await pilot.press("n")
        await until(pilot, "There is none before this one.")
        await pilot.press("slash")
        await typed(pilot, "glise 1")
        await until(pilot, "Église 1", "snow")
        await pilot.press("slash")
        await typed(pilot, "nowhere")
        await until(pilot, "Captions with nowhere", "There is none")
        await pilot.press("escape")
        await until(pilot, "a crowd")

    drive(state.path, steps)


def test_before_the_first_caption(make_state: Any) -> None:
    """Without captions the screen says so, and shows the first when it comes."""
    state = make_state(records(2), pictures=True)
    state.fetch(done=2)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c", "n", "b", "x", "enter", "y")
        await until(pilot, "There are no captions yet.")
        state.caption("at last")
        await until(pilot, "at last", HALF)

    drive(state.path, steps)


def test_pictures_that_cannot_be_shown(make_state: Any) -> None:
    """A picture that is damaged, gone, or has left the cache is told in words; the caption is there."""
    state = make_state(records(3), pictures=True)
    state.fetch(done=3)
    state.caption("one", "two", "three")
    with Reader(state.path) as reader:
        paths = [found.picture for n in (3, 2) if (found := sample(reader, n)) and found.picture]
    damaged, gone = paths
    damaged.write_bytes(b"\xff\xd8\xff no picture")
    gone.unlink()
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE images SET state = 'evicted' WHERE id = (SELECT image FROM captions WHERE id = 1)")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        await until(pilot, "three", "The picture cannot be shown.")
        await pilot.press("n")
        await until(pilot, "two", "The picture cannot be shown.")
        await pilot.press("n")
        await until(pilot, "one", "The picture has left the cache.")

    drive(state.path, steps)


def test_a_narrow_terminal_shows_the_words(make_state: Any) -> None:
    """Under 70 columns the picture gives way."""
    state = make_state(records(1), pictures=True)
    state.fetch(done=1)
    state.caption("a street")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("c")
        await until(pilot, "a street")
        assert HALF not in text_of(pilot.app)
        await pilot.resize_terminal(100, 30)
        await until(pilot, "a street", HALF)

    drive(state.path, steps, (60, 24))


def test_copying(make_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """y copies the caption, the key of a record, or a whole story, and nothing where there is nothing."""
    state = make_state(records(2), pictures=True)
    state.fetch(done=2)
    state.caption("a street \x1b[31m")
    copied: list[str] = []

    async def steps(pilot: Pilot[None]) -> None:
        monkeypatch.setattr(pilot.app, "copy_to_clipboard", copied.append)
        await pilot.press("y", "c")
        await until(pilot, "a street")
        await pilot.press("y")
        await until(pilot, "Copied 17 characters")
        await pilot.press("w")
        await until(pilot, "r1")
        await pilot.press("down", "y", "enter")
        await until(pilot, "line 2 of")
        await pilot.press("y")
        await pilot.pause()

    drive(state.path, steps)
    assert copied[:2] == [r"a street \x1b[31m", "r1"]
    assert copied[2].startswith("r1\nfrom ") and "Manifest line\n" in copied[2]


def test_every_step_is_found_however_few_are_read_at_once(make_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that must read on several times finds the same captions, in both directions."""
    monkeypatch.setattr("etl.state.read.samples.LOOKED_AT_ONCE", 3)
    state = make_state(records(20))
    state.fetch(done=20)
    state.caption(*(f"caption {n} {'odd' if n % 7 == 1 else 'even'}" for n in range(20)))

    def walk(older: bool) -> list[int]:
        found, cursor = [], NEWEST if older else Cursor(-1, -1)
        with Reader(state.path) as reader:
            while True:
                one = step(reader, cursor, CaptionFilter(text="ODD"), older=older)
                assert one.looked_at <= 3
                if one.found:
                    found.append(one.found.caption)
                if one.reached is None:
                    return found
                cursor = one.reached

    assert walk(older=True) == [16, 9, 2]
    assert walk(older=False) == [2, 9, 16]
    with Reader(state.path) as reader:
        assert {
            step(reader, at_random(reader, CaptionFilter()), CaptionFilter(), older=True).found is None
            for _ in range(20)
        } == {False}


def test_a_picture_keeps_its_shape(tmp_path: Path) -> None:
    """A picture is as large as fits, never distorted, and its colours are those of the file."""
    from PIL import Image

    wide = Image.new("RGB", (400, 100), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 50, 400, 100))
    wide.save(tmp_path / "wide.jpg", quality=95)
    cells = read(tmp_path / "wide.jpg", 40, 20)
    assert cells is not None
    assert (cells.width, cells.height) == (40, 5)
    (red, _, blue), (low_red, _, low_blue) = cells.lines[0][5][0], cells.lines[-1][5][1]
    assert red > 240 and blue < 15 and low_red < 15 and low_blue > 240
    gone = tmp_path / "gone.jpg"
    shutil.copy(tmp_path / "wide.jpg", gone)
    assert read(gone, 0, 5) is None
    gone.unlink()
    assert read(gone, 10, 5) is None
