"""What all full screens share: the title above, the footer below, and a plain word when nothing can be read."""

from collections.abc import Iterable
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from etl.text import clean
from tui.format import Glyphs
from tui.snapshot import Snapshot
from tui.theme import ALERT, QUIET
from tui.widgets.title import Title


class StateScreen(Screen[None]):
    """A screen that draws snapshots; subclasses say what is on it and how to draw one.

    Attributes:
        state: the state directory that is watched.
    """

    def __init__(self, state: Path, glyphs: Glyphs, readonly: bool) -> None:
        # Until something was read there is nothing to show but that.
        super().__init__(classes="-problem")
        self.state = state
        self.glyphs = glyphs
        self._readonly = readonly

    def parts(self) -> Iterable[Widget]:
        """Return the widgets between title and footer."""
        raise NotImplementedError

    def draw(self, snapshot: Snapshot) -> None:
        """Draw a snapshot that has no problem."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield Title(self.state, self._readonly)
        yield Static("Reading the state.", id="problem", markup=False)
        with Vertical(id="content"):
            yield from self.parts()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # Also draws what is known already, and goes on below a dialog.
        self.watch(self.app, "snapshot", self._show)

    def _show(self, snapshot: Snapshot | None) -> None:
        """Draw a snapshot, or the reason why there is none."""
        if snapshot is None:
            return
        with self.app.batch_update():
            self.set_class(snapshot.problem is not None, "-problem")
            if snapshot.problem is None:
                self.draw(snapshot)
                return
            words = Content.assemble(
                (clean(snapshot.problem, 2000), ALERT), "\n\n", ("Looking again every second.", QUIET)
            )
            self.query_one("#problem", Static).update(words)

    def show_blocked(self, seconds: int) -> None:
        """Say for how long the database has not answered; 0 says nothing."""
        self.query_one(Title).blocked_s = seconds
