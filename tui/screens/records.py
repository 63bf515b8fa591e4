"""Finding a record by its key, or by words of its line or caption."""

import time
from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from etl import units
from etl.domain.statuses import RecordState
from etl.state.read.reader import Reader
from etl.state.read.search import FOUND_AT_ONCE, FoundRecord, first_records, records_by_key, records_by_text
from etl.text import clean
from tui.format import count
from tui.keys import bindings
from tui.screens.base import StateScreen
from tui.screens.story import StoryScreen
from tui.snapshot import Snapshot
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.entry import Entry
from tui.widgets.rows import Column, Row, Rows

COLUMNS = (Column("key", 30), Column("outcome", 10), Column("title"))

AT_ONCE_S = 0.2
"""A search tells so often how far it is, and lets others ask in between."""

_STYLES = {"captioned": GOOD, "failed": ALERT, "invalid": ALERT}


class RecordsScreen(StateScreen):
    """The first records, or those that were looked for."""

    tab = "records"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("records")]

    def __init__(self) -> None:
        super().__init__()
        self._words = ""
        self._found: dict[str, FoundRecord] = {}
        self._looked_at = 0
        self._searching = False

    def parts(self) -> Iterable[Widget]:
        self._rows = Rows(COLUMNS, self.glyphs)
        yield Static(id="summary", markup=False)
        yield self._rows
        yield Entry("a key, or words of a line or caption")

    def on_mount(self) -> None:
        self._rows.focus()
        self._first()

    def draw(self, snapshot: Snapshot) -> None:
        if not self._words and not self._found and snapshot.records.total:
            self._first()
        self._summarize()

    def _first(self) -> None:
        self.ask("list", first_records, self._listed)

    def _listed(self, records: list[FoundRecord]) -> None:
        self._found = {record.key: record for record in records}
        self._fill(keep=False)

    def _fill(self, *, keep: bool) -> None:
        self._rows.fill([_row(record) for record in self._found.values()], keep=keep)
        self._summarize()

    def _summarize(self) -> None:
        total = self.dashboard.snapshot.records.total if self.dashboard.snapshot else 0
        if not self._words:
            more = f"   the first {count(len(self._found))} of" if total > len(self._found) else "  "
            text = Content.assemble(("Records", STRONG), (f"{more} {count(total)}   / looks for a key or words", QUIET))
        else:
            n = len(self._found)
            full = " and more" if n >= FOUND_AT_ONCE else ""
            text = Content.assemble((f"{units.count(n, 'record')}{full} with ", STRONG), (clean(self._words, 40), GOOD))
            if self._searching:
                text += Content.styled(
                    f"   looked at {count(self._looked_at)} of {count(total)}; escape ends it", QUIET
                )
        self.query_one("#summary", Static).update(text)

    def action_find(self) -> None:
        """Ask for words."""
        self.query_one(Entry).open()

    def on_entry_left(self) -> None:
        self._rows.focus()

    def on_entry_given(self, message: Entry.Given) -> None:
        self._rows.focus()
        self._words, self._found, self._looked_at = message.words, {}, 0
        self._searching = bool(message.words)
        self.forget("search")
        if not message.words:
            self._first()
            return
        self.forget("list")
        words = message.words
        self.ask("search", lambda reader: records_by_key(reader, words), self._by_key)

    def _by_key(self, records: list[FoundRecord]) -> None:
        self._found = {record.key: record for record in records}
        self._fill(keep=False)
        self._go_on(0)

    def _go_on(self, after: int) -> None:
        words = self._words
        self.ask("search", lambda reader: _search(reader, words, after), self._by_text)

    def _by_text(self, answer: tuple[list[FoundRecord], int, int | None]) -> None:
        records, looked_at, after = answer
        self._looked_at += looked_at
        for record in records:
            if len(self._found) < FOUND_AT_ONCE:
                self._found.setdefault(record.key, record)
        self._searching = after is not None and len(self._found) < FOUND_AT_ONCE
        self._fill(keep=True)
        if self._searching and after is not None:
            self._go_on(after)

    def go_back(self) -> bool:
        """End a search, or show all records again; return whether there was something to go back from."""
        if self._searching:
            self._searching = False
            self.forget("search")
            self._summarize()
            return True
        if self._words:
            self._words, self._found = "", {}
            self._first()
            return True
        return False

    def on_rows_opened(self) -> None:
        if self._rows.marked is not None:
            self.app.push_screen(StoryScreen(str(self._rows.marked.key), tab=self.tab))

    def copied(self) -> str:
        return clean(str(self._rows.marked.key)) if self._rows.marked else ""


def _search(reader: Reader, words: str, after: int) -> tuple[list[FoundRecord], int, int | None]:
    """Search for a moment; return what was found, how many rows were looked at, and where to go on."""
    begun, found = time.monotonic(), list[FoundRecord]()
    place: int | None = after
    looked_at = 0
    while place is not None and time.monotonic() - begun < AT_ONCE_S and len(found) < FOUND_AT_ONCE:
        records, following, rows = records_by_text(reader, words, place)
        found += records
        looked_at += rows
        place = following
    return found, looked_at, place


def _row(record: FoundRecord) -> Row:
    outcome = record.outcome if record.state == RecordState.ACTIVE else record.state
    return Row(record.key, (record.key, outcome, record.title or ""), (STRONG, _STYLES.get(outcome, QUIET), ""))
