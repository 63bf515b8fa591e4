"""Captions beside their pictures, one after the other."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Static

from etl import units
from etl.clock import ago, now_ms
from etl.domain.statuses import Stage
from etl.redaction import redact_url
from etl.state.read.reader import Reader
from etl.state.read.samples import NEWEST, CaptionFilter, Cursor, Sample, Step, at_random, sample, step
from etl.text import clean
from tui import picture
from tui.format import count, duration
from tui.keys import bindings
from tui.picture import Cells
from tui.screens.base import StateScreen
from tui.screens.story import StoryScreen
from tui.snapshot import Snapshot
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.entry import Entry
from tui.widgets.picture import Picture

AT_ONCE_S = 0.2
"""A search tells so often how far it is, and lets others ask in between."""

NARROW = 70
"""With fewer columns than this the picture gives way to the words."""

MAX_TEXT = 20_000

NONE_YET = "There are no captions yet."


class SamplesScreen(StateScreen):
    """One caption with its picture; `etl.state.read.samples` finds the next one."""

    tab = "samples"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("samples")]

    def __init__(self) -> None:
        super().__init__()
        self._filter = CaptionFilter()
        self._sample: Sample | None = None
        self._words = ""
        self._looked_at = 0
        self._searching = False
        self._unlaid = False

    def parts(self) -> Iterable[Widget]:
        yield Static(id="summary", markup=False)
        with Vertical(id="sample"):
            self._picture = Picture(ascii_only=self.dashboard.ascii_only)
            yield self._picture
            with VerticalScroll(id="words", can_focus=False):
                yield Static(id="caption", markup=False)
        yield Entry("words of a caption or a title")

    def on_mount(self) -> None:
        self._go(NEWEST, older=True)

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.width < NARROW, "-narrow")
        if self._sample is not None:
            self._ask_for_picture(self._sample)

    def draw(self, snapshot: Snapshot) -> None:
        done = any(stage.done for stage in snapshot.stages if stage.stage == Stage.CAPTION)
        if self._sample is None and done and not self._searching and not self._filtered():
            self._go(NEWEST, older=True)
        if self._unlaid and self._sample is not None:
            self._unlaid = False
            self.call_after_refresh(self._ask_for_picture, self._sample)
        self._summarize()

    # Going from one caption to the next.

    def action_older(self) -> None:
        """Show the next older caption."""
        self._go(self._sample.cursor if self._sample else NEWEST, older=True)

    def action_newer(self) -> None:
        """Show the next newer caption."""
        if self._sample:
            self._go(self._sample.cursor, older=False)

    def action_newest(self) -> None:
        """Show the latest caption."""
        self._go(NEWEST, older=True)

    def action_random(self) -> None:
        """Show any caption."""
        self.ask("step", lambda reader: at_random(reader, self._filter), lambda cursor: self._go(cursor, older=True))

    def action_flagged(self) -> None:
        """Show only captions with quality flags, or all again."""
        self._seek(replace(self._filter, flagged=not self._filter.flagged))

    def action_search(self) -> None:
        """Ask for words."""
        self.query_one(Entry).open()

    def action_story(self) -> None:
        """Show the whole story of the record."""
        if self._sample and self._sample.key:
            self.app.push_screen(StoryScreen(self._sample.key, tab=self.tab))

    def on_entry_left(self) -> None:
        self.set_focus(None)

    def on_entry_given(self, message: Entry.Given) -> None:
        self.set_focus(None)
        self._seek(replace(self._filter, text=message.words))

    def go_back(self) -> bool:
        """End a search, or show all captions again; return whether there was something to go back from."""
        if self._searching:
            self._searching, self._words = False, "The search was ended."
            self.forget("step")
            self._summarize()
            return True
        if self._filtered():
            self._seek(CaptionFilter())
            return True
        return False

    def _filtered(self) -> bool:
        return self._filter != CaptionFilter()

    def _seek(self, chosen: CaptionFilter) -> None:
        self._filter = chosen
        self._go(NEWEST, older=True)

    def _go(self, cursor: Cursor, *, older: bool) -> None:
        self._looked_at, self._words = 0, ""
        self._step(cursor, older=older)

    def _step(self, cursor: Cursor, *, older: bool) -> None:
        chosen = self._filter
        self.ask(
            "step", lambda reader: _steps(reader, cursor, chosen, older=older), lambda found: self._found(found, older)
        )

    def _found(self, found: Step, older: bool) -> None:
        self._looked_at += found.looked_at
        self._searching = found.found is None and found.reached is not None
        if found.found is not None:
            caption = found.found.caption
            self.ask("sample", lambda reader: sample(reader, caption), self._show_sample)
        elif found.reached is not None:
            self._step(found.reached, older=older)
        else:
            self._end_reached(older)
        self._summarize()

    def _end_reached(self, older: bool) -> None:
        first = self._sample is None
        self._words = NONE_YET if first and not self._filtered() else "No such caption." if first else ""
        if not first:
            self._words = "This is the oldest." if older else "This is the newest."
            if self._filtered():
                self._words = f"There is none {'before' if older else 'after'} this one."

    # Showing one.

    def _show_sample(self, found: Sample | None) -> None:
        if found is None:
            self._words = "This caption is being made again."
            self._summarize()
            return
        self._sample = found
        self.query_one("#caption", Static).update(_words_of(found))
        self.query_one("#words", VerticalScroll).scroll_home(animate=False)
        self._ask_for_picture(found)
        self._summarize()

    def _ask_for_picture(self, found: Sample) -> None:
        path, room = found.picture, self._picture.size
        if path is None:
            self._picture.show(None, "The picture has left the cache.")
        elif not room.width and not self.has_class("-narrow"):
            # Nothing was laid out yet; while a problem hides everything, nothing will be.
            self._unlaid = self.has_class("-problem")
            if not self._unlaid:
                self.call_after_refresh(self._ask_for_picture, found)
        elif room.width:
            self.ask("picture", lambda _: picture.read(path, room.width, room.height), self._show_picture)

    def _show_picture(self, cells: Cells | None) -> None:
        self._picture.show(cells, "" if cells else "The picture cannot be shown.")

    def _summarize(self) -> None:
        title = "Captions with quality flags" if self._filter.flagged else "Captions"
        text = Content.styled(title, STRONG)
        if self._filter.text:
            text += Content.assemble((" with ", STRONG), (clean(self._filter.text, 40), GOOD))
        if self._searching:
            text += Content.styled(f"   looked at {count(self._looked_at)}; escape ends it", QUIET)
        elif self._words:
            text += Content.styled(f"   {self._words}", ALERT if self._words != NONE_YET else QUIET)
        self.query_one("#summary", Static).update(text)

    def copied(self) -> str:
        return clean(self._sample.text) if self._sample else ""


def _steps(reader: Reader, cursor: Cursor, chosen: CaptionFilter, *, older: bool) -> Step:
    """Step on for a moment."""
    begun, looked_at = time.monotonic(), 0
    while True:
        found = step(reader, cursor, chosen, older=older)
        looked_at += found.looked_at
        if found.found or found.reached is None or time.monotonic() - begun > AT_ONCE_S:
            return replace(found, looked_at=looked_at)
        cursor = found.reached


def _words_of(found: Sample) -> Content:
    """Return what stands beside the picture."""
    facts = f"{units.count(found.tokens or 0, 'token')}, ended by {clean(found.finish_reason or '-', 20)}"
    made = f"made {ago(found.cursor.done_at, now_ms(), duration)} by {clean(found.model, 80)}"
    shared = f", shared by {units.count(found.records, 'record')}" if found.records > 1 else ""
    parts = [
        Content.styled(clean(found.title or "without a title", 200), STRONG),
        Content.styled(clean(found.date or "without a date", 60), QUIET),
    ]
    if found.flags:
        parts.append(Content.styled(f"flags: {clean(', '.join(found.flags), 200)}", f"bold {ALERT}"))
    if found.image_flags:
        parts.append(Content.styled(f"the picture: {clean(', '.join(found.image_flags), 200)}", f"bold {ALERT}"))
    parts += [
        Content(""),
        Content.styled(clean(found.text, MAX_TEXT) or "(no words)", GOOD),
        Content(""),
        Content.styled(facts, QUIET),
        Content.styled(made + ("" if found.current else ", an earlier recipe"), QUIET),
        Content(""),
        Content.styled(f"{clean(found.key, 300) or 'no record needs it any more'}{shared}", QUIET),
        Content.styled(clean(redact_url(found.url), 500), QUIET),
    ]
    if found.thinking:
        parts += [Content(""), Content.styled("Before it, the model reasoned:", QUIET)]
        parts.append(Content(clean(found.thinking, MAX_TEXT)))
    return Content("\n").join(parts)
