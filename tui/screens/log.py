"""The log of the runs, as far as its latest lines go."""

from collections.abc import Iterable

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from etl.state.log import LogLine
from tui.screens.base import StateScreen
from tui.snapshot import Snapshot
from tui.theme import QUIET
from tui.widgets.log import log_line


class LogScreen(StateScreen):
    """Follows the end, unless somebody has scrolled up."""

    tab = "log"

    def __init__(self) -> None:
        super().__init__()
        self._lines: tuple[LogLine, ...] | None = None

    def parts(self) -> Iterable[Widget]:
        with VerticalScroll(id="scroll"):
            yield Static(id="lines", markup=False)

    def on_mount(self) -> None:
        self.query_one("#scroll").focus()

    def draw(self, snapshot: Snapshot) -> None:
        if snapshot.log == self._lines:
            return
        scroll = self.query_one("#scroll", VerticalScroll)
        at_end = self._lines is None or scroll.scroll_offset.y >= scroll.max_scroll_y
        self._lines = snapshot.log
        text = Content("\n").join(Content.assemble((line.at[:10], QUIET), log_line(line)) for line in snapshot.log)
        self.query_one("#lines", Static).update(text or Content.styled("Nothing was logged yet.", QUIET))
        if at_end:
            scroll.scroll_end(animate=False)

    def copied(self) -> str:
        return "\n".join(f"{line.at} {line.level} {line.origin}: {line.words}" for line in self._lines or ())
