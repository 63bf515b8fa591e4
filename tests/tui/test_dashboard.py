"""The dashboard over real states, driven by its keys at 80x24 and 120x40: the overview, commands, and what hinders."""

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.driving import LARGE, SMALL, drive, text_of, until
from support.states import slowed
from textual.geometry import Region
from textual.pilot import Pilot

from etl.cli.render import status_lines
from etl.clock import now_ms
from etl.domain.statuses import HostState, RunState
from etl.domain.views import EngineSample, GpuSample, HostInfo
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.record_captions import skip_captions
from tui.keys import ACTIONS, EVERYWHERE, written
from tui.screens.dialogs import ConfirmScreen
from tui.widgets.panel import Panel

COMMANDS = {"pause", "stop", "retry", "retry_all"}
"""Actions that ask the run for something."""

HOSTILE = "\U0001f3da\ufe0f\u4e2d\u6587"
"""What of the hostile texts is shown as it is."""

TAKEN_BY_TERMINALS = {f"ctrl+{letter}" for letter in "abhijms"}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_overview_is_whole(make_state: Any, size: tuple[int, int]) -> None:
    """Every item of the overview is on the screen, and every figure is the database's."""
    state = make_state(20, price=3.0)
    state.fetch(done=8, dead=3, retry=2)
    state.caption("one", "two", "three", "four", "five")
    state.store.heartbeat(state.run, RunState.RUNNING)
    state.store.hosts(state.run).record([slowed("archive.example")])
    state.store.record_engine(state.run, EngineSample(worker=0, slots=16, in_use=12, waiting=5, captions=5, tokens=20))
    state.store.record_gpu(state.run, GpuSample(0, 97, 14 * 2**30, 24 * 2**30, 310.0))

    async def steps(pilot: Pilot[None]) -> None:
        shown = await until(pilot, "▶ running", "http_404", "q Quit", "GPU 0")
        lines = shown.splitlines()
        assert len(lines) == size[1]
        assert all(len(line) == size[0] for line in lines)
        row = {line.split()[0]: line.split() for line in lines if line.split()}
        for words in ("heartbeat", "20 total", "5 captioned", "3 failed", "cost 0.00", f"pid {os.getpid()} on"):
            assert words in shown
        assert row["ingest"][1:3] == ["✓", "done"] and "20/20" in row["ingest"]
        assert row["fetch"][1:3] == ["↻", "waiting"]
        assert row["fetch"][-6:] == ["8/20", "7", "3", "2", row["fetch"][-2], "-"]
        assert row["caption"][-6:-2] == ["5/8+", "3", "-", "-"]
        assert row["export"][1:3] == ["○", "empty"]
        assert row["fetch"][-1] == row["caption"][-1] == "-", "an ETA before the rate has settled"
        assert "archive.example" in shown and "◐ slowed" in shown and "3 of 4" in shown and "9 left" in shown
        assert "12 of 16 in use   5 prepared and waiting" in shown and "images/s" in shown and "tokens/s" in shown
        assert "97% busy   14.0 GiB of 24.0 GiB   310 W" in shown
        assert "✗ failed" in shown and "Log ─" in shown

    drive(state.path, steps, size)


def test_a_host_that_does_not_answer_is_told_in_words(make_state: Any) -> None:
    """The words are whole, in the place of a rate, and say when it is asked again; the columns stay.

    Of thirty others, those for which there is no room are counted, with what is to come of them.
    """
    urls = [f"http://archive.example/{n}.jpg" for n in range(20)] + [f"http://b{n // 2}.example/{n}" for n in range(60)]
    state = make_state([{"id": url, "url": url} for url in urls])
    state.fetch(done=8)
    until_ms = now_ms() + 600_000
    dead = HostInfo(
        host="archive.example", state=HostState.NOT_ANSWERING, reason="dns", until=until_ms, allowed=4, done=8, failed=5
    )
    state.store.hosts(state.run).record([dead])
    with Reader(state.path) as reader:
        assert "hosts     23 more, 46 to come" in list(status_lines(ProgressReader(reader).progress()))

    async def steps(pilot: Pilot[None]) -> None:
        shown = await until(pilot, "archive.example")
        [row] = [line for line in shown.splitlines() if "archive.example" in line]
        assert "✗ not answering" in row and "12 left" in row and "asked again in" in row
        hosts = sum(bool(re.search(r"b\d+\.example .* 2 left", line)) for line in shown.splitlines())
        assert f"{30 - hosts} more hosts with {60 - 2 * hosts} left" in shown

    drive(state.path, steps, SMALL)


