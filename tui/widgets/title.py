"""The top line: the screens with their keys, which state this is, and what hinders the view."""

from collections.abc import Mapping
from pathlib import Path

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from etl.text import clean
from tui.format import Glyphs
from tui.keys import TABS, written
from tui.theme import ALERT, GOOD, QUIET, STRONG
from tui.widgets.panel import spread


class Title(Widget):
    """Tabs, state directory, ``read-only``, and whether the database has stopped answering."""

    blocked_s: reactive[int] = reactive(0)

    def __init__(self, state: Path, readonly: bool, tab: str, keys: Mapping[str, str], glyphs: Glyphs) -> None:
        super().__init__()
        self._state = clean(str(state))
        self._readonly = readonly
        self._tab = tab
        self._keys = keys
        self._glyphs = glyphs

    def render(self) -> Content:
        right = []
        if self.blocked_s:
            right.append((f"database blocked ({self.blocked_s}s)", ALERT))
        else:
            right.append((self._state, QUIET))
        if self._readonly and not self.blocked_s:
            right.append(("  read-only", ALERT))
        tabs = []
        for action in TABS:
            key = written(self._keys.get(action.name, action.keys)).split(" ")[0]
            chosen = action.name == self._tab
            tabs.append(Content.assemble((key, GOOD), " ", (action.label, f"{STRONG} underline" if chosen else QUIET)))
        left = Content("  ").join(tabs)
        # The tabs are needed, of a long path its end says most.
        words = Content.assemble(*right)
        room = max(0, self.content_size.width - left.cell_length - 2)
        if words.cell_length > room:
            words = words[len(words) - room :] if room else Content("")
        return spread(left, words, self.content_size.width, self._glyphs)
