"""Finding records by key or words, and their stories."""

from typing import Any

import pytest
from support.driving import LARGE, SMALL, drive, text_of, typed, until
from textual.pilot import Pilot
from textual.widgets import Input

from etl.domain.statuses import RunState
from etl.state.read import search
from etl.state.read.reader import Reader
from etl.state.read.search import records_by_key, records_by_text


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.soak)])
def test_finding_a_record(make_state: Any, size: tuple[int, int]) -> None:
    """The first records are listed; a key's beginning, words of a line or of a caption find others."""
    lines = [{"id": f"VM97-{n}", "url": f"http://archive.example/{n}.jpg", "name": f"Pont {n}"} for n in range(30)]
    lines[17]["name"] = "Marché Bonsecours à Montréal"
    state = make_state(lines)
    state.fetch(done=20)
    state.caption(*(["a street"] * 12), "a snowy square")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("w")
        await until(pilot, "Records", "30", "VM97-0", "Pont 3", "captioned")
        await pilot.press("slash")
        await typed(pilot, "VM97-2")
        shown = await until(pilot, "11 records with VM97-2", "VM97-20")
        assert "VM97-1 " not in shown
        await pilot.press("slash")
        await typed(pilot, "montréal")
        await until(pilot, "1 record with montréal", "VM97-17", "Marché Bonsecours")
        await pilot.press("slash")
        await typed(pilot, "SNOWY")
        await until(pilot, "1 record with SNOWY", "VM97-12")
        await pilot.press("enter")
        await until(pilot, "VM97-12", "line 13 of", "a snowy square")
        await pilot.press("end")
        await until(pilot, "Attempts", "caption 1", "Manifest line", '"name": "Pont')
        await pilot.press("escape", "slash", "escape")
        await until(pilot, "1 record with SNOWY")
        await pilot.press("escape")
        await until(pilot, "Pont 3")
        await pilot.press("escape")
        await until(pilot, "Stages")

    drive(state.path, steps, size)


def test_nothing_is_found(make_state: Any) -> None:
    """Words that nothing holds give an empty list that says so; hostile ones are words too."""
    state = make_state(3)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("w", "slash")
        await until(pilot, "a key, or words")
        pilot.app.screen.query_one("Entry", Input).value = "%_[/red]' OR 1\x1b"
        await pilot.press("enter")
        await until(pilot, "0 records with %_[/red]' OR 1")
        await pilot.press("enter", "y", "down")
        assert pilot.app.is_running

    drive(state.path, steps)


def test_a_story_follows_its_record(make_state: Any) -> None:
    """A story that is open changes with the record."""
    state = make_state(2)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("w")
        await until(pilot, "r000")
        await pilot.press("enter")
        await until(pilot, "pending", "ready, 0 attempts")
        state.fetch(dead=1)
        state.store.heartbeat(state.run, RunState.RUNNING)
        await until(pilot, "failed", "failed, 1 attempt")
        await pilot.press("down", "up", "y")
        assert "failed, 1 attempt" in text_of(pilot.app)

    drive(state.path, steps)


def test_a_search_reads_a_little_at_a_time(make_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading in small parts finds every record that holds the words, a letter written as a JSON escape too."""
    monkeypatch.setattr(search, "LOOKED_AT_ONCE", 4)
    state = make_state(
        [{"id": f"k{n}", "url": f"http://a.example/{n}", "name": "Été" if n % 5 == 0 else "Hiver"} for n in range(20)]
    )
    with Reader(state.path) as reader:
        found: list[str] = []
        place: int | None = 0
        while place is not None:
            records, place, looked_at = records_by_text(reader, "été", place)
            assert looked_at <= 4
            found += [record.key for record in records]
        assert found == ["k0", "k5", "k10", "k15"]
        assert [record.key for record in records_by_key(reader, "k1")][:3] == ["k1", "k10", "k11"]
        assert records_by_key(reader, "k%") == []