def test_a_host_of_which_nothing_was_heard_is_not_called_healthy(make_state: Any) -> None:
    """It was not asked yet, owes its first answer, has given no picture yet, or had not answered when last asked."""
    names = ("new", "slow", "empty", "dead", "good")
    urls = [f"http://{name}.example/{n}.jpg" for name in names for n in range(2)]
    state = make_state([{"id": url, "url": url} for url in urls])
    past = now_ms() - 60_000
    state.store.hosts(state.run).record(
        [
            HostInfo(host="slow.example", allowed=4, in_flight=2),
            HostInfo(host="empty.example", allowed=4, failed=1),
            HostInfo(host="dead.example", state=HostState.NOT_ANSWERING, reason="dns", until=past, failed=5),
            HostInfo(host="good.example", allowed=4, done=7),
        ]
    )

    async def steps(pilot: Pilot[None]) -> None:
        shown = await until(pilot, "new.example", "dead.example")
        found = {name: line for name in names for line in shown.splitlines() if f"{name}.example" in line}
        assert "○ not asked yet" in found["new"]
        assert "○ no answer yet" in found["slow"] and "2 of 4" in found["slow"]
        assert "○ no picture yet" in found["empty"] and "1 failed" in found["empty"]
        assert "✗ not answering" in found["dead"] and found["dead"].rstrip().endswith(" dns")
        assert "● healthy" in found["good"]
        assert sum("healthy" in line for line in shown.splitlines()) == 1

    drive(state.path, steps, LARGE)


@pytest.mark.parametrize("readonly", [True, False])
def test_no_word_of_the_title_is_cut(make_state: Any, *, readonly: bool) -> None:
    """At any width: keys and ``read-only`` first, labels of tabs next, of the path as many last names as fit."""
    state = make_state(1)
    names = {f"…/{'/'.join(state.path.parts[begin:])}" for begin in range(1, len(state.path.parts))}
    whole = {"o", "f", "c", "w", "l", "Overview", "Failures", "Captions", "Records", "Log", "read-only"}

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "Stages")
        for width in (26, 33, 40, *range(47, 70, 2), 80, 140):
            await pilot.resize_terminal(width, 24)
            await pilot.pause()
            words = text_of(pilot.app).splitlines()[0].split()
            assert set(words) <= whole | names | {str(state.path)}, width
            assert set("ofcwl") <= set(words) and ("read-only" in words) is readonly, width
            assert width < 65 or whole - {"read-only"} <= set(words)

    drive(state.path, steps, readonly=readonly)


def test_from_100_to_40_lines_nothing_is_lost(make_state: Any) -> None:
    """After a resize the overview fills the new size, wide or narrow, and smaller ones neither crash nor overlap."""
    state = make_state(20)
    state.fetch(done=8, dead=3, retry=2)

    async def steps(pilot: Pilot[None]) -> None:
        for width, height in ((160, 48), (80, 24), (60, 15), (30, 8), (120, 30), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause(0.2)
            lines = text_of(pilot.app).splitlines()
            assert (len(lines), len(lines[0])) == (height, width)
        await until(pilot, "✗ failed", "Log ─")

    drive(state.path, steps)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (RunState.DONE, ("✓ done", "ended")),
        (RunState.PARTIAL, ("▲ partial", "some items have failed")),
        (RunState.FAILED, ("✗ failed", "out of cheese", "… ended")),
        (None, ("✗ crashed", "the process is gone", "last heartbeat")),
    ],
)
def test_the_run_line_says_how_a_run_ended(make_state: Any, end: RunState | None, words: tuple[str, ...]) -> None:
    """Done, partial, failed with its message, and crashed are told apart in words."""
    state = make_state(3)
    if end is not None:
        state.store.end_run(state.run, end, f"out of cheese{' and wine' * 9}" if end is RunState.FAILED else None)
    state.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, *words)

    drive(state.path, steps)


