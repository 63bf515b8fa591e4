"""The app: one source of snapshots, two screens, and the commands to a live run."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.reactive import reactive
from textual.screen import Screen

from etl.models import RunState
from etl.state import control
from etl.text import clean
from tui.format import ASCII, UNICODE, plural
from tui.keys import ACTIONS, bindings
from tui.messages import CommandAnswered, SnapshotTaken, SourceBroke
from tui.screens.base import StateScreen
from tui.screens.dialogs import ConfirmScreen, HelpScreen
from tui.screens.failures import FailuresScreen
from tui.screens.overview import OverviewScreen
from tui.snapshot import Snapshot
from tui.source import Source, send_command
from tui.theme import THEME

INTERVAL_S = 1.0
"""Time between looks at the state; at 1 Hz the whole dashboard costs about 2 % of a core."""

BLOCKED_S = 3
"""A read that lasts longer is told to the user; an ordinary one takes milliseconds."""

NO_RUN = "No run is active."


class Dashboard(App[None]):
    """Shows one state directory.

    Attributes:
        snapshot: what is shown; ``None`` until the state was read once.
    """

    CSS_PATH = "app.tcss"
    TITLE = "caption-etl"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings()]

    snapshot: reactive[Snapshot | None] = reactive(None)

    def __init__(self, state: Path, *, readonly: bool = False, ascii_only: bool = False) -> None:
        super().__init__()
        self.state = state
        self.readonly = readonly
        self._glyphs = ASCII if ascii_only else UNICODE
        self._source = Source(state, self.post_message)
        self._asked: str | None = None
        # The palette draws an emoji.
        self.use_command_palette = not ascii_only
        self.set_class(ascii_only, "-ascii")
        self.register_theme(THEME)
        self.theme = THEME.name

    def get_default_screen(self) -> Screen[None]:
        """Begin with the overview."""
        return OverviewScreen(self.state, self._glyphs, self.readonly)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 (Textual's)
        """Fill the palette from the registry of keys."""
        for action in ACTIONS:
            run = partial(self.run_action, action.name)
            yield SystemCommand(action.label or action.name.capitalize(), action.help, run)

    def on_mount(self) -> None:
        self._source.start()
        self.set_interval(INTERVAL_S, self._tick)

    def on_unmount(self) -> None:
        self._source.stop()

    def _tick(self) -> None:
        blocked = int(self._source.blocked_s())
        for screen in self.screen_stack:
            if isinstance(screen, StateScreen):
                screen.show_blocked(blocked if blocked >= BLOCKED_S else 0)
        self._source.wake()

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self.snapshot = message.snapshot

    def on_source_broke(self, message: SourceBroke) -> None:
        raise message.error

    # Moving about.

    def action_failures(self) -> None:
        """Show the failures, read from now on."""
        if isinstance(self.screen, OverviewScreen):
            self._source.with_failures = True
            self._source.wake()
            self.push_screen(FailuresScreen(self.state, self._glyphs, self.readonly))

    def action_overview(self) -> None:
        """Go back to the overview."""
        if isinstance(self.screen, FailuresScreen):
            self._source.with_failures = False
            self.pop_screen()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def action_repaint(self) -> None:
        """Draw everything again, after a terminal was disturbed or attached anew."""
        self.refresh(layout=True)

    # Commands to the run.

    def action_pause(self) -> None:
        """Pause a running run, resume a paused one."""
        if self._may_command() and self.snapshot is not None and self.snapshot.run is not None:
            match self.snapshot.run.state:
                case RunState.PAUSED:
                    self._send(control.RESUME)
                case RunState.STOPPING:
                    self._say("The run is stopping already.")
                case _:
                    self._send(control.PAUSE)

    def action_stop(self) -> None:
        """Stop the run, once confirmed."""
        if self._may_command():
            self._ask(control.STOP, "Stop the run?", "What is in flight is finished first; a later run goes on there.")

    def action_retry(self) -> None:
        """Put everything dead back into its queue, once confirmed."""
        dead = self.snapshot.dead if self.snapshot is not None else 0
        if not self._may_command("Run `etl retry-failed`, then `etl run`."):
            return
        if not dead:
            self._say("Nothing is dead; there is nothing to retry.")
            return
        self._ask(
            control.RETRY, f"Retry {plural(dead, 'dead item')}?", "They start again with no attempts charged; "
            "their history is kept."
        )  # fmt: skip

    def _may_command(self, instead: str = "") -> bool:
        if self.readonly:
            self._say("Read-only: this dashboard was started with --readonly.", alert=True)
        elif self.snapshot is None or not self.snapshot.live:
            self._say(f"{NO_RUN} {instead}".strip(), alert=True)
        elif self._asked is not None:
            self._say(f"Waiting for the answer to {self._asked}.")
        else:
            return True
        return False

    def _ask(self, name: str, question: str, explanation: str) -> None:
        self.push_screen(ConfirmScreen(question, explanation), lambda yes: self._send(name) if yes else None)

    def _send(self, name: str) -> None:
        self._asked = name
        send_command(self.state, name, self.post_message)

    def on_command_answered(self, message: CommandAnswered) -> None:
        self._asked = None
        self._source.wake()
        if message.problem is not None:
            self._say(message.problem, alert=True)
        elif message.answer is None:
            self._say(f"The run has not answered to {message.name} yet; it obeys when it can.", alert=True)
        else:
            self._say(f"{message.name}: {message.answer}")

    def _say(self, words: str, *, alert: bool = False) -> None:
        self.notify(clean(words, 500), severity="warning" if alert else "information", timeout=6, markup=False)
