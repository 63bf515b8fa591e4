"""Every action of the dashboard, once: bindings, footer, help and palette are made from this list.

Not used, because terminals and multiplexers take them: ctrl+a, ctrl+b, ctrl+h, ctrl+i, ctrl+j, ctrl+m, ctrl+s.
"""

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True, slots=True)
class Action:
    """One thing a user can do.

    Attributes:
        name: the app's method is ``action_<name>``; also the id under which its keys can be remapped.
        keys: comma-separated, as Textual names them.
        label: for the footer; empty leaves it out there.
        help: one phrase for help and palette.
        writes: asks the run for something; refused with ``--readonly``.
    """

    name: str
    keys: str
    label: str
    help: str
    writes: bool = False

    def shown_keys(self) -> str:
        """Return the keys as people write them."""
        return " ".join("?" if key == "question_mark" else key for key in self.keys.split(","))


ACTIONS = (
    Action("pause", "p", "Pause", "pause the run, or let it go on", writes=True),
    Action("stop", "s", "Stop", "stop the run; what is in flight is finished", writes=True),
    Action("retry", "r", "Retry failed", "give everything that is dead another chance", writes=True),
    Action("failures", "f", "Failures", "what failed, and why"),
    Action("overview", "o,escape", "Overview", "back to the overview"),
    Action("help", "question_mark", "Help", "this list of keys"),
    Action("repaint", "ctrl+l", "", "draw the whole screen again"),
    Action("quit", "q", "Quit", "leave the dashboard; the run goes on"),
)

TABLE_KEYS = (("up down", "move between rows"), ("pgup pgdn", "move by pages"), ("home end", "first and last row"))
"""Keys that the tables bring with them."""


def bindings() -> list[Binding]:
    """Return the bindings of the app."""
    return [
        Binding(action.keys, action.name, action.label, show=bool(action.label), id=action.name) for action in ACTIONS
    ]
