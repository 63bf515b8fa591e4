"""Small screens on top of another: a question, and the list of keys."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.keys import ACTIONS, TABLE_KEYS
from tui.theme import GOOD, QUIET, STRONG


class ConfirmScreen(ModalScreen[bool]):
    """Asks before something that cannot be taken back by a key; only ``y`` means yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str, explanation: str) -> None:
        super().__init__()
        self._question = question
        self._explanation = explanation

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content.styled(self._question, STRONG))
            yield Static(Content.styled(self._explanation, QUIET), classes="below")
            yield Static(
                Content.assemble(("y", f"bold {GOOD}"), " yes     ", ("n", f"bold {GOOD}"), " no"), classes="below"
            )

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


class HelpScreen(ModalScreen[None]):
    """Every key, from the one registry."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,o", "close", "Close")]

    def compose(self) -> ComposeResult:
        actions = [(action.shown_keys(), action.help) for action in ACTIONS]
        if self.app.use_command_palette:
            actions.append(("ctrl+p", "find an action by its name"))
        with Vertical(classes="dialog"):
            yield Static(Content.styled("Keys", STRONG))
            yield Static(_table(actions), classes="below")
            yield Static(Content.styled("In a table", STRONG), classes="below")
            yield Static(_table(TABLE_KEYS))
            yield Static(Content.styled("escape closes this", QUIET), classes="below")

    def action_close(self) -> None:
        """Go back to the screen below."""
        self.dismiss()


def _table(rows: Sequence[tuple[str, str]]) -> Content:
    return Content("\n").join(Content.assemble((f"{keys:<12}", f"bold {GOOD}"), words) for keys, words in rows)
