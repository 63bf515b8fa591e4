"""The base of all parts that draw a snapshot."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tui.format import Glyphs
from tui.snapshot import Snapshot
from tui.theme import QUIET, STRONG


class Panel(Widget):
    """Draws one part of a snapshot as text, anew for every snapshot and every width."""

    snapshot: reactive[Snapshot] = reactive(Snapshot)

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(classes="panel")
        self.glyphs = glyphs

    def lines(self, width: int) -> list[Content]:
        """Return the lines for a space ``width`` cells wide; those beyond the panel's height are not shown."""
        raise NotImplementedError

    def render(self) -> Content:
        width, height = self.content_size
        lines = self.lines(width) if width and height else []
        return Content("\n").join(line.truncate(width) for line in lines[:height])

    def heading(self, title: str, width: int, right: str = "") -> Content:
        """Return a title with a rule to the right edge, or to the words there."""
        gap = width - len(title) - 2 - (len(right) + 1 if right else 0)
        rule = self.glyphs.rule * max(0, gap + 1)
        return Content.assemble((title, STRONG), " ", (rule, "$line"), (f" {right}" if right else "", QUIET))


def spread(left: Content, right: Content, width: int) -> Content:
    """Return the two on one line, at its two ends; the left one gives way."""
    room = max(0, width - right.cell_length - 1)
    return Content.assemble(left.truncate(room, pad=True), " ", right)
