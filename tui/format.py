"""Numbers, durations, bars and glyphs as text.  Pure: no I/O, no widgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from etl import units
from etl.domain.statuses import RunState

NOTHING = "-"
"""Shown where there is no number to show."""

UNHEARD = "unheard"
"""Stands among the states of hosts for one that has given no picture yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """One set of drawing characters, each one cell wide.

    Attributes:
        full, half, empty: cells of a bar.  ``half`` is drawn where the last full cell is only half reached.
        rule: the line beside a heading.
        run: per `RunState`.
        stage: per `StageState`, by its value.
        host: per `HostState`, by its value, and for a host of which nothing was heard yet.
        failed, will_retry: marks of the rows of failures.
        flag: before what is suspicious.
        dot: separates parts of a line.
        spark: heights of a plot, lowest first.
        more: stands where a text was cut.
        mark: before the row under the cursor.
    """

    full: str
    half: str
    empty: str
    rule: str
    run: Mapping[str, str]
    stage: Mapping[str, str]
    host: Mapping[str, str]
    failed: str
    will_retry: str
    flag: str
    dot: str
    spark: str
    more: str
    mark: str


UNICODE = Glyphs(
    full="━", half="╸", empty="─", rule="─", failed="✗", will_retry="↻", flag="⚑", dot="·", spark="▁▂▃▄▅▆▇█",
    more="…", mark="▌",
    host={"open": "●", "slowed": "◐", "paused": "‖", "parked": "✗", UNHEARD: "○"},
    run={
        RunState.NONE: "○", RunState.RUNNING: "▶", RunState.PAUSED: "‖", RunState.STOPPING: "■",
        RunState.CRASHED: "✗", RunState.DONE: "✓", RunState.PARTIAL: "▲", RunState.INTERRUPTED: "■",
        RunState.FAILED: "✗",
    },
    stage={"empty": "○", "running": "▶", "waiting": "↻", "paused": "‖", "idle": "○", "done": "✓"},
)  # fmt: skip

ASCII = Glyphs(
    full="#", half="-", empty=".", rule="-", failed="x", will_retry="~", flag="!", dot="|", spark="_.-:=+*#",
    more="~", mark=">",
    host={"open": "o", "slowed": "~", "paused": "=", "parked": "x", UNHEARD: "."},
    run={
        RunState.NONE: "o", RunState.RUNNING: ">", RunState.PAUSED: "=", RunState.STOPPING: "#",
        RunState.CRASHED: "x", RunState.DONE: "+", RunState.PARTIAL: "!", RunState.INTERRUPTED: "#",
        RunState.FAILED: "x",
    },
    stage={"empty": "o", "running": ">", "waiting": "~", "paused": "=", "idle": "o", "done": "+"},
)  # fmt: skip


def count(number: int) -> str:
    """Return at most seven characters: exact below a million, then ``1.23M``, ``12.3M``, ``4.56G``."""
    if number < 1_000_000:
        return f"{number:,}"
    for size, unit in ((1e6, "M"), (1e9, "G")):
        if (value := number / size) < 999.5:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{number / 1e12:.2f}T"


def short(number: int) -> str:
    """Return at most six characters: as `count`, but from 100,000 on in thousands (``123k``)."""
    return f"{number // 1000}k" if 100_000 <= number < 1_000_000 else count(number)


def rate(per_minute: float | None) -> str:
    """Return a rate without its unit; one decimal below ten."""
    if per_minute is None:
        return NOTHING
    return f"{per_minute:.1f}" if 0 < per_minute < 9.95 else short(round(per_minute))


def per_second(number: float) -> str:
    """Return a rate per second without its unit: one decimal below a hundred, two below one."""
    if number <= 0:
        return "0"
    return f"{number:.2f}" if number < 0.995 else f"{number:.1f}" if number < 99.95 else count(round(number))


def money(amount: float) -> str:
    """Return an amount of whatever money the price is in; whole from ten thousand on."""
    return f"{amount:,.2f}" if amount < 10_000 else f"{amount:,.0f}"


def spark(values: Sequence[int], width: int, glyphs: Glyphs) -> str:
    """Return the latest ``width`` values as a plot, one cell each; the largest fills its cell, 0 is the lowest."""
    shown = values[-width:] if width > 0 else ()
    top, steps = max(shown, default=0), len(glyphs.spark) - 1
    return "".join(glyphs.spark[-(-value * steps // top) if top else 0] for value in shown)


def breaks(text: str, width: int) -> list[tuple[int, int]]:
    """Return begin and end of each line when the text is broken into lines of ``width`` cells.

    It is broken at a space where there is one, which then belongs to no line, else between two characters.
    """
    lines, begin = [], 0
    while begin < len(text):
        end, cells, space = begin, 0, -1
        while end < len(text) and (cells := cells + (1 if text[end].isascii() else cell_len(text[end]))) <= width:
            space = end if text[end] == " " else space
            end += 1
        following = end
        if end < len(text) and text[end] == " ":
            following = end + 1
        elif end < len(text) and space > begin:
            end, following = space, space + 1
        lines.append((begin, end))
        # A character wider than the line would never be passed.
        begin = max(following, begin + 1)
    return lines or [(0, 0)]


def folded(text: str, width: int, most: int) -> list[str]:
    """Return the first ``most`` lines of the text; where more was cut off, the last of them ends with dots."""
    lines = [text[begin:end] for begin, end in breaks(text, width)]
    if len(lines) > most:
        lines[most - 1] = lines[most - 1][: max(0, width - 3)] + "..."
    return lines[:most]


def duration(seconds: float | None) -> str:
    """Return seconds as `etl.units.duration` writes them, and a dash where they are not known."""
    return NOTHING if seconds is None else units.duration(seconds)


def bar(done: int, total: int, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """Return the reached and the open part of a bar, together ``width`` cells.

    It is full only when everything is done, and never empty once something is.
    """
    if width <= 0:
        return "", ""
    halves = 0 if total <= 0 else int(2 * width * min(done, total) / total)
    if 0 < done < total:
        halves = min(2 * width - 1, max(1, halves))
    reached = glyphs.full * (halves // 2) + glyphs.half * (halves % 2)
    return reached, glyphs.empty * (width - len(reached))
