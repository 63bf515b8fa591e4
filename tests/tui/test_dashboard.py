"""The dashboard over real states, driven by its keys at 80x24 and 120x40."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from etl.models import RunState
from tui.app import Dashboard
from tui.keys import ACTIONS
from tui.screens.dialogs import ConfirmScreen

SMALL, LARGE = (80, 24), (120, 40)
TAKEN_BY_TERMINALS = {f"ctrl+{letter}" for letter in "abhijms"}


def text_of(app: Dashboard) -> str:
    """Return what the terminal would show, line by line."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in strips)


async def until(pilot: Pilot[None], *words: str, patience_s: float = 5.0) -> str:
    """Wait until all words are on the screen; return the screen."""
    for _ in range(int(patience_s / 0.05)):
        shown = text_of(pilot.app)
        if all(word in shown for word in words):
            return shown
        await pilot.pause(0.05)
    raise AssertionError(f"{words} not on the screen:\n{shown}")


def drive(
    state: Path, steps: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = SMALL, **options: bool
) -> None:
    """Run the app on a state and do the steps."""

    async def go() -> None:
        async with Dashboard(state, **options).run_test(size=size, notifications=True) as pilot:
            await steps(pilot)

    asyncio.run(go())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_overview_is_whole(make_state, size: tuple[int, int]) -> None:
    """Run, records, stages, failures and keys are all on the screen, and every figure is the database's."""
    state = make_state(20)
    state.fetch(done=8, dead=3, retry=2)
    state.caption(5)
    state.store.heartbeat(state.run, RunState.RUNNING)

    async def steps(pilot: Pilot[None]) -> None:
        lines = (await until(pilot, "▶ running", "http_404", "q Quit")).splitlines()
        assert all(len(line) == size[0] for line in lines)
        row = {line.split()[0]: line.split() for line in lines if line.split()}
        assert "heartbeat" in text_of(pilot.app)
        assert "20 total" in text_of(pilot.app)
        assert "5 captioned" in text_of(pilot.app)
        assert "3 failed" in text_of(pilot.app)
        assert row["fetch"][1:3] == ["↻", "waiting"]
        assert row["fetch"][-5:-2] == ["8/20", "3", "2"]
        assert row["caption"][-5:-2] == ["5/8+", "-", "-"]
        assert row["fetch"][-1] == row["caption"][-1] == "-", "an ETA before the rate has settled"
        assert ["3", "fetch", "http_404", "✗", "dead"] in [line.split() for line in lines]
        assert ["2", "fetch", "timeout", "↻", "will", "be", "tried", "again"] in [line.split() for line in lines]

    drive(state.path, steps, size)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (RunState.DONE, ("✓ done", "ended")),
        (RunState.PARTIAL, ("▲ partial", "some items are dead")),
        (RunState.FAILED, ("✗ failed", "out of cheese")),
        (None, ("✗ crashed", "the process is gone", "last heartbeat")),
    ],
)
def test_the_run_line_says_how_a_run_ended(make_state, end: RunState | None, words: tuple[str, ...]) -> None:
    """Done, partial, failed with its message, and crashed are told apart in words."""
    state = make_state(3)
    if end is not None:
        state.store.end_run(state.run, end, "out of cheese" if end is RunState.FAILED else None)
    state.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, *words)

    drive(state.path, steps)


def test_the_view_follows_the_run(make_state) -> None:
    """What another process commits is on the screen within about a second."""
    state = make_state(10)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "0/10", "▶ running")
        state.fetch(done=4)
        state.store.heartbeat(state.run, RunState.PAUSED)
        await until(pilot, "4/10", "‖ paused")

    drive(state.path, steps)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_hostile_text_is_shown_and_does_nothing(make_state, size: tuple[int, int]) -> None:
    """Escapes, markup, bidirectional controls and 10,000 characters stay text, in table and detail."""
    state = make_state(5, hostile=True)
    state.fetch(dead=3, message="\x1b]0;owned\x07[/red][@click=app.quit]x\u202eevil\nline two " + "A" * 10_000)

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "http_404")
        await pilot.press("f")
        shown = await until(pilot, "3 dead items", "\\x1b]0;owned\\x07[/", "key  0key\\x1b[31m[/red]\\u202egnp.exe")
        assert "[/red][@click=app.quit]x\\u202eevil\\nline two" in shown
        assert "A" * (size[0] - 2) in shown
        assert "url  http://archive.example/[/b].jpg" in shown
        assert not set(shown) & set("\x1b\x07\u202e")
        await pilot.press("down")
        await until(pilot, "key  r001")
        await pilot.press("escape")
        await until(pilot, "Records")

    drive(state.path, steps, size)


