"""Numbers, durations, bars and rates as the dashboard writes them."""

import pytest

from etl.units import percent, size
from tui.format import (
    ASCII,
    UNICODE,
    bar,
    breaks,
    count,
    duration,
    folded,
    money,
    per_second,
    rate,
    short,
    spark,
)
from tui.rates import SAMPLES, Steadiness


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999_999, "999,999"), (1_000_000, "1.00M"), (9_999_999, "10.0M"), (123_456_789, "123M"),
     (999_999_999, "1.00G"), (5 * 10**12, "5.00T")],
)  # fmt: skip
def test_counts_stay_short(number: int, text: str) -> None:
    """A count is exact below a million and never wider than its column."""
    assert count(number) == text
    assert len(short(number)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0s"), (59.9, "59s"), (60, "1m 00s"), (3599, "59m 59s"), (3600, "1h 00m"),
     (86_399, "23h 59m"), (86_400, "1d 0h"), (9e9, "104166d"), (-3, "0s")],
)  # fmt: skip
def test_durations_have_two_units(seconds: float | None, text: str) -> None:
    """A duration shows its two largest units and fits seven characters."""
    assert duration(seconds) == text
    assert len(text) <= 7


def test_a_bar_is_full_only_at_the_end() -> None:
    """One item left shows, and one item done shows, however many there are."""
    for glyphs in (UNICODE, ASCII):
        assert bar(0, 10, 8, glyphs) == ("", glyphs.empty * 8)
        assert bar(10, 10, 8, glyphs) == (glyphs.full * 8, "")
        assert bar(999_999, 1_000_000, 8, glyphs) == (glyphs.full * 7 + glyphs.half, "")
        assert bar(1, 1_000_000, 8, glyphs) == (glyphs.half, glyphs.empty * 7)
        assert bar(0, 0, 8, glyphs) == ("", glyphs.empty * 8)


def test_percents_and_rates_at_their_edges() -> None:
    """100 % means all, 0 % means none, and a slow rate keeps a decimal."""
    assert [percent(n, 1000) for n in (0, 1, 999, 1000)] == ["0 %", "1 %", "99 %", "100 %"]
    assert percent(0, 0) == ""
    assert [rate(x) for x in (None, 0.0, 0.24, 9.96, 1234.4)] == ["-", "0", "0.2", "10", "1,234"]


def test_a_rate_settles_only_after_it_held() -> None:
    """A growing rate is not settled, a held one is, and another run begins anew."""
    growing, held = Steadiness(), Steadiness()
    assert not any(growing.add("a", 0.2 * second) for second in range(1, 2 * SAMPLES))
    assert [held.add("a", 2.0) for _ in range(SAMPLES)] == [False] * (SAMPLES - 1) + [True]
    assert held.add("a", 2.1)
    assert not held.add("b", 2.1)
    assert not held.add(None, 2.1)


def test_a_slow_stage_can_settle() -> None:
    """One item more or less in a minute is no change of rate; no item at all is no rate."""
    slow, idle = Steadiness(), Steadiness()
    assert [slow.add("a", n / 60) for n in (3, 4, 3, 3, 4, 4, 3, 3, 4, 3)][-1]
    assert not any(idle.add("a", 0.0) for _ in range(2 * SAMPLES))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1024 * 100, "100 KiB"),
        (15 * 2**30, "15.0 GiB"),
        (2**50, "1,024.0 TiB"),
    ],
)
def test_sizes_are_short(number: int, text: str) -> None:
    """Bytes are written in powers of 1024 with one decimal below a hundred."""
    assert size(number) == text


def test_a_plot_has_its_highest_and_its_lowest() -> None:
    """The largest value fills its cell, nothing is the lowest, and any value is more than nothing."""
    assert spark((0, 1, 50, 100), 10, ASCII) == "_.=#"
    assert spark((5, 0, 1000), 2, UNICODE) == "▁█"
    assert spark((0, 0), 5, ASCII) == "__"
    assert spark((), 5, ASCII) == spark((1, 2), 0, ASCII) == ""


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("hello world foo", 5, ["hello", "world", "foo"]),
        ("hello world", 11, ["hello world"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("中文中文", 4, ["中文", "中文"]),
        ("中", 1, [""]),
        ("", 4, [""]),
    ],
)
def test_lines_are_broken_at_spaces_and_by_cells(text: str, width: int, lines: list[str]) -> None:
    """Words stay whole where they can, wide characters count twice, and nothing runs forever."""
    assert [text[begin:end] for begin, end in breaks(text, width)] == lines


def test_a_text_that_was_cut_says_so() -> None:
    """Where lines are left out, the last one ends with dots."""
    assert folded("one two three four", 9, 1) == ["one tw..."]
    assert folded("one two three", 9, 2) == ["one two", "three"]


def test_rates_and_money_keep_their_width() -> None:
    """Small rates keep decimals, large amounts lose them."""
    assert [per_second(x) for x in (0, 0.123, 5.55, 123.4)] == ["0", "0.12", "5.5", "123"]
    assert [money(x) for x in (0, 12.345, 123_456.7)] == ["0.00", "12.35", "123,457"]
