"""Live progress on stderr: bars on a terminal, one plain line per interval elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etl.cli.options import Context
from etl.cli.progress_rows import Pace, Row, progress_line, rows
from etl.cli.render import note
from etl.domain.views import Progress
from etl.units import count

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

REFRESH_PER_S = 2
"""How often bars are drawn; their counts come once a second."""

_BAR, _REST = "━", "─"
_ASCII_BAR, _ASCII_REST = "#", "-"


@contextmanager
def ingest_progress(context: Context) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many records were read."""
    last = time.monotonic()

    def show(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= min(context.settings.interval, 5.0):
            last = time.monotonic()
            note(context, f"ingest: {count(rows, 'record')}")

    yield show


@contextmanager
def progress(context: Context) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows progress: bars on a terminal, one plain line per interval elsewhere."""
    if context.quiet:
        yield lambda _: None
    elif can_draw():
        with _bars() as show:
            yield show
    else:
        yield _plain_lines(context)


def can_draw() -> bool:
    """Return whether stderr is a terminal that can be drawn on, and nobody wants it plain."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")


def _plain_lines(context: Context) -> Callable[[Progress], None]:
    last, pace = time.monotonic(), Pace()

    def show(now: Progress) -> None:
        nonlocal last
        per_s = pace.per_s(now)
        if time.monotonic() - last >= context.settings.interval:
            last = time.monotonic()
            note(context, progress_line(now, per_s))

    return show


@contextmanager
def _log_above_bars() -> Iterator[None]:
    """Let log lines go through what the bars have put in the place of stderr, instead of across the bars."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    before = [(handler, handler.setStream(sys.stderr)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)


class Screen:
    """The rows of the latest progress, as wide as the terminal is when they are drawn."""

    def __init__(self) -> None:
        self._now: Progress | None = None
        self._pace = Pace()
        self._per_s = 0.0
        self.drawn: list[int] = []
        """Columns of each line that was drawn last."""

    def show(self, now: Progress) -> None:
        """Take over what is to be drawn from now on."""
        self._now, self._per_s = now, self._pace.per_s(now)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        # The last column stays free: a terminal that wraps there would break every line in two.
        width = max(1, options.max_width - 1)
        lines = [] if self._now is None else list(rows(self._now, self._per_s, max(1, options.size.height - 3)))
        text = Text(no_wrap=True, overflow="crop", end="")
        self.drawn = []
        for number, row in enumerate(lines[: max(1, options.size.height - 2)]):
            line = _drawn(row, width, ascii_only=options.ascii_only)
            self.drawn.append(line.cell_len)
            text.append("\n" if number else "").append_text(line)
        yield text

    def height_at(self, width: int) -> int:
        """Return how many lines of a terminal what was drawn takes, now that it is so wide."""
        return sum(max(1, -(-columns // width)) for columns in self.drawn)


def _drawn(row: Row, width: int, *, ascii_only: bool) -> "Text":
    from rich.text import Text

    name, bar, facts = row.parts(width)
    line = Text(name, style="bold", end="")
    if row.bar is not None:
        full, rest = (_ASCII_BAR, _ASCII_REST) if ascii_only else (_BAR, _REST)
        done = round(bar * row.bar)
        line.append(full * done, "green").append(rest * (bar - done), "dim").append(" ")
    line.append(facts, "" if row.bar is not None else "dim")
    line.truncate(width, overflow="crop")
    return line


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console, RenderableType
    from rich.live import Live

    screen = Screen()

    class _Resized(Live):
        """Takes back as many lines as what it drew has become, where the terminal is narrower than it was."""

        def process_renderables(self, renderables: list[RenderableType]) -> list[RenderableType]:  # type: ignore[override]
            if screen.drawn and self._live_render._shape is not None:
                self._live_render._shape = (0, screen.height_at(self.console.width))
            return super().process_renderables(renderables)  # type: ignore[arg-type, return-value]

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with (
        _Resized(
            screen, console=console, refresh_per_second=REFRESH_PER_S, redirect_stdout=False, vertical_overflow="crop"
        ),
        _log_above_bars(),
    ):
        yield screen.show
