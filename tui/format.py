"""Numbers, durations, bars and glyphs as text.  Pure: no I/O, no widgets."""

from collections.abc import Mapping
from dataclasses import dataclass

from etl.models import RunState

_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86400

NOTHING = "-"
"""Shown where there is no number to show."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One set of drawing characters, each one cell wide.

    Attributes:
        full, half, empty: cells of a bar.  ``half`` is drawn where the last full cell is only half reached.
        rule: the line beside a heading.
        run: per `RunState`.
        stage: per `StageState`, by its value.
        dead, waiting: marks of the rows of failures.
        dot: separates parts of a line.
    """

    full: str
    half: str
    empty: str
    rule: str
    run: Mapping[str, str]
    stage: Mapping[str, str]
    dead: str
    waiting: str
    dot: str


UNICODE = Glyphs(
    full="━", half="╸", empty="─", rule="─", dead="✗", waiting="↻", dot="·",
    run={
        RunState.NONE: "○", RunState.RUNNING: "▶", RunState.PAUSED: "‖", RunState.STOPPING: "■",
        RunState.CRASHED: "✗", RunState.DONE: "✓", RunState.PARTIAL: "▲", RunState.INTERRUPTED: "■",
        RunState.FAILED: "✗",
    },
    stage={"empty": "○", "running": "▶", "waiting": "↻", "paused": "‖", "idle": "○", "done": "✓"},
)  # fmt: skip

ASCII = Glyphs(
    full="#", half="-", empty=".", rule="-", dead="x", waiting="~", dot="|",
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


def plural(number: int, noun: str) -> str:
    """Return ``1 item``, ``1,234 items``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(per_minute: float | None) -> str:
    """Return a rate without its unit; one decimal below ten."""
    if per_minute is None:
        return NOTHING
    return f"{per_minute:.1f}" if 0 < per_minute < 9.95 else short(round(per_minute))


def duration(seconds: float | None) -> str:
    """Return the two largest units, at most seven characters: ``45s``, ``2m 05s``, ``1h 07m``, ``3d 4h``."""
    if seconds is None:
        return NOTHING
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02d}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02d}m"
    days, rest = divmod(whole, _DAY)
    return f"{days}d {rest // _HOUR}h" if days < 1000 else f"{days}d"


def percent(done: int, total: int) -> str:
    """Return whole percents; 100 % only when everything is done, 0 % only when nothing is."""
    if total <= 0:
        return NOTHING
    share = 100 * done / total
    if 0 < done < total:
        share = min(99, max(1, share))
    return f"{int(share)}%"


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
