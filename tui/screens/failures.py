"""What failed, by stage and class; each kind opens the list of its items."""

from collections.abc import Iterable

from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from etl import units
from etl.errors import EtlError, item_error_classes
from etl.text import clean
from tui.format import count
from tui.retry_selection import RetrySelection, selection_of
from tui.screens.base import StateScreen
from tui.screens.items import ItemsScreen
from tui.snapshot import ClassView, Snapshot
from tui.theme import ALERT, QUIET, STRONG
from tui.widgets.rows import Column, Row, Rows

COLUMNS = (Column("items", 8, number=True), Column("stage", 7), Column("error class", 16), Column("what that is"))


class FailuresScreen(StateScreen):
    """One row per stage and class."""

    tab = "failures"

    def parts(self) -> Iterable[Widget]:
        self._rows = Rows(COLUMNS, self.glyphs)
        yield Static(id="summary", markup=False)
        yield self._rows

    def on_mount(self) -> None:
        self._rows.focus()

    def draw(self, snapshot: Snapshot) -> None:
        failed = sum(view.items for view in snapshot.classes if view.failed)
        retrying = sum(view.items for view in snapshot.classes if not view.failed)
        words = "Nothing has failed." if not failed and not retrying else units.count(failed, "failed item")
        summary = Content.styled(words, STRONG)
        if retrying:
            summary += Content.styled(f"   {count(retrying)} more will retry", QUIET)
        self.query_one("#summary", Static).update(summary)
        self._rows.fill([_row(view) for view in snapshot.classes])

    def _marked(self) -> ClassView | None:
        row = self._rows.marked
        views = self.dashboard.snapshot.classes if self.dashboard.snapshot else ()
        return next((view for view in views if row is not None and _key(view) == row.key), None)

    def on_rows_opened(self) -> None:
        if view := self._marked():
            self.app.push_screen(ItemsScreen(view))

    def retry_selection(self) -> RetrySelection | None:
        view = self._marked()
        if view is None:
            return None
        return selection_of(view)

    def copied(self) -> str:
        view = self._marked()
        return clean(view.error_class) if view else ""


def _key(view: ClassView) -> object:
    return view.stage, view.error_class, view.failed


def _row(view: ClassView) -> Row:
    fate = "" if view.failed else "will retry: "
    cells = (count(view.items), view.stage, view.error_class, fate + MEANINGS.get(view.error_class, ""))
    return Row(_key(view), cells, (STRONG, "", ALERT if view.failed else "", QUIET))


def _meaning(error: type[EtlError]) -> str:
    """Return the first sentence of an error's description."""
    return " ".join((error.__doc__ or "").split("\n\n")[0].split()).rstrip(".").replace("`", "")


MEANINGS = {error.slug: _meaning(error) for error in item_error_classes()}
"""What each error class means, by its name."""
