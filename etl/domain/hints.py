"""Commands that people are told to type next, with the state directory that they are at work in.

Whoever has a hint to give writes it as a command between backquotes and knows nothing of the state: `hinted` adds that
where the words are shown.  A program is at work in one state, which it names once (`name_state`).
"""

import re
import shlex
from pathlib import Path

DEFAULT_STATE = Path("state")
"""The state directory where none is named; hints need not name it."""

_COMMAND = re.compile(r"`etl (?!demo\b)([a-z][a-z-]*)([^`]*)`")
_NAMED = re.compile(r"(?:^|\s)(?:--state|-s|--help|--help-all)(?=[\s=]|$)")

_state = DEFAULT_STATE


def name_state(directory: Path) -> None:
    """Say which state the program is at work in, as its user has written it."""
    global _state
    _state = directory


def hinted(text: str) -> str:
    """Return a text whose commands mean the state at hand; those that name one themselves stay as they are."""
    if _state == DEFAULT_STATE or "`etl " not in text:
        return text
    return _COMMAND.sub(_with_state, text)


def _with_state(found: re.Match[str]) -> str:
    name, rest = found.groups()
    if _NAMED.search(rest):
        return found[0]
    # Before the rest, which may end with an option that waits for its value.
    return f"`etl {name} --state {shlex.quote(str(_state))}{rest}`"
