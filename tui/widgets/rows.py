"""A list with columns and a cursor: it draws untrusted text as it is, and only the rows that changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.events import Click, MouseScrollDown, MouseScrollUp, Resize
from textual.geometry import Region
from textual.message import Message
from textual.widget import Widget

from etl.text import clean
from tui.format import Glyphs
from tui.keys import bindings
from tui.theme import MARKED, QUIET
from tui.widgets.panel import cut

MAX_CELL = 400
"""Characters of one cell that are looked at; no terminal shows more of it."""

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, its width in cells (``None`` takes what is left), and whether numbers stand in it."""

    title: str
    width: int | None = None
    number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what it stands for, its cells as plain text, and the style of each (empty for the ordinary one)."""

    key: object
    cells: tuple[str, ...]
    styles: tuple[str, ...] = ()


class Rows(Widget, can_focus=True):
    """A heading line and rows below it, of which as many are shown as fit.

    Attributes:
        cursor: index of the marked row.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("lists")]

    class Marked(Message):
        """Another row is marked, or the marked one has changed."""

    class Opened(Message):
        """The marked row was asked for."""

    def __init__(self, columns: Sequence[Column], glyphs: Glyphs) -> None:
        super().__init__()
        self._columns = columns
        self._glyphs = glyphs
        self._rows: Sequence[Row] = ()
        self._top = 0
        self.cursor = 0

    @property
    def marked(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if self._rows else None

    def fill(self, rows: Sequence[Row], *, keep: bool = True) -> None:
        """Show other rows; with ``keep`` the cursor stays on the row that stands for the same."""
        if rows == self._rows and keep:
            return
        before = self.marked
        self._rows = rows
        places = [row.key for row in rows]
        if keep and before is not None and before.key in places:
            self.cursor = places.index(before.key)
        elif not keep:
            self.cursor = self._top = 0
        self._move(self.cursor)
        self.refresh()
        self.post_message(self.Marked())

    def _room(self) -> int:
        return max(1, self.size.height - 1)

    def _move(self, to: int) -> None:
        """Mark a row and bring it into view."""
        before, top = self.cursor, self._top
        self.cursor = min(max(0, to), max(0, len(self._rows) - 1))
        self._top = min(max(self._top, self.cursor - self._room() + 1), self.cursor)
        self._top = max(0, min(self._top, len(self._rows) - self._room()))
        if top != self._top:
            self.refresh()
        elif before != self.cursor:
            self.refresh(*(Region(0, 1 + row - top, self.size.width, 1) for row in (before, self.cursor)))
        if before != self.cursor:
            self.post_message(self.Marked())

    def on_resize(self, _: Resize) -> None:
        self._move(self.cursor)

    def render(self) -> Content:
        """Draw the heading and the rows that are in view."""
        titles = tuple(column.title for column in self._columns)
        lines = [self._line(titles, (), QUIET)]
        for index, row in enumerate(self._rows[self._top : self._top + self._room()], self._top):
            marked = index == self.cursor
            lines.append(self._line(row.cells, row.styles, MARKED if marked else "", marked))
        return Content("\n").join(line.truncate(self.size.width, pad=True) for line in lines)

    def _line(self, cells: Sequence[str], styles: Sequence[str], style: str, marked: bool = False) -> Content:
        fixed = sum(GAP + (column.width or 0) for column in self._columns)
        parts = [Content(self._glyphs.mark if marked else " ")]
        for number, (column, text) in enumerate(zip(self._columns, cells, strict=True)):
            width = column.width if column.width is not None else max(4, self.size.width - fixed)
            cell = cut(Content(clean(text, MAX_CELL)), width, self._glyphs)
            space = Content(" " * (width - cell.cell_length))
            if styles and styles[number] and not marked:
                cell = cell.stylize(styles[number])
            parts += [space, cell] if column.number else [cell, space]
            parts.append(Content(" " * GAP))
        line = Content("").join(parts)
        return line.stylize(style) if style else line

    def on_click(self, event: Click) -> None:
        row = self._top + event.y - 1
        if event.y > 0 and row < len(self._rows):
            opened = row == self.cursor
            self._move(row)
            if opened:
                self.post_message(self.Opened())

    def on_mouse_scroll_down(self, _: MouseScrollDown) -> None:
        self._move(self.cursor + 3)

    def on_mouse_scroll_up(self, _: MouseScrollUp) -> None:
        self._move(self.cursor - 3)

    def action_up(self) -> None:
        """Mark the row above."""
        self._move(self.cursor - 1)

    def action_down(self) -> None:
        """Mark the row below."""
        self._move(self.cursor + 1)

    def action_page_up(self) -> None:
        """Go up by as many rows as are shown."""
        self._move(self.cursor - self._room())

    def action_page_down(self) -> None:
        """Go down by as many rows as are shown."""
        self._move(self.cursor + self._room())

    def action_first(self) -> None:
        """Mark the first row."""
        self._move(0)

    def action_last(self) -> None:
        """Mark the last row."""
        self._move(len(self._rows) - 1)

    def action_open(self) -> None:
        """Ask for what the marked row stands for."""
        if self._rows:
            self.post_message(self.Opened())
