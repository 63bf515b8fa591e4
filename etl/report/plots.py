"""Plots as SVG text, drawn here because the page may load nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 180
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 26


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, its values at equal distances, and its class in the style sheet."""

    name: str
    values: Sequence[float]
    style: str


def plot(title: str, series: Sequence[Series], *, span_h: float, breaks: Sequence[float] = (), unit: str) -> str:
    """Return a plot of lines over ``span_h`` hours.

    ``breaks`` are places between 0 and 1 at which one run ended and another began; ``unit`` names the values.
    """
    top = _round_up(max((max(one.values, default=0) for one in series), default=0))
    body = [_grid(top, span_h, unit)]
    body += [f'<line class="break" x1="{_x(at)}" x2="{_x(at)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>' for at in breaks]
    for one in series:
        last = max(1, len(one.values) - 1)
        points = " ".join(f"{_x(n / last)},{_y(value / top)}" for n, value in enumerate(one.values))
        body.append(f'<polyline class="{one.style}" points="{points}"/>')
    legend = " ".join(f'<span class="key {one.style}">{escape(one.name)}</span>' for one in series)
    words = "; ".join(f"{one.name}: at most {max(one.values, default=0):,.4g} {unit}" for one in series)
    return (
        f"<figure><figcaption>{escape(title)} {legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}. {escape(words)}">'
        f"{''.join(body)}</svg></figure>"
    )


def _grid(top: float, span_h: float, unit: str) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = _y(part)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{part * top:,.4g}</text>')
    per_hour, unit_of_time = (1, "h") if span_h >= 1 else (60, "min") if span_h >= 0.1 else (3600, "s")
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = f"{part * span_h * per_hour:.{0 if unit_of_time == 's' else 1}f} {unit_of_time}"
        lines.append(f'<text x="{_x(part)}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>')
    lines.append(f'<text x="{LEFT + 4}" y="{TOP + 8}">{escape(unit)}</text>')
    return "".join(lines)


def _x(part: float) -> float:
    return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)


def _y(part: float) -> float:
    return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)


def _round_up(value: float) -> float:
    """Return a round number that is not smaller."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10, 20) if step * power >= value)
