"""The line at the bottom in which words to look for are typed."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

MAX_WORDS = 200


class Entry(Input):
    """Hidden until it is opened; enter gives the words, escape gives none."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave", show=False)]

    class Given(Message):
        """Words were given; empty ones mean everything."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class Left(Message):
        """Nothing was given."""

    def __init__(self, prompt: str) -> None:
        super().__init__(placeholder=prompt, max_length=MAX_WORDS, compact=True, select_on_focus=True)
        # A blinking cursor is a packet over the network twice a second.
        self.cursor_blink = False

    def open(self) -> None:
        """Show the line and wait for words."""
        self.add_class("-shown")
        self.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.remove_class("-shown")
        self.post_message(self.Given(self.value.strip()))

    def action_leave(self) -> None:
        """Close the line."""
        self.remove_class("-shown")
        self.post_message(self.Left())
