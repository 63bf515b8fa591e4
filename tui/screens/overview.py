"""The overview: run, records, stages, failures by class.  Whole at 80x24."""

from collections.abc import Iterable

from textual.widget import Widget

from tui.screens.base import StateScreen
from tui.snapshot import Snapshot
from tui.widgets.classes import ClassesPanel
from tui.widgets.panel import Panel
from tui.widgets.records import RecordsPanel
from tui.widgets.run import RunPanel
from tui.widgets.stages import StagesPanel


class OverviewScreen(StateScreen):
    """Everything at a glance."""

    def parts(self) -> Iterable[Widget]:
        for panel in (RunPanel, RecordsPanel, StagesPanel, ClassesPanel):
            yield panel(self.glyphs)

    def draw(self, snapshot: Snapshot) -> None:
        for panel in self.query(Panel):
            panel.snapshot = snapshot