def test_the_run_line_says_when_a_run_stops(make_state: Any) -> None:
    """A deadline stands there while the run lives, and what was left once it has ended."""
    state = make_state(3)
    at = datetime.now().astimezone() + timedelta(minutes=72, seconds=30)
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE runs SET config = json_set(config, '$.deadline', ?)", (at.isoformat(),))

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, f"running  stops at {at:%H:%M} (in 1h 12m)")
        state.store.end_run(state.run, RunState.INTERRUPTED, "deadline reached, 3 records left")
        await until(pilot, "interrupted  deadline reached, 3 records left")

    drive(state.path, steps)


def test_the_view_follows_the_run(make_state: Any) -> None:
    """What another process commits is on the screen within about a second."""
    state = make_state(10)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "0/10", "▶ running")
        state.fetch(done=4)
        state.store.heartbeat(state.run, RunState.PAUSED)
        await until(pilot, "4/10", "‖ paused")

    drive(state.path, steps)


def test_a_missing_database_is_told_and_found_when_it_appears(make_state: Any, tmp_path: Path) -> None:
    """Without a database the screen says so in words on both screens, and recovers by itself."""

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "There is no state database in", "Looking again")
        await pilot.press("f")
        await until(pilot, "There is no state database in")
        await pilot.press("o")
        await asyncio.to_thread(make_state, 7)
        await until(pilot, "7 total", "0/7")

    drive(tmp_path / "state", steps)


def test_a_newer_database_is_told(make_state: Any) -> None:
    """A database of a newer version gives the reader's own words instead of wrong figures."""
    state = make_state(1)
    state.close()
    database = sqlite3.connect(state.path / "state.db")
    database.execute("PRAGMA user_version = 9999")
    database.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "schema 9999", "upgrade", "Looking again")

    drive(state.path, steps)


def test_a_locked_database_is_told_while_it_is_locked(make_state: Any) -> None:
    """A database that does not answer is said to, the screen stays alive, and quitting does not wait for it."""
    state = make_state(4)
    state.close()
    database = sqlite3.connect(state.path / "state.db", isolation_level=None)
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    try:

        async def steps(pilot: Pilot[None]) -> None:
            shown = await until(pilot, "database blocked (3s)", "Reading the state: the database has not", patience_s=8)
            assert "total" not in shown, "figures that nobody has read"
            await pilot.press("question_mark")
            await until(pilot, "Keys")

        drive(state.path, steps)
    finally:
        database.close()


def answer(state) -> Callable[[], list[str]]:  # type: ignore[no-untyped-def]
    """Return a function that obeys open commands as the runner does, and names them."""

    def obey() -> list[str]:
        commands = state.store.open_commands()
        for command in commands:
            if command.name == "pause":
                state.store.heartbeat(state.run, RunState.PAUSED)
            state.store.acknowledge(command, state.run, f"{command.name} obeyed")
        return [command.name for command in commands]

    return obey


async def obeyed(pilot: Pilot[None], obey: Callable[[], list[str]]) -> list[str]:
    """Wait for the next commands."""
    for _ in range(100):
        if names := obey():
            return names
        await pilot.pause(0.05)
    raise AssertionError("no command came")


