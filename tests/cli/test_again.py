"""Quality flags on the command line: how many there are, and how captions are made again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.made_state import MadeState

from etl.cli.render import flag_lines
from etl.domain.statuses import QualityFlag
from etl.state.requeue import UNLIKELY

Etl = Callable[..., Any]


@pytest.fixture
def loops(made: MadeState) -> MadeState:
    """A state with two captions that repeat themselves and one that does not."""
    made.ingest(b"".join(b'{"id":"%c","url":"http://%c.example/1.jpg"}\n' % (key, key) for key in b"abc"))
    made.finish({"a": "A a a.", "b": "B b b."}, flags=("repetition",))
    made.finish({"c": "C."})
    return made


@pytest.mark.usefixtures("loops")
def test_status_counts_flags(etl: Etl) -> None:
    """``status`` says how many captions carry which flag, to people and to programs."""
    assert etl("status", "--json").json()["flags"] == {"repetition": 2}
    assert "flags     2 repetition\n" in etl("status").out


def test_no_flags_are_no_line(etl: Etl, made: MadeState) -> None:
    """Without flags there is nothing to say."""
    made.ingest(b'{"id":"a","url":"http://a.example/1.jpg"}\n')
    made.finish({"a": "A."})
    assert etl("status", "--json").json()["flags"] == {}
    assert "flags" not in etl("status").out


@pytest.mark.usefixtures("loops")
def test_flagged_captions_are_put_back(etl: Etl) -> None:
    """A dry run counts; then the chosen ones are ready, their records still captioned, and what to run next is said."""
    flagged = ("retry-failed", "--flag", "repetition")
    expected = {"caption": 2, "waiting": 0, "exhausted": 0, "penalties": {"1.2": 2}}
    assert etl(*flagged, "--dry-run", "--json").json() == expected
    would = etl(*flagged, "--dry-run", "--repetition-penalty", "1.3")
    assert would.err == "caption: 2 would be made again with a repetition penalty of 1.3\n"
    answer = etl(*flagged, "--host", "a.example")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.splitlines() == [
        "caption: 1 will be made again with a repetition penalty of 1.2",
        "until then the captions that are there count; now run `etl run` (or `etl caption`)",
    ]
    status = etl("status", "--json").json()
    assert (status["captions"]["ready"], status["captions"]["done"], status["records"]["captioned"]) == (1, 2, 3)
    assert etl(*flagged, "--key", "b", "--json").json()["caption"] == 1
    assert etl("verify", "--json").json()["problems"] == []


def test_why_tells_what_was_replaced(etl: Etl, loops: MadeState) -> None:
    """``why`` tells the caption that counts while another is to be made, and afterwards the one that was replaced."""
    etl("retry-failed", "--flag", "repetition", "--key", "a")
    counts = " be made again with repetition penalty 1.2; what counts:\n          A a a.\n"
    waiting = etl("why", "a").out
    assert f"ready\n          is to{counts}" in waiting
    assert "earlier" not in waiting
    loops.finish(dead_captions={"a": "generation"})
    assert f"could not{counts}" in etl("why", "a").out
    etl("retry-failed")
    loops.finish({"a": "A."})
    told = etl("why", "a")
    assert "          A.\n          1 token, stop, repetition penalty 1.2\nearlier   of 2" in told.out
    assert "          A a a.\n          3 tokens, stop, flags: repetition\n" in told.out
    (caption,) = etl("why", "a", "--json").json()["captions"]
    assert (caption["repetition_penalty"], caption["earlier"][0]["text"]) == (1.2, "A a a.")


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("flag", list(QualityFlag))
def test_where_a_penalty_hardly_helps_it_is_said(etl: Etl, flag: str) -> None:
    """Each flag can be asked for; where changed decoding is unlikely to matter one line says why, with --json none."""
    answer = etl("retry-failed", "--flag", flag, "--dry-run")
    said = [line for line in answer.err.splitlines() if line.startswith("a repetition penalty is unlikely to help: ")]
    assert answer.code == 0
    assert len(said) == (flag not in ("repetition", "echo")) == (flag in UNLIKELY)
    assert etl("retry-failed", "--flag", flag, "--dry-run", "--json").err == ""


def test_a_run_names_the_command_for_its_flags() -> None:
    """Flags that changed decoding helps against come with the command; of the others it is said why it hardly does."""
    helped, unlikely = flag_lines({"repetition": 1200, "refusal": 1})
    assert helped == "1,200 captions flagged repetition; `etl retry-failed --flag repetition` has them made again"
    assert unlikely == f"1 caption flagged refusal; making them again is unlikely to help: {UNLIKELY['refusal']}"


@pytest.mark.usefixtures("forked_children")
def test_from_a_flag_to_another_caption(etl: Etl, finished: Any) -> None:
    """A caption run names what it flagged; asked to, the next makes them again, and the export tells how."""
    short = ("caption", "--model", "demo", "--device", "cpu", "--max-new-tokens", "3")
    first = etl(*short)
    assert "5 captions flagged truncated; making them again is unlikely to help: " in first.err
    etl("export", "before.jsonl")
    assert etl("retry-failed", "--flag", "truncated", "--json").json()["caption"] == 5
    etl("export", "meanwhile.jsonl")
    assert etl(*short, "--json").json()["stages"]["caption"]["done"] == 5
    etl("export", "after.jsonl", "--provenance")
    assert Path("before.jsonl").read_bytes() == Path("meanwhile.jsonl").read_bytes()
    rows = [json.loads(line) for line in Path("after.jsonl").read_text().splitlines()]
    assert [row["vlm_provenance"]["repetition_penalty"] for row in rows[:5]] == [1.2] * 5
    assert etl("verify", "--json").json()["problems"] == []
    assert finished.answer.code == 3
