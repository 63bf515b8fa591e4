"""Failures, from their kinds to the story of one record, and retrying some of them."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest
from support.driving import LARGE, SMALL, drive, text_of, until
from textual.pilot import Pilot

from etl.domain.statuses import RunState
from etl.domain.views import FailureFilter
from etl.state.database import DATABASE_NAME
from tui.screens.dialogs import ConfirmScreen


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.soak)])
def test_from_a_kind_to_a_story_and_back(make_state: Any, size: tuple[int, int]) -> None:
    """Kinds with counts open their items, an item opens its story with URL and attempts; escape goes back."""
    state = make_state(20)
    state.fetch(dead=3, retry=2, done=2)
    state.caption("a street", dead=1)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        shown = await until(pilot, "4 failed items", "2 more will retry", "404 or 410: the picture")
        rows = [line.replace("▌", " ").split()[:3] for line in shown.splitlines()[3:6]]
        assert rows == [["3", "fetch", "http_404"], ["2", "fetch", "timeout"], ["1", "caption", "generation"]]
        await pilot.press("enter")
        await until(pilot, "fetch: http_404   3 items   failed", "r000", "r002", "the host said 404")
        await pilot.press("down")
        await until(pilot, "key      r001", "url      http://archive.example/1.jpg")
        await pilot.press("enter")
        await until(pilot, "line 2 of", "failed, 1 attempt", "http_404: the host said 404")
        await pilot.press("end")
        await until(pilot, "Attempts", "fetch 1  0.0 s  http_404")
        await pilot.press("escape", "escape")
        await until(pilot, "4 failed items")
        await pilot.press("escape")
        await until(pilot, "Stages")

    drive(state.path, steps, size)


def test_what_will_retry_tells_when(make_state: Any) -> None:
    """An item that will retry is listed too, and its story says when."""
    state = make_state(5)
    state.fetch(retry=1)
    with closing(sqlite3.connect(state.path / DATABASE_NAME)) as database, database:
        database.execute("UPDATE sources SET not_before = not_before + 3600000 WHERE status = 'retry'")

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "1 more will retry", "timeout")
        await pilot.press("enter")
        await until(pilot, "fetch: timeout   1 item   will retry")
        await pilot.press("r")
        await until(pilot, "These will retry")
        await pilot.press("enter")
        await until(pilot, "next attempt in")

    drive(state.path, steps)


def test_many_are_shown_in_pages(make_state: Any) -> None:
    """Of many failures 200 are read at a time; n goes on behind them and b begins anew."""
    state = make_state(430)
    state.fetch(dead=430)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "430 failed items")
        await pilot.press("enter")
        await until(pilot, "1 to 200 of 430", "r000")
        await pilot.press("n")
        await until(pilot, "201 to 400 of 430", "r200")
        await pilot.press("n")
        await until(pilot, "401 to 430 of 430", "r400")
        await pilot.press("n", "end")
        await until(pilot, "401 to 430 of 430", "key      r429")
        await pilot.press("b")
        await until(pilot, "1 to 200 of 430", "key      r000")

    drive(state.path, steps)


def test_a_list_follows_the_run_and_keeps_its_mark(make_state: Any) -> None:
    """New failures appear while the list is looked at, and the marked one stays marked."""
    state = make_state(10)
    state.fetch(dead=3)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "3 failed items")
        await pilot.press("enter", "down", "down")
        await until(pilot, "key      r002")
        state.fetch(dead=2)
        await until(pilot, "5 items", "r004", "key      r002")
        state.store.retry_failed(FailureFilter(key="r000"))
        await until(pilot, "4 items", "key      r002")

    drive(state.path, steps)


def arguments_of(state: Any) -> list[tuple[str, dict[str, str]]]:
    """Acknowledge open commands; return their names and arguments."""
    commands = state.store.open_commands()
    for command in commands:
        state.store.acknowledge(command, state.run, "obeyed")
    return [(command.name, command.arguments) for command in commands]


async def sent(pilot: Pilot[None], state: Any) -> list[tuple[str, dict[str, str]]]:
    """Wait for the next commands."""
    for _ in range(100):
        if found := arguments_of(state):
            return found
        await pilot.pause(0.05)
    raise AssertionError(f"no command came:\n{text_of(pilot.app)}")


def test_retrying_one_a_class_or_all(make_state: Any) -> None:
    """r on a kind means the kind, r on an item the item, R everything; the question says how many."""
    state = make_state(12)
    state.fetch(dead=5, done=4)
    state.caption(dead=2)
    state.store.heartbeat(state.run, RunState.RUNNING)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "7 failed items")
        await pilot.press("r")
        await until(pilot, "Retry 5 failed items: fetch items with http_404?")
        await pilot.press("y")
        assert await sent(pilot, state) == [("retry", {"stage": "fetch", "error_class": "http_404"})]
        await until(pilot, "retry: obeyed")
        await pilot.press("enter")
        await until(pilot, "r000")
        await pilot.press("down", "r")
        await until(pilot, "Retry 1 failed item: fetch item of r001?")
        await pilot.press("y")
        assert await sent(pilot, state) == [("retry", {"stage": "fetch", "key": "r001"})]
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, "line 2 of")
        await pilot.press("r")
        await until(pilot, "Retry 1 failed item: failed items of r001?")
        await pilot.press("y")
        assert await sent(pilot, state) == [("retry", {"key": "r001"})]
        await pilot.pause(0.5)
        await pilot.press("R")
        await until(pilot, "Retry 7 failed items?")
        await pilot.press("n")
        assert not isinstance(pilot.app.screen, ConfirmScreen)
        assert arguments_of(state) == []

    drive(state.path, steps)


def test_invalid_lines_are_the_manifests_fault(make_state: Any) -> None:
    """A line that cannot be a record is listed with its reason, and a retry says what helps."""
    state = make_state([{"id": "good", "url": "http://archive.example/1.jpg"}, {"id": "bad"}])

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "1 failed item", "ingest", "no_image_field", "The record names no image")
        await pilot.press("r")
        await until(pilot, "Its manifest lines are")
        await pilot.press("enter")
        await until(pilot, "key      bad")
        await pilot.press("enter")
        await until(pilot, "state     invalid")

    drive(state.path, steps)


def test_without_a_run_the_command_is_named(make_state: Any) -> None:
    """Where no run is there to obey, the message is the command line that does the same, quoted for a shell."""
    state = make_state([{"id": "a b", "url": "http://archive.example/1.jpg"}])
    state.fetch(dead=1)
    state.close()

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "1 failed item")
        await pilot.press("enter")
        await until(pilot, "key      a b")
        await pilot.press("r")
        await until(pilot, "etl retry-failed", "--key 'a b'")

    drive(state.path, steps, LARGE)


def test_nothing_failed(make_state: Any) -> None:
    """Without failures the lists say so, and their keys do nothing."""
    state = make_state(3)

    async def steps(pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await until(pilot, "Nothing has failed.")
        await pilot.press("enter", "r", "y", "down", "end")
        await until(pilot, "Nothing has failed")

    drive(state.path, steps)


@pytest.mark.parametrize("size", [SMALL, pytest.param(LARGE, marks=pytest.mark.soak)])
def test_hostile_text_is_shown_and_does_nothing(hostile: Any, size: tuple[int, int]) -> None:
    """Escapes, markup, bidirectional controls and 10,000 characters stay text, in lists, details and stories."""

    async def steps(pilot: Pilot[None]) -> None:
        for keys, words in (
            (("f",), ("3 failed items", "http_404")),
            (("enter",), ("key      0\\x1b]0;owned\\x07\\x1b[31m[/red][@click=app.q",)),
            (("enter",), ("0\\x1b]0;owned\\x07", "[/red][@click=app.quit]x\\u202e", "A" * 40)),
            (("c",), ("flags: repetition", "[/red][@click")),
            (("w",), ("0\\x1b]0;owned\\x07",)),
            (("l",), ("\\x1b]0;owned\\x07\\x1b[31m[/red]",)),
        ):
            await pilot.press(*keys)
            shown = await until(pilot, *words)
            assert not set(shown) & set("\x1b\x07\r\u202e\u200b")
            assert all(len(line) <= size[0] for line in shown.splitlines())
        assert pilot.app.is_running

    drive(hostile.path, steps, size)
