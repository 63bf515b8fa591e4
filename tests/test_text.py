"""`clean` leaves nothing hidden and nothing that acts on a terminal."""

import json
import sys
import unicodedata

import pytest

from etl.text import clean, clean_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text [/red] \\ ünïcödé 漢字 👍", "plain text [/red] \\ ünïcödé 漢字 👍"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\tb\nc\r\nd", "a\\tb\\nc\\r\\nd"),
        ("\x00\x7f\x9b31m", "\\x00\\x7f\\x9b31m"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("a\u200bb\ufeffc\u00add", "a\\u200bb\\ufeffc\\xadd"),
        ("x\u2028y\u2029z", "x\\u2028y\\u2029z"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("half\ud800", "half\\ud800"),
        ("blank\u3164\ufe0f", "blank\\u3164\\ufe0f"),
    ],
)
def test_clean_shows_what_is_hidden(text: str, shown: str) -> None:
    """Control, line end, bidirectional and invisible characters become escapes; all else stays."""
    assert clean(text) == shown


def test_no_code_point_gets_through_that_could_act_on_a_terminal() -> None:
    """Over all of Unicode, nothing that is left is a control, format or separator character but the space."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {unicodedata.category(character) for character in clean(everything)}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 10])
def test_a_long_text_is_cut_to_the_limit(limit: int) -> None:
    """The result has exactly the limit's length and says that something is missing."""
    cut = clean("x" * 10_000, limit)
    assert len(cut) == limit
    assert cut.endswith("..."[:limit])


def test_escapes_count_towards_the_limit() -> None:
    """A text that only grows too long by its escapes is cut as well, one that fits is not."""
    assert clean("\x1b" * 5, 10) == "\\x1b\\x1..."
    assert clean("x" * 10, 10) == "x" * 10


@pytest.mark.parametrize(
    "text", ["plain é 漢", "\x1b]0;x\x07\x9b\x7f", "\u202e\u200b\U000e0041\u2028", "\ud800", 'q"\\\n']
)
def test_json_is_exact_and_harmless(text: str) -> None:
    """A program reads exactly what was there, a terminal sees nothing that acts or hides, letters stay letters."""
    line = clean_json({text: [text]})
    assert json.loads(line) == {text: [text]}
    assert clean(line) == line
    assert ("é" in line) == ("é" in text)
