"""The summary of the records."""

from collections.abc import Callable, Sequence

from textual.content import Content

from etl.units import percent
from tui.format import NOTHING, bar, count, short
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.panel import Panel

WIDEST_GAP = 4


class RecordsPanel(Panel):
    """The counts, and one bar over the selected records."""

    def wanted(self) -> tuple[int, int]:
        return 2, 2

    def lines(self, width: int) -> list[Content]:
        records = self.snapshot.records
        failed_style = f"bold {ALERT}" if records.failed else STRONG
        numbers = (
            (records.total, "total", STRONG),
            (records.selected, "selected", STRONG),
            (records.captioned, "captioned", f"bold {GOOD}"),
            (records.failed, "failed", failed_style),
            (records.pending, "pending", STRONG),
            *([(records.skipped, "skipped", STRONG)] if records.skipped else []),
        )
        line = self._line(numbers, count, width)
        if line.cell_length > width:
            line = self._line(numbers, short, width)
        share = percent(records.ended, records.selected) or NOTHING
        reached, left = bar(records.ended, records.selected, width - 8, self.glyphs)
        progress = Content.assemble("  ", (reached, GOOD), (left, "$line"), (f"{share:>6}", STRONG))
        return [line, progress]

    @staticmethod
    def _line(numbers: Sequence[tuple[int, str, str]], write: Callable[[int], str], width: int) -> Content:
        parts = [Content.assemble((write(n), style), (f" {word}", QUIET)) for n, word, style in numbers]
        title = Content.styled("Records", STRONG)
        room = width - title.cell_length - sum(part.cell_length for part in parts)
        gap = " " * min(WIDEST_GAP, max(1, room // len(parts)))
        return Content(gap).join([title, *parts])
