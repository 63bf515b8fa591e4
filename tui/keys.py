"""Every action of the dashboard, once: bindings, footer, help and palette are made from this list.

Not used, because terminals and multiplexers take them: ctrl+a, ctrl+b, ctrl+h, ctrl+i, ctrl+j, ctrl+m, ctrl+s.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from textual.binding import Binding

EVERYWHERE = "everywhere"

NAMES = {"question_mark": "?", "slash": "/", "pageup": "pgup", "pagedown": "pgdn", "escape": "esc"}
"""Keys as people write them, where Textual writes them otherwise."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can do.

    Attributes:
        name: the method is ``action_<name>``; also the name under which its keys can be remapped.
        keys: comma-separated, as Textual names them.
        label: for the footer, the tabs and the palette.
        help: one phrase for help and palette.
        place: where it works: everywhere, on one screen, or in lists.
        footer: whether the footer shows it.
    """

    name: str
    keys: str
    label: str
    help: str
    place: str = EVERYWHERE
    footer: bool = True


TABS = (
    Action("overview", "o,1", "Overview", "how everything stands", footer=False),
    Action("failures", "f,2", "Failures", "what failed, and why", footer=False),
    Action("samples", "c,3", "Captions", "the captions, beside their pictures", footer=False),
    Action("records", "w,4", "Records", "find a record; its whole story", footer=False),
    Action("log", "l,5", "Log", "what happened in the runs", footer=False),
)

ACTIONS = (
    *TABS,
    Action("pause", "p", "Pause", "pause the run, or let it go on"),
    Action("stop", "s", "Stop", "stop the run; what is in flight is finished"),
    Action("retry", "r", "Retry", "try the marked failures again; on the overview all"),
    Action("retry_all", "R", "Retry all", "try everything that failed again", footer=False),
    Action("copy", "y", "Copy", "copy what is marked, through the terminal", footer=False),
    Action("theme", "t", "Dark or light", "change between dark and light", footer=False),
    Action("repaint", "ctrl+l", "Repaint", "draw the whole screen again", footer=False),
    Action("help", "question_mark", "Help", "this list of keys"),
    Action("step_back", "escape", "Back", "one step back", footer=False),
    Action("quit", "q", "Quit", "leave the dashboard; the run goes on"),
    Action("older", "n,right", "Older", "the caption made before this one", "samples"),
    Action("newer", "b,left", "Newer", "the caption made after this one", "samples"),
    Action("newest", "g,home", "Newest", "the latest caption", "samples", footer=False),
    Action("random", "x", "Random", "any caption", "samples"),
    Action("flagged", "m", "Flagged", "only captions with quality flags, or all again", "samples"),
    Action("search", "slash", "Search", "look for words in captions and titles", "samples"),
    Action("story", "enter", "Story", "the whole story of the caption's record", "samples", footer=False),
    Action("find", "slash", "Search", "look for a key or for words", "records"),
    Action("next_page", "n", "Next page", "the next 200 failures", "items"),
    Action("first_page", "b", "First page", "the first 200 failures", "items"),
    Action("up", "up,k", "Up", "one row up", "lists", footer=False),
    Action("down", "down,j", "Down", "one row down", "lists", footer=False),
    Action("page_up", "pageup", "Page up", "one page up", "lists", footer=False),
    Action("page_down", "pagedown", "Page down", "one page down", "lists", footer=False),
    Action("first", "home", "First", "the first row", "lists", footer=False),
    Action("last", "end", "Last", "the last row", "lists", footer=False),
    Action("open", "enter", "Open", "look into the marked row", "lists"),
)

PLACES = {
    EVERYWHERE: "Everywhere", "samples": "Captions", "records": "Records", "items": "Failures of one kind",
    "lists": "In a list",
}  # fmt: skip
"""Headings of the help."""


def actions_of(place: str) -> Iterable[Action]:
    """Return the actions that work in a place."""
    return (action for action in ACTIONS if action.place == place)


def bindings(place: str) -> list[Binding]:
    """Return the bindings of a place; their ids are what a configuration remaps."""
    return [
        Binding(action.keys, action.name, action.label, show=action.footer, id=action.name)
        for action in actions_of(place)
    ]


def written(keys: str) -> str:
    """Return keys as people write them."""
    return " ".join(NAMES.get(key, key) for key in keys.split(","))


def keys_of(action: Action, remapped: Mapping[str, str]) -> str:
    """Return the keys of an action, as people write them."""
    return written(remapped.get(action.name, action.keys))