def test_commands_reach_the_run_and_are_acknowledged(make_state: Any) -> None:
    """p pauses and resumes, s and r ask first, r with the number; each answer is shown."""
    state = make_state(6)
    state.fetch(dead=2)
    state.store.heartbeat(state.run, RunState.RUNNING)
    obey = answer(state)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "▶ running")
        await pilot.press("p")
        assert await obeyed(pilot, obey) == ["pause"]
        await until(pilot, "pause: pause obeyed", "‖ paused")
        await pilot.press("p")
        assert await obeyed(pilot, obey) == ["resume"]
        await until(pilot, "resume: resume obeyed")
        await pilot.press("r")
        await until(pilot, "Retry 2 failed items?")
        await pilot.press("y")
        assert await obeyed(pilot, obey) == ["retry"]
        await until(pilot, "retry: retry obeyed")
        await pilot.press("s")
        await until(pilot, "Stop the run?")
        await pilot.press("enter", "n")
        assert not isinstance(pilot.app.screen, ConfirmScreen)
        await pilot.pause(0.3)
        assert obey() == []

    drive(state.path, steps)


def test_without_a_live_run_no_command_is_sent(make_state: Any) -> None:
    """r says what to run instead, p and s say that there is no run; the database is not written."""
    state = make_state(3)
    state.fetch(dead=1)
    state.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "crashed")
        await pilot.press("r")
        await until(pilot, "No run is active.", "retry-failed`, then `etl run`")
        await pilot.press("p", "s")
        await pilot.pause(0.2)
        assert not isinstance(pilot.app.screen, ConfirmScreen)

    drive(state.path, steps)
    database = sqlite3.connect(state.path / "state.db")
    assert database.execute("SELECT count(*) FROM commands").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("key", [action.keys for action in ACTIONS if action.name in COMMANDS])
def test_readonly_refuses_every_command(make_state: Any, key: str) -> None:
    """With --readonly the keys that write are answered with a refusal, beside a live run too."""
    state = make_state(3)
    state.fetch(dead=1)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "read-only", "▶ running")
        await pilot.press(key)
        await until(pilot, "Read-only: this dashboard was")
        assert not isinstance(pilot.app.screen, ConfirmScreen)

    drive(state.path, steps, readonly=True)
    assert state.store.open_commands() == []


def test_ascii_draws_nothing_else(hostile: Any) -> None:
    """With --ascii every character of every screen, dialog and message is ASCII, but for what others wrote."""
    ours = set(HOSTILE)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "> running")
        for key in ("p", "f", "enter", "enter", "c", "n", "w", "l", "ctrl+p", "question_mark"):
            await pilot.press(key)
            await pilot.pause(0.3)
            strange = {letter for letter in text_of(pilot.app) if not letter.isascii()} - ours
            assert not strange, (key, strange)

    drive(hostile.path, steps, readonly=True, ascii_only=True)


@pytest.mark.soak
def test_every_key_does_something_harmless(hostile: Any) -> None:
    """Every key of the registry, pressed on every screen and in every list, leaves the dashboard alive."""
    places = {
        "o": (),
        "f": ("lists",),
        "f,enter": ("lists", "items"),
        "c": ("samples",),
        "w": ("lists", "records"),
        "l": (),
    }

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "▶ running")
        for begin, own in places.items():
            here = [action for action in ACTIONS if action.place in own or (action.name in COMMANDS and begin != "l")]
            keys = [key for action in here for key in action.keys.split(",")]
            await pilot.press("escape", *begin.split(","), *keys)
        anywhere = [action for action in ACTIONS if action.place == EVERYWHERE and action.name != "quit"]
        await pilot.press("escape", *(key for action in anywhere for key in action.keys.split(",")), "escape", "o")
        await until(pilot, "Records", "Stages")
        assert pilot.app._exception is None

    drive(hostile.path, steps, SMALL, readonly=True)


