"""The top line: the screens with their keys, which state this is, and what hinders the view."""

from collections.abc import Mapping
from pathlib import Path

from rich.cells import cell_len
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from etl.text import clean
from tui.format import Glyphs
from tui.keys import TABS, Action, written
from tui.theme import ALERT, GOOD, QUIET, STRONG

GAP = 2
"""Cells between what stands on the line."""


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
        alert = f"database blocked ({self.blocked_s}s)" if self.blocked_s else "read-only" * self._readonly
        need = cell_len(alert) + GAP * bool(alert)
        # Where it is narrow, whole words go: of the path, then of tabs that are not shown, then of all tabs.
        tabs, room = Content(""), 0
        for labelled in (TABS, [action for action in TABS if action.name == self._tab], ()):
            tabs = Content("  ").join(self._named(action, labelled=action in labelled) for action in TABS)
            room = self.content_size.width - tabs.cell_length - need
            if room >= 0:
                break
        path = "" if self.blocked_s else self._path(room - GAP)
        right = Content.assemble((path, QUIET), " " * GAP * bool(path and alert), (alert if room >= 0 else "", ALERT))
        between = self.content_size.width - tabs.cell_length - right.cell_length
        return Content.assemble(tabs, " " * max(0, between), right)

    def _named(self, action: Action, *, labelled: bool) -> Content:
        key = written(self._keys.get(action.name, action.keys)).split(" ")[0]
        style = f"{STRONG} underline" if action.name == self._tab else QUIET
        return Content.assemble((key, GOOD), *((" ", (action.label, style)) if labelled else ()))

    def _path(self, room: int) -> str:
        """Return as many of the last names of the state's path as there is room for."""
        if cell_len(self._state) <= room:
            return self._state
        names = self._state.split("/")
        ends = (f"{self._glyphs.more}/{'/'.join(names[begin:])}" for begin in range(1, len(names)))
        return next((end for end in ends if cell_len(end) <= room), "")
