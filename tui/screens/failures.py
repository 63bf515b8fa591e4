"""Dead items and invalid records, one row each, with the whole story of the row under the cursor below."""

from collections.abc import Iterable

from rich.text import Text
from textual.content import Content
from textual.widget import Widget
from textual.widgets import DataTable, Static

from etl.models import Failure
from etl.text import clean
from tui.format import count, plural
from tui.screens.base import StateScreen
from tui.snapshot import Snapshot
from tui.source import MAX_ROWS
from tui.theme import QUIET, STRONG

COLUMNS = (("stage", 7), ("class", 16), ("key", 22), ("tries", 5), ("message", None))
"""Titles and widths in cells; the last column is as wide as its texts."""

MAX_MESSAGE = 300
"""Characters of a message in the table; the lines below it show more."""

MAX_DETAIL = 2000


class FailuresScreen(StateScreen):
    """At most `MAX_ROWS` rows, renewed only when they change; the cursor stays on its item."""

    _rows: tuple[Failure, ...] | None = None

    def parts(self) -> Iterable[Widget]:
        yield Static(id="summary", markup=False)
        yield DataTable[Text](id="table", cursor_type="row", zebra_stripes=False)
        yield Static(id="detail", markup=False)

    def on_mount(self) -> None:
        table = self._table()
        for title, width in COLUMNS:
            table.add_column(title, width=width, key=title)
        table.focus()

    def _table(self) -> DataTable[Text]:
        return self.query_one("#table", DataTable)

    def draw(self, snapshot: Snapshot) -> None:
        if snapshot.failures is None or snapshot.failures == self._rows:
            return
        total = sum(view.items for view in snapshot.classes if view.dead)
        words = "Nothing has failed." if not total else f"{plural(total, 'dead item')}"
        if total > len(snapshot.failures):
            words += f"; the first {count(MAX_ROWS)} are listed"
        self.query_one("#summary", Static).update(Content.styled(words, STRONG))
        self._fill(snapshot.failures)

    def _fill(self, failures: tuple[Failure, ...]) -> None:
        table, before = self._table(), self._current()
        self._rows = failures
        table.clear()
        for failure in failures:
            table.add_row(*_cells(failure), key=f"{failure.stage}/{failure.item}")
        places = [(failure.stage, failure.item) for failure in failures]
        if before is not None and (before.stage, before.item) in places:
            table.move_cursor(row=places.index((before.stage, before.item)), animate=False)
        self._describe()

    def _current(self) -> Failure | None:
        row = self._table().cursor_row
        return self._rows[row] if self._rows and 0 <= row < len(self._rows) else None

    def on_data_table_row_highlighted(self) -> None:
        self._describe()

    def _describe(self) -> None:
        failure = self._current()
        self.query_one("#detail", Static).update(Content("") if failure is None else _story(failure))


def _cells(failure: Failure) -> list[Text]:
    """Return the cells; as `Text`, because the table would read markup in a string."""
    return [
        Text(clean(failure.stage, 7)), Text(clean(failure.error_class, 16)), Text(clean(failure.key, 22)),
        Text(str(failure.attempts), justify="right"), Text(clean(failure.message, MAX_MESSAGE)),
    ]  # fmt: skip


def _story(failure: Failure) -> Content:
    return Content.assemble(
        ("key  ", QUIET), (clean(failure.key, MAX_DETAIL), STRONG),
        (f"  ({plural(failure.records, 'record')}, {plural(failure.attempts, 'attempt')})", QUIET),
        ("\nurl  ", QUIET), clean(failure.url, MAX_DETAIL),
        (f"\n{failure.stage} ", QUIET), (failure.error_class, STRONG), ": ", clean(failure.message, MAX_DETAIL),
    )  # fmt: skip
