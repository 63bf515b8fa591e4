"""Untrusted text in keys, URLs, errors and captions is shown without acting on the terminal."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.made_state import MadeState

Etl = Callable[..., Any]

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/red][@click=app.quit]\u202egnp.exe\u200b\r\nforged line \x9b31m"
HARMLESS = r"\x1b]0;owned\x07\x1b[2J[/red][@click=app.quit]\u202egnp.exe\u200b\r\nforged line \x9b31m"


@pytest.fixture
def hostile(made: MadeState) -> MadeState:
    """Return a state in which key, URL, error, caption, model name and prompt are hostile."""
    records = [{"id": HOSTILE + str(n), "path": f"/pictures/{HOSTILE}{n}", "title": HOSTILE} for n in (1, 2, 3)]
    records.append({"id": HOSTILE + "4", "url": "http://" + HOSTILE})
    made.ingest("".join(json.dumps(record) + "\n" for record in records).encode())
    made.finish(
        {HOSTILE + "1": HOSTILE},
        dead_sources={HOSTILE + "2": "http_404"},
        dead_captions={HOSTILE + "3": "generation"},
        message=HOSTILE, model="some/" + HOSTILE,
    )  # fmt: skip
    return made


def assert_harmless(text: str) -> None:
    """Every character is printable, and lines are only those that the program itself ended."""
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert not any(line.startswith("forged") for line in text.splitlines())


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", ["status", "failures", "failures --by item", "runs"])
def test_lists(etl: Etl, command: str) -> None:
    """Lists show control, direction and invisible characters as escapes, and markup as it is."""
    answer = etl(*command.split())
    assert (answer.code, answer.err) == (0, "")
    assert_harmless(answer.out)
    if command not in ("runs", "failures"):
        assert HARMLESS in answer.out


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("number", ["1", "2", "3", "4"])
def test_why(etl: Etl, number: str) -> None:
    """A record's story shows its key, URL, prompt, caption and errors harmlessly."""
    answer = etl("why", HOSTILE + number)
    assert answer.code == 0
    assert_harmless(answer.out)
    assert answer.out.count(HARMLESS) >= (3 if number != "4" else 1)


@pytest.mark.usefixtures("hostile")
def test_json(etl: Etl) -> None:
    """JSON carries the text unchanged on one line, its control characters escaped."""
    lines = etl("failures", "--json").out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "\x1b" not in line and "\x07" not in line
        assert json.loads(line)["key"].startswith(HOSTILE)


@pytest.mark.usefixtures("hostile")
def test_messages(etl: Etl) -> None:
    """What was typed is shown harmlessly in error messages too."""
    for arguments in (["why", "x" + HOSTILE], ["export", "out", "--recipe", HOSTILE], ["ingest", HOSTILE]):
        answer = etl(*arguments)
        assert answer.code == 2
        assert_harmless(answer.err)
        assert len(answer.err.splitlines()) == 1
