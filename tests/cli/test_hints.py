"""Hints on what to type next: they are what helps, and name the state at which the user is at work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.domain.hints import DEFAULT_STATE, hinted, name_state

Etl = Callable[..., Any]

_HINT = re.compile(r"`etl (?!demo|COMMAND)[^`]*`")


def test_a_hint_gets_the_state_where_it_has_none() -> None:
    """Each command between backquotes gets it, quoted for a shell; one that has its own or takes none stays."""
    name_state(Path("my state"))
    assert hinted("run `etl run`, or `etl gc --captioned`") == (
        "run `etl run --state 'my state'`, or `etl gc --state 'my state' --captioned`"
    )
    for kept in ("`etl verify --state parts/part-1`", "`etl stop -s x`", "`etl run --help-all`", "`etl demo x`", "etl"):
        assert hinted(kept) == kept
    name_state(DEFAULT_STATE)
    assert hinted("run `etl run`") == "run `etl run`"


@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "variable"])
def test_what_commands_say_next_names_the_state(
    etl: Etl, made: MadeState, monkeypatch: pytest.MonkeyPatch, *, by_flag: bool
) -> None:
    """Every hint of answers, notes and errors can be copied as it stands, where the state was named in any way."""
    made.ingest(b'{"id": "k", "url": "http://a.example/1.jpg"}\n')
    made.finish(dead_sources={"k": "http_404"})
    state = str(made.settings.state)
    flags = ("--state", state) if by_flag else ()
    if not by_flag:
        monkeypatch.setenv("ETL_STATE", state)
    for command in (
        ("status",), ("failures",), ("why", "k"), ("retry-failed",), ("ingest", "manifest.jsonl"),
    ):  # fmt: skip
        answer = etl(*command, *flags)
        found = _HINT.findall(answer.out + answer.err)
        assert found, command
        assert all(f" --state {state}" in hint for hint in found), (command, found)


def test_an_error_names_the_state(etl: Etl) -> None:
    """What to do about a state that is not there is said of that state."""
    assert "run `etl ingest --state other` first" in etl("status", "--state", "other").err


def test_a_line_that_is_none_names_the_state_that_it_had(etl: Etl) -> None:
    """`etl fetch` with a source says what to type instead, for the state of that line."""
    for words in (("fetch", "pictures", "--state", "other"), ("--state", "other", "fetch", "pictures")):
        assert "`etl ingest --state other pictures`" in etl(*words).err


def test_in_the_default_state_hints_stay_short(etl: Etl, made: MadeState) -> None:
    """Who names no state reads of none."""
    made.ingest(b'{"id": "k", "url": "http://a.example/1.jpg"}\n')
    assert "--state" not in etl("status").out


def test_invalid_lines_alone_are_nothing_to_try_again(etl: Etl, made: MadeState) -> None:
    """Where all that is a record is captioned, `status` says so, and does not send to `retry-failed`."""
    made.ingest(b'{"id": "k", "url": "http://a.example/1.jpg"}\nno json\n')
    made.finish(captioned={"k": "A street."})
    step = etl("status").out.splitlines()[-1]
    assert step.startswith("next      all but the invalid lines") and "retry-failed" not in step
