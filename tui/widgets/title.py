"""The top line: which state this is, and what hinders the view."""

from pathlib import Path

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from etl.text import clean
from tui.theme import ALERT, GOOD, QUIET
from tui.widgets.panel import spread


class Title(Widget):
    """Program, state directory, ``read-only``, and whether the database has stopped answering."""

    blocked_s: reactive[int] = reactive(0)

    def __init__(self, state: Path, readonly: bool) -> None:
        super().__init__()
        self._state = clean(str(state))
        self._readonly = readonly

    def render(self) -> Content:
        right = []
        if self.blocked_s:
            right.append((f"the database does not answer ({self.blocked_s}s)  ", ALERT))
        if self._readonly:
            right.append(("read-only", QUIET))
        left = Content.assemble(("caption-etl", f"bold {GOOD}"), "  ", (self._state, QUIET))
        return spread(left, Content.assemble(*right), self.content_size.width)
