"""The app: one poller, one thread for queries, five screens, and the commands to a live run."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.screen import Screen

from etl.domain.hints import hinted
from etl.domain.statuses import RunState
from etl.domain.views import FailureFilter
from etl.state import commands as control
from etl.text import clean
from etl.units import count
from tui.background_queries import BackgroundQueries
from tui.format import ASCII, UNICODE
from tui.keys import ACTIONS, EVERYWHERE, bindings, written
from tui.messages import CommandAnswered, ReadingBroke, SnapshotTaken
from tui.poller import Poller, send_command
from tui.retry_selection import RetrySelection
from tui.screens.base import StateScreen
from tui.screens.dialogs import ConfirmScreen, HelpScreen
from tui.screens.overview import OverviewScreen
from tui.settings import DashboardSettings
from tui.snapshot import Snapshot
from tui.theme import THEMES

INTERVAL_S = 1.0
"""Time between looks at the state."""

BLOCKED_S = 3
"""A read that lasts longer is told to the user; an ordinary one takes milliseconds."""

NO_RUN = "No run is active."


class Dashboard(App[None]):
    """Shows one state directory.

    Attributes:
        snapshot: what is shown; ``None`` until the state was read once.
        state: the state directory.
        readonly: whether commands are refused.
        ascii_only, glyphs: what is drawn with.
        keys: keys of actions as the user has changed them.
        queries: answers the questions of screens.
    """

    CSS_PATH = "app.tcss"
    TITLE = "caption-etl"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings(EVERYWHERE)]

    snapshot: reactive[Snapshot | None] = reactive(None)

    def __init__(
        self,
        state: Path,
        *,
        readonly: bool = False,
        ascii_only: bool = False,
        price: float = 0.0,
        settings: DashboardSettings | None = None,
    ) -> None:
        super().__init__()
        settings = settings or DashboardSettings()
        self.state = state
        self.readonly = readonly
        self.ascii_only = ascii_only
        self.glyphs = ASCII if ascii_only else UNICODE
        self.keys = settings.keys
        self.queries = BackgroundQueries(state)
        self._poller = Poller(state, self.post_message, price=price)
        self._asked: str | None = None
        # The palette draws an emoji.
        self.use_command_palette = not ascii_only
        self.set_class(ascii_only, "-ascii")
        for theme in THEMES.values():
            self.register_theme(theme)
        self.theme = THEMES[settings.theme].name
        self.set_keymap(dict(settings.keys))

    def get_default_screen(self) -> Screen[None]:
        """Begin with the overview."""
        return OverviewScreen()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Fill the palette from the registry of keys: what works everywhere, and what works on this screen."""
        here = {action for action in ACTIONS if hasattr(screen, f"action_{action.name}")}
        for action in ACTIONS:
            if action.place == EVERYWHERE or action in here:
                namespace = self if action.place == EVERYWHERE else screen
                run = partial(self.run_action, action.name, namespace)
                yield SystemCommand(action.label, action.help, run)

    def on_mount(self) -> None:
        self._poller.start()
        self.queries.start()
        self.set_interval(INTERVAL_S, self._tick)

    def on_unmount(self) -> None:
        self._poller.stop()
        self.queries.stop()

    def _tick(self) -> None:
        blocked = int(self._poller.blocked_s())
        for screen in self.screen_stack:
            if isinstance(screen, StateScreen):
                screen.show_blocked(blocked if blocked >= BLOCKED_S else 0)
        self._poller.wake()

    def on_snapshot_taken(self, message: SnapshotTaken) -> None:
        self.snapshot = message.snapshot

    def on_reading_broke(self, message: ReadingBroke) -> None:
        raise message.error

    def get_key_display(self, binding: Binding) -> str:
        """Write a key as the help does; Textual would draw some as pictures."""
        return written(binding.key)

    # Moving about.

    def _show(self, screen: StateScreen | None) -> None:
        """Put a screen onto the overview, in the place of whatever was there; ``None`` shows the overview."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if screen is not None:
            self.push_screen(screen)

    def action_overview(self) -> None:
        """Show the overview."""
        self._show(None)

    def action_failures(self) -> None:
        """Show what failed."""
        from tui.screens.failures import FailuresScreen

        self._show(FailuresScreen())

    def action_samples(self) -> None:
        """Show captions."""
        from tui.screens.samples import SamplesScreen

        self._show(SamplesScreen())

    def action_records(self) -> None:
        """Show records."""
        from tui.screens.records import RecordsScreen

        self._show(RecordsScreen())

    def action_log(self) -> None:
        """Show the log."""
        from tui.screens.log import LogScreen

        self._show(LogScreen())

    def action_step_back(self) -> None:
        """Take one step back: out of a search, a story, a list; at last to the overview."""
        screen = self.screen
        if isinstance(screen, StateScreen) and not screen.go_back() and len(self.screen_stack) > 1:
            self.pop_screen()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen(self.keys, palette=self.use_command_palette))

    def action_repaint(self) -> None:
        """Draw everything again, after a terminal was disturbed or attached anew."""
        self.refresh(layout=True)

    def action_theme(self) -> None:
        """Change between dark and light."""
        names = [theme.name for theme in THEMES.values()]
        self.theme = names[(names.index(self.theme) + 1) % len(names)]

    def action_copy(self) -> None:
        """Copy what is marked, by the terminal's own means (OSC 52)."""
        text = self.screen.copied() if isinstance(self.screen, StateScreen) else ""
        if text:
            self.copy_to_clipboard(text)
            self.say(f"Copied {count(len(text), 'character')}, if the terminal allows it.")
        else:
            self.say("There is nothing to copy here.")

    # Commands to the run.

    def action_pause(self) -> None:
        """Pause a running run, resume a paused one."""
        if self._may_command() and self.snapshot is not None and self.snapshot.run is not None:
            match self.snapshot.run.state:
                case RunState.PAUSED:
                    self._send(control.RESUME)
                case RunState.STOPPING:
                    self.say("The run is stopping already.")
                case _:
                    self._send(control.PAUSE)

    def action_stop(self) -> None:
        """Stop the run, once confirmed."""
        if self._may_command():
            self._ask(control.STOP, "Stop the run?", "What is in flight is finished first; a later run goes on there.")

    def action_retry(self) -> None:
        """Put what is marked back into its queue, once confirmed; where nothing can be marked, everything failed."""
        chosen = self.screen.retry_selection() if isinstance(self.screen, StateScreen) else None
        self._retry(chosen or self._everything())

    def action_retry_all(self) -> None:
        """Put everything failed back into its queue, once confirmed."""
        self._retry(self._everything())

    def _everything(self) -> RetrySelection:
        failed = self.snapshot.failed if self.snapshot is not None else 0
        return RetrySelection(items=failed, problem="" if failed else "Nothing has failed; there is nothing to retry.")

    def _retry(self, chosen: RetrySelection) -> None:
        if chosen.problem and not self.readonly:
            self.say(chosen.problem)
            return
        if self._may_command(f"Run `{chosen.command()}`, then `etl run`."):
            number = count(chosen.items, "failed item")
            what = number if chosen.what == "failed items" else f"{number}: {chosen.what}"
            words = "They start again with no attempts charged; their history is kept."
            self._ask(control.RETRY, f"Retry {what}?", words, chosen.failures)

    def _may_command(self, instead: str = "") -> bool:
        if self.readonly:
            self.say("Read-only: this dashboard was started with --readonly.", alert=True)
        elif self.snapshot is None or not self.snapshot.live:
            self.say(f"{NO_RUN} {instead}".strip(), alert=True)
        elif self._asked is not None:
            self.say(f"Waiting for the answer to {self._asked}.")
        else:
            return True
        return False

    def _ask(self, name: str, question: str, explanation: str, chosen: FailureFilter | None = None) -> None:
        self.push_screen(ConfirmScreen(question, explanation), lambda yes: self._send(name, chosen) if yes else None)

    def _send(self, name: str, chosen: FailureFilter | None = None) -> None:
        self._asked = name
        send_command(self.state, name, chosen or FailureFilter(), self.post_message)

    def on_command_answered(self, message: CommandAnswered) -> None:
        self._asked = None
        self._poller.wake()
        if message.problem is not None:
            self.say(message.problem, alert=True)
        elif message.answer is None:
            self.say(f"The run has not answered to {message.name} yet; it obeys when it can.", alert=True)
        else:
            self.say(f"{message.name}: {message.answer}")

    def say(self, words: str, *, alert: bool = False) -> None:
        """Show a message for a few seconds."""
        self.notify(clean(hinted(words), 500), severity="warning" if alert else "information", timeout=6, markup=False)
