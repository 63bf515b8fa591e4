"""The overview: run, records, stages, fetch, caption, failures, log.  Whole at 80x24, more where there is room."""

from collections.abc import Iterable, Sequence

from textual.containers import Vertical
from textual.events import Resize
from textual.widget import Widget

from tui.screens.base import StateScreen
from tui.snapshot import Snapshot
from tui.widgets.caption import CaptionPanel
from tui.widgets.classes import ClassesPanel
from tui.widgets.fetch import FetchPanel
from tui.widgets.log import LogPanel
from tui.widgets.panel import Panel
from tui.widgets.records import RecordsPanel
from tui.widgets.run import RunPanel
from tui.widgets.stages import StagesPanel

WIDE = 140
"""From so many columns on, failures stand beside fetch and caption."""

AIRY = 30
"""From so many lines on, there is an empty line above every heading."""

FEWEST_LOG_LINES = 6


class OverviewScreen(StateScreen):
    """Everything at a glance."""

    def parts(self) -> Iterable[Widget]:
        self._panels: dict[type[Panel], Panel] = {
            kind: kind(self.glyphs)
            for kind in (RunPanel, RecordsPanel, StagesPanel, FetchPanel, CaptionPanel, ClassesPanel, LogPanel)
        }
        yield self._panels[RunPanel]
        yield self._panels[RecordsPanel]
        yield self._panels[StagesPanel]
        with Vertical(id="middle"):
            with Vertical(id="work"):
                yield self._panels[FetchPanel]
                yield self._panels[CaptionPanel]
            yield self._panels[ClassesPanel]
        yield self._panels[LogPanel]

    def draw(self, snapshot: Snapshot) -> None:
        for panel in self._panels.values():
            panel.show(snapshot)
        self._arrange()

    def on_resize(self, _: Resize) -> None:
        self._arrange()

    def _arrange(self) -> None:
        """Give each panel its lines: all that it wants where there is room, the log the rest."""
        width, height = self.size.width, self.size.height - 2
        wide, airy = width >= WIDE, height >= AIRY
        self.set_class(wide, "-wide")
        self.set_class(airy, "-airy")
        blanks = 6 - wide if airy else 3
        room = height - 9 - blanks
        fetch, caption, classes, log = (
            self._panels[kind].wanted() for kind in (FetchPanel, CaptionPanel, ClassesPanel, LogPanel)
        )
        if wide:
            middle = max(2, room - FEWEST_LOG_LINES)
            lines = allot((fetch, caption), middle - airy)
            classes_lines = min(classes[1], max(middle, classes[0]))
            middle = max(sum(lines) + airy, classes_lines)
            heights = (*lines, classes_lines, max(0, room - middle))
        else:
            *lines, _, classes_lines = allot((fetch, caption, log, classes), room)
            middle = sum(lines) + classes_lines + 2 * airy
            heights = (*lines, classes_lines, max(0, room - sum(lines) - classes_lines))
        for kind, lines_of in zip((FetchPanel, CaptionPanel, ClassesPanel, LogPanel), heights, strict=True):
            self._panels[kind].styles.height = lines_of
        self.query_one("#middle").styles.height = middle


def allot(wanted: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Return how many lines each part gets: its fewest, then one after the other one more, up to its most."""
    given = [fewest for fewest, _ in wanted]
    while sum(given) < room and any(lines < most for lines, (_, most) in zip(given, wanted, strict=True)):
        # From the last on, which is the one that says most with one line more.
        for number in reversed(range(len(wanted))):
            if sum(given) < room and given[number] < wanted[number][1]:
                given[number] += 1
    return given