def test_the_failures_table_is_capped(make_state) -> None:
    """Of many failures 200 are listed, and the screen says so."""
    state = make_state(230)
    state.fetch(dead=230)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "230 dead items; the first 200 are listed", "r000")
        assert pilot.app.screen.query_one("#table").row_count == 200

    drive(state.path, steps)


def test_a_missing_database_is_told_and_found_when_it_appears(make_state, tmp_path: Path) -> None:
    """Without a database the screen says so in words on both screens, and recovers by itself."""

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "There is no state database in", "Looking again")
        await pilot.press("f")
        await until(pilot, "There is no state database in")
        await pilot.press("o")
        await asyncio.to_thread(make_state, 7)
        await until(pilot, "7 total", "0/7")

    drive(tmp_path / "state", steps)


def test_a_newer_database_is_told(make_state) -> None:
    """A database of a newer version gives the reader's own words instead of wrong figures."""
    state = make_state(1)
    state.close()
    database = sqlite3.connect(state.path / "state.db")
    database.execute("PRAGMA user_version = 9999")
    database.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "newer")

    drive(state.path, steps)


def test_a_locked_database_is_told_while_it_is_locked(make_state) -> None:
    """A database that does not answer is said to, the screen stays alive, and quitting does not wait for it."""
    state = make_state(4)
    state.close()
    database = sqlite3.connect(state.path / "state.db", isolation_level=None)
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    try:

        async def steps(pilot: Pilot[None]) -> None:
            shown = await until(pilot, "the database does not answer (3s)", "Reading the state", patience_s=8)
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


def test_commands_reach_the_run_and_are_acknowledged(make_state) -> None:
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
        await until(pilot, "Retry 2 dead items?")
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


def test_without_a_live_run_no_command_is_sent(make_state) -> None:
    """r says what to run instead, p and s say that there is no run; the database is not written."""
    state = make_state(3)
    state.fetch(dead=1)
    state.close()

    async def steps(pilot: Pilot[None]) -> None:
        await until(pilot, "crashed")
        await pilot.press("r")
        await until(pilot, "No run is active. Run `etl", "retry-failed`")
        await pilot.press("p", "s")
        await pilot.pause(0.2)
        assert not isinstance(pilot.app.screen, ConfirmScreen)

    drive(state.path, steps)
    database = sqlite3.connect(state.path / "state.db")
    assert database.execute("SELECT count(*) FROM commands").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("key", [action.keys for action in ACTIONS if action.writes])
def test_readonly_refuses_every_command(make_state, key: str) -> None:
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


def test_ascii_draws_nothing_else(make_state) -> None:
    """With --ascii every character of every screen, dialog and message is ASCII."""
    state = make_state(30)
    state.fetch(done=9, dead=20, retry=1)

    async def steps(pilot: Pilot[None]) -> None:
        for keys, words in (
            ((), "> running"), (("p",), "Read-only"), (("f",), "20 dead items"), (("ctrl+p",), "20 dead items"),
            (("question_mark",), "this list"),
        ):  # fmt: skip
            await pilot.press(*keys)
            shown = await until(pilot, words)
            assert shown.replace("\n", "").isascii(), sorted({c for c in shown if not c.isascii()})

    drive(state.path, steps, readonly=True, ascii_only=True)


def test_help_shows_the_whole_registry(make_state) -> None:
    """Every action has a method, a key that terminals leave alone, and a line in the help."""
    state = make_state(1)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        shown = await until(pilot, "Keys")
        for action in ACTIONS:
            assert f"{action.shown_keys():<12}{action.help}" in shown
            assert not set(action.keys.split(",")) & TAKEN_BY_TERMINALS
            assert hasattr(pilot.app, f"action_{action.name}")
        await pilot.press("escape", "ctrl+p")
        await until(pilot, "what failed, and why", "pause the run, or let it go on")
        await pilot.press("escape")
        await until(pilot, "Records")
        await pilot.press("ctrl+l", "q")
        await pilot.pause()
        assert pilot.app._exit

    drive(state.path, steps)
