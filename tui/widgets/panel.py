"""The base of all parts that draw a snapshot."""

from textual.content import Content
from textual.events import Resize
from textual.geometry import Region
from textual.widget import Widget

from tui.format import Glyphs
from tui.snapshot import Snapshot
from tui.theme import QUIET, STRONG


class Panel(Widget):
    """Draws one part of a snapshot as lines of text.

    Only lines that came out differently are sent to the terminal: over a slow connection the rest would cost most.
    """

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(classes="panel")
        self.glyphs = glyphs
        self.snapshot = Snapshot()
        self._shown: list[Content] = []

    def lines(self, width: int) -> list[Content]:
        """Return the lines for a space ``width`` cells wide; those beyond the panel's height are not shown."""
        raise NotImplementedError

    def wanted(self) -> tuple[int, int]:
        """Return the fewest and the most lines that make sense for the snapshot."""
        raise NotImplementedError

    def show(self, snapshot: Snapshot) -> None:
        """Draw another snapshot."""
        self.snapshot = snapshot
        self.redraw()

    def redraw(self) -> None:
        """Draw again what has changed."""
        before, self._shown = self._shown, self._fitted()
        if len(before) != len(self._shown):
            self.refresh()
            return
        pairs = enumerate(zip(before, self._shown, strict=True))
        regions = [Region(0, y, self.size.width, 1) for y, (old, new) in pairs if not old.is_same(new)]
        if regions:
            self.refresh(*regions)

    def on_resize(self, _: Resize) -> None:
        self._shown = self._fitted()
        self.refresh()

    def _fitted(self) -> list[Content]:
        width, height = self.content_size
        lines = self.lines(width) if width and height else []
        # Padded, so that a line that grew shorter leaves nothing behind.
        return [line.truncate(width, pad=True) for line in lines[:height]]

    def render(self) -> Content:
        return Content("\n").join(self._shown)

    def heading(self, title: str, width: int, right: Content | str = "") -> Content:
        """Return a title with a rule to the right edge, or to the words there."""
        words = Content.styled(right, QUIET) if isinstance(right, str) else right
        gap = width - len(title) - 2 - (words.cell_length + 1 if words else 0)
        rule = self.glyphs.rule * max(0, gap + 1)
        return Content.assemble((title, STRONG), " ", (rule, "$line"), " " if words else "", words)


def spread(left: Content, right: Content, width: int, glyphs: Glyphs) -> Content:
    """Return the two on one line, at its two ends; the left one gives way."""
    room = max(0, width - right.cell_length - 1)
    return Content.assemble(cut(left, room, glyphs).truncate(room, pad=True), " ", right)


def cut(content: Content, width: int, glyphs: Glyphs) -> Content:
    """Return what fits into ``width`` cells; where something was cut off, its last cell says so."""
    if content.cell_length <= width:
        return content
    return content.truncate(max(0, width - 1)) + glyphs.more[: max(0, width)]
