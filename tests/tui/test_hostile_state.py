"""A whole state written by a stranger: no screen of the dashboard lets anything through to the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.driving import SMALL, drive, text_of, until
from support.hostile import HOSTILE, acting, poison
from support.states import slowed
from textual.pilot import Pilot

from etl.domain.views import EngineSample, GpuSample
from etl.state import log
from tui.keys import ACTIONS

WALK = (
    "o", "f", "enter", "enter", "y", "escape", "r", "n", "y", "escape", "f", "end", "enter", "y", "c", "n", "m", "y",
    "enter", "y", "escape", "x", "w", "y", "enter", "y", "escape", "l", "y", "s", "n", "p", "question_mark", "escape",
    "R", "n", "o",
)  # fmt: skip
"""Every screen, list, story, dialog and message, and copying on each."""


@pytest.fixture
def stranger(make_state: Any) -> Path:
    """Return a state with rows in every table whose texts are all hostile, its log too; a run is at work on it."""
    state = make_state([{"id": f"k{n}", "url": f"http://archive.example/{n}.jpg"} for n in range(8)], pictures=True)
    state.fetch(done=5, dead=2, retry=1)
    state.caption("words", "words", "words", flags=("repetition",), dead=1)
    state.store.hosts(state.run).record([slowed("archive.example")])
    state.store.record_engine(state.run, EngineSample(worker=0, slots=16, in_use=12, waiting=5, captions=5, tokens=20))
    state.store.record_gpu(state.run, GpuSample(0, 97, 14 * 2**30, 24 * 2**30, 310.0))
    with (state.path / log.DIRECTORY / log.NAME).open("a") as file:
        file.write(HOSTILE + "\n" + json.dumps(HOSTILE) + "\n")
    path: Path = state.path
    return path


def test_no_screen_shows_a_stranger_s_state_harmfully(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the database and the log, every screen draws harmless cells, and so does what is copied."""
    poison(stranger, but=frozenset({"runs.state", "hosts.state", "runs.stages", "runs.config"}))
    copied: list[str] = []

    async def steps(pilot: Pilot[None]) -> None:
        monkeypatch.setattr(pilot.app, "copy_to_clipboard", copied.append)
        await until(pilot, "Records", "Stages")
        for key in WALK:
            await pilot.press(key)
            await pilot.pause(0.05)
            shown = text_of(pilot.app)
            assert not acting(shown), (key, sorted(map(hex, map(ord, acting(shown)))))
            assert all(len(line) <= SMALL[0] for line in shown.splitlines())
        assert pilot.app.is_running and pilot.app._exception is None

    drive(stranger, steps)
    assert len(copied) >= 4
    assert not any(acting(text) for text in copied)


def test_a_story_shows_no_secret_of_a_line(make_state: Any) -> None:
    """The manifest line of a record is shown without passwords and query values."""
    state = make_state([{"id": "k", "url": "https://me:hunter2@archive.example/a.jpg?sig=hunter2", "name": "a name"}])
    state.fetch(dead=1)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("w")
        await until(pilot, "a name")
        await pilot.press("enter")
        shown = await until(pilot, "Manifest line", "archive.example/a.jpg?sig=...")
        assert "hunter2" not in shown

    drive(state.path, steps, (120, 50))


def test_words_that_nobody_knows_are_a_problem_not_a_crash(stranger: Path) -> None:
    """A state with statuses that no version has written is said to be unreadable, on every screen."""
    poison(stranger)

    async def steps(pilot: Pilot[None]) -> None:
        shown = await until(pilot, "The state database holds")
        for action in ACTIONS[:5]:
            await pilot.press(action.keys.split(",")[0])
            shown += await until(pilot, "The state database holds")
        assert not acting(shown)
        assert pilot.app._exception is None

    drive(stranger, steps)
