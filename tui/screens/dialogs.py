"""Small screens on top of another: a question, and the list of keys."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.keys import EVERYWHERE, PLACES, actions_of, keys_of
from tui.theme import GOOD, QUIET, STRONG

KEYS = 16
"""Cells for the keys of an action."""


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
    """Every key, from the one registry; it scrolls where the terminal is small."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,o", "close", "Close")]

    def __init__(self, remapped: Mapping[str, str], *, palette: bool) -> None:
        super().__init__()
        self._remapped = remapped
        self._palette = palette

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog", id="keys"):
            yield Static(Content.assemble(("Keys", STRONG), ("   escape closes this", QUIET)))
            for place, heading in PLACES.items():
                rows = [(keys_of(action, self._remapped), action.help) for action in actions_of(place)]
                if self._palette and place == EVERYWHERE:
                    rows.append(("ctrl+p", "find an action by its name"))
                yield Static(Content.assemble((heading, STRONG), "\n", _table(rows)), classes="below")

    def action_close(self) -> None:
        """Go back to the screen below."""
        self.dismiss()


def _table(rows: Sequence[tuple[str, str]]) -> Content:
    return Content("\n").join(Content.assemble((f"{keys:<{KEYS}}", f"bold {GOOD}"), words) for keys, words in rows)
