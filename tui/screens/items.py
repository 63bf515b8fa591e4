"""The items that failed in one way, a page at a time, with the words of the marked one below."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from etl import units
from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.redaction import redact_url
from etl.state.read.failures import SHOWN, Failure, failure_page
from etl.text import clean
from tui.format import count, folded
from tui.keys import bindings
from tui.retry_selection import RetrySelection, selection_of
from tui.screens.base import StateScreen
from tui.screens.story import StoryScreen
from tui.snapshot import ClassView, Snapshot
from tui.theme import QUIET, STRONG
from tui.widgets.rows import Column, Row, Rows

COLUMNS = (Column("key", 28), Column("tries", 5, number=True), Column("message"))

LABEL = 9

MAX_DETAIL = 1000
"""Characters of each text below the list; the story has all of them."""


class ItemsScreen(StateScreen):
    """At most `SHOWN` rows; read again when the number of items changes."""

    tab = "failures"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("items")]

    def __init__(self, view: ClassView) -> None:
        super().__init__()
        self._view = view
        self._seen = view
        self._after: list[int] = [0]
        self._failures: tuple[Failure, ...] = ()

    def parts(self) -> Iterable[Widget]:
        self._rows = Rows(COLUMNS, self.glyphs)
        yield Static(id="summary", markup=False)
        yield self._rows
        yield Static(id="detail", markup=False)

    def on_mount(self) -> None:
        self._rows.focus()
        self._read(keep=False)

    def draw(self, snapshot: Snapshot) -> None:
        wanted = (self._view.stage, self._view.error_class, self._view.failed)
        views = (view for view in snapshot.classes if (view.stage, view.error_class, view.failed) == wanted)
        self._view = next(views, ClassView(*wanted[:2], 0, wanted[2]))
        if self._view != self._seen:
            self._seen = self._view
            self._read(keep=True)

    def _read(self, *, keep: bool) -> None:
        view, after = self._view, self._after[-1]
        self.ask(
            "page",
            lambda reader: failure_page(reader, view.stage, view.error_class, failed=view.failed, after=after),
            lambda failures: self._fill(failures, keep=keep),
        )

    def _fill(self, failures: tuple[Failure, ...], *, keep: bool) -> None:
        self._failures = failures
        self._rows.fill([_row(failure) for failure in failures], keep=keep)
        self.query_one("#summary", Static).update(self._summary(failures))
        self._describe()

    def _summary(self, failures: Sequence[Failure]) -> Content:
        view, page = self._view, len(self._after)
        words = f"{view.stage}: {clean(view.error_class, 30)}"
        place = ""
        if view.items > SHOWN or page > 1:
            first = (page - 1) * SHOWN
            place = f"   {count(first + 1)} to {count(first + len(failures))} of {count(view.items)}"
        elif failures:
            place = f"   {units.count(len(failures), 'item')}"
        fate = "failed" if view.failed else "will retry"
        return Content.assemble((words, STRONG), (f"{place or '   nothing any more'}   {fate}", QUIET))

    def action_next_page(self) -> None:
        """Show the next page, where there is one."""
        if len(self._failures) == SHOWN:
            self._after.append(self._failures[-1].item)
            self._read(keep=False)

    def action_first_page(self) -> None:
        """Begin at the first page again."""
        self._after = [0]
        self._read(keep=False)

    def _marked(self) -> Failure | None:
        row = self._rows.marked
        return next((each for each in self._failures if row is not None and each.item == row.key), None)

    def on_resize(self, _: Resize) -> None:
        self._describe()

    def on_rows_marked(self) -> None:
        self._describe()

    def on_rows_opened(self) -> None:
        failure = self._marked()
        if failure is None:
            return
        if failure.key:
            self.app.push_screen(StoryScreen(failure.key, tab=self.tab))
        else:
            self.dashboard.say("No active record needs this item any more; there is no story to show.")

    def _describe(self) -> None:
        failure = self._marked()
        detail = self.query_one("#detail", Static)
        detail.update(Content("") if failure is None else _detail(failure, detail.content_size.width))

    def retry_selection(self) -> RetrySelection | None:
        failure, view = self._marked(), self._view
        if failure is None:
            return RetrySelection(problem="Nothing is marked.")
        if view.stage == Stage.INGEST or not view.failed:
            return selection_of(view)
        if not failure.key:
            return RetrySelection(problem="No active record needs this item any more.")
        what = f"{view.stage} item of {clean(failure.key, 40)}"
        return RetrySelection(FailureFilter(stage=Stage(view.stage), key=failure.key), 1, what)

    def copied(self) -> str:
        failure = self._marked()
        return clean(failure.key) if failure else ""


def _row(failure: Failure) -> Row:
    more = f" (+{failure.records - 1})" if failure.records > 1 else ""
    cells = (failure.key + more or redact_url(failure.url), str(failure.attempts), failure.message)
    return Row(failure.item, cells, (STRONG, QUIET, ""))


def _detail(failure: Failure, width: int) -> Content:
    """Return the four lines below the list."""
    room = max(20, width - LABEL)
    shared = f" ({units.count(failure.records, 'record')}, {units.count(failure.attempts, 'attempt')})"
    key = folded(clean(failure.key, MAX_DETAIL), room - len(shared), 1)[0]
    url = folded(clean(redact_url(failure.url), MAX_DETAIL), room, 1)[0]
    message = folded(clean(failure.message, MAX_DETAIL), room, 2)
    rows = [("key", Content.assemble((key, STRONG), (shared, QUIET))), ("url", Content(url))]
    rows += [("message" if number == 0 else "", Content(line)) for number, line in enumerate(message)]
    return Content("\n").join(Content.assemble((f"{label:<{LABEL}}", QUIET), words) for label, words in rows)
