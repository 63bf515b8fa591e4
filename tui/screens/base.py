"""What all full screens share: the tabs above, the keys below, and a plain word when nothing can be read."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from etl.domain.hints import hinted
from etl.state.read.reader import Reader
from etl.text import clean
from tui.background_queries import Answered, BackgroundQueries
from tui.format import Glyphs
from tui.poller import in_words
from tui.retry_selection import RetrySelection
from tui.snapshot import Snapshot
from tui.theme import ALERT, QUIET
from tui.widgets.title import Title

T = TypeVar("T")

AGAIN = "Looking again every second."


class ShowsScreens(Protocol):
    """What screens use of the app, `tui.app.Dashboard`, which imports them."""

    state: Path
    readonly: bool
    ascii_only: bool
    glyphs: Glyphs
    keys: Mapping[str, str]
    queries: BackgroundQueries
    snapshot: Snapshot | None

    def say(self, words: str, *, alert: bool = False) -> None:
        """Show a message for a few seconds."""


class StateScreen(Screen[None]):
    """A screen that draws snapshots, and answers to its own questions; subclasses say what is on it.

    Attributes:
        tab: name of the tab that it belongs to.
    """

    AUTO_FOCUS = ""

    tab = "overview"

    def __init__(self) -> None:
        # Until something was read there is nothing to show but that.
        super().__init__(classes="-problem")
        self._tickets: dict[str, tuple[int, Callable[[Any], None]]] = {}

    @property
    def dashboard(self) -> ShowsScreens:
        """The app."""
        return cast(ShowsScreens, self.app)

    @property
    def glyphs(self) -> Glyphs:
        """The characters to draw with."""
        return self.dashboard.glyphs

    def parts(self) -> Iterable[Widget]:
        """Return the widgets between tabs and keys."""
        raise NotImplementedError

    def draw(self, snapshot: Snapshot) -> None:
        """Draw a snapshot that has no problem."""
        raise NotImplementedError

    def copied(self) -> str:
        """Return what the copy key copies; empty for nothing."""
        return ""

    def retry_selection(self) -> RetrySelection | None:
        """Return which failures a retry on this screen means; ``None`` where it means all."""
        return None

    def go_back(self) -> bool:
        """Take one step back inside the screen; return whether there was one to take."""
        return False

    def compose(self) -> ComposeResult:
        app = self.dashboard
        yield Title(app.state, app.readonly, self.tab, app.keys, app.glyphs)
        yield Static("Reading the state.", id="problem", markup=False)
        with Vertical(id="content"):
            yield from self.parts()
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        # Also draws what is known already, and goes on below a dialog.
        self.watch(self.app, "snapshot", self._show)

    def _show(self, snapshot: Snapshot | None) -> None:
        """Draw a snapshot, or the reason why there is none."""
        if snapshot is None:
            return
        with self.app.batch_update():
            self._tell(snapshot.problem)
            if snapshot.problem is None:
                self.draw(snapshot)

    def _tell(self, problem: str | None) -> None:
        self.set_class(problem is not None, "-problem")
        if problem is not None:
            words = Content.assemble((clean(hinted(problem), 2000), ALERT), "\n\n", (AGAIN, QUIET))
            self.query_one("#problem", Static).update(words)

    def show_blocked(self, seconds: int) -> None:
        """Say for how long the database has not answered; 0 says nothing."""
        # A screen that was pushed or popped in this very moment has no title.
        for title in self.query(Title):
            title.blocked_s = seconds
        if seconds and self.dashboard.snapshot is None:
            words = f"Reading the state: the database has not answered for {seconds}s; another process may hold it."
            for place in self.query("#problem").results(Static):
                place.update(Content.styled(words, ALERT))

    def ask(self, slot: str, question: Callable[[Reader], T], show: Callable[[T], None]) -> None:
        """Ask the state; ``show`` gets the answer, unless the same slot was asked anew meanwhile."""
        self._tickets[slot] = self.dashboard.queries.ask(self, slot, question), show

    def forget(self, slot: str) -> None:
        """Ignore the answer that may still come."""
        self._tickets.pop(slot, None)

    def on_answered(self, message: Answered) -> None:
        ticket, show = self._tickets.get(message.slot, (None, None))
        if show is None or ticket != message.ticket:
            return
        if message.problem is None:
            show(message.value)
        else:
            self.dashboard.say(in_words(message.problem), alert=True)