def test_help_shows_the_whole_registry(make_state: Any) -> None:
    """Every action has a method, a key that terminals leave alone, and a line in help and palette."""
    state = make_state(1)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        shown = await until(pilot, "Keys")
        for action in ACTIONS:
            assert f"{written(action.keys):<16}{action.help}" in shown
            assert not set(action.keys.split(",")) & TAKEN_BY_TERMINALS
        await pilot.press("escape", "ctrl+p")
        await until(pilot, "what failed, and why", "pause the run, or let it go on")
        await pilot.press("escape")
        await until(pilot, "Records")
        await pilot.press("ctrl+l", "q")
        await pilot.pause()
        assert pilot.app._exit

    drive(state.path, steps, (100, 60))


def test_the_palette_runs_an_action(make_state: Any) -> None:
    """What is chosen in the palette happens: everywhere, and on the screen it was opened on."""
    state = make_state(3, pictures=True)
    state.fetch(done=3)
    state.caption("alpha", "beta")

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "▶ running")
        await pilot.press("ctrl+p", *"captions", "down", "enter")
        await until(pilot, "beta")
        await pilot.press("ctrl+p", *"older", "down", "enter")
        await until(pilot, "alpha")

    drive(state.path, steps)


def test_dark_and_light(make_state: Any) -> None:
    """t changes the ground between dark and light, and back."""
    state = make_state(1)

    async def steps(pilot: Pilot[None]) -> None:
        grounds = []
        for _ in range(3):
            grounds.append(pilot.app.screen.styles.background.hex)
            await pilot.press("t")
            await pilot.pause(0.1)
        assert grounds == ["#121212", "#FFFFFF", "#121212"]

    drive(state.path, steps)


def watch_refresh(panel: Panel, note: Callable[..., None]) -> None:
    """Tell of every refresh of a panel; it still happens."""
    refresh = panel.refresh

    def noted(*regions: Region, **options: bool) -> Panel:
        note(*regions)
        return refresh(*regions, **options)

    panel.refresh = noted  # type: ignore[method-assign]


def test_a_live_line_alone_is_drawn_again(make_state: Any) -> None:
    """Nothing but the line that changed is sent to the terminal: over a slow connection the rest would cost most."""
    state = make_state(5)
    state.store.heartbeat(state.run, RunState.RUNNING)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "▶ running")
        await pilot.pause(1.2)
        drawn: list[Region] = []
        panels = list(pilot.app.screen.query(Panel))
        everything = Region(0, 0, 999, 999)
        for panel in panels:
            watch_refresh(panel, lambda *regions: drawn.extend(regions or [everything]))
        await pilot.pause(2.5)
        assert drawn, "the age of the heartbeat changes every second"
        assert {(region.y, region.height) for region in drawn} <= {(0, 1), (1, 1)}

    drive(state.path, steps)


def test_a_broken_reader_ends_the_dashboard_with_its_error(make_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is not swallowed by a thread."""
    state = make_state(1)
    monkeypatch.setattr("tui.snapshot_reader.records_view", lambda _: 1 / 0)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.pause(1.0)

    with pytest.raises(ZeroDivisionError):
        drive(state.path, steps)


def test_suspicious_pictures_are_told(make_state: Any) -> None:
    """They stand below the hosts with a glyph and words, and what is skipped for them beside the other counts."""
    state = make_state(20)
    state.fetch(done=8)
    with state.store._connection.transaction() as db:
        db.conn.execute("UPDATE images SET flags = iif(id < 4, 'blank', 'placeholder,tiny') WHERE id < 6")
        skip_captions(db, state.recipe, ("blank",))

    async def steps(pilot: Pilot[None]) -> None:
        shown = await until(pilot, "suspicious")
        [row] = [line for line in shown.splitlines() if "suspicious" in line]
        assert "⚑ 3 blank, 2 placeholder, 2 tiny" in row
        assert "3 skipped" in shown and "17 pending" in shown

    drive(state.path, steps, SMALL)
