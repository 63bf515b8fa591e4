"""The dashboard's own table of ``etl.toml``.

[dashboard]
theme = "light"

[dashboard.keys]
pause = "P"
quit = "Q,ctrl+q"
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.settings.sources import DASHBOARD, load_dashboard
from tui.keys import ACTIONS, EVERYWHERE, NAMES, Action
from tui.theme import THEMES

_KEYS = {shown: name for name, shown in NAMES.items()}
_TABLES = ("keys", "theme")


@dataclass(frozen=True)
class DashboardSettings:
    """What a user has chosen.

    Attributes:
        theme: a name of `THEMES`.
        keys: by the name of an action, its keys as Textual names them, comma-separated.
    """

    theme: str = "dark"
    keys: Mapping[str, str] = field(default_factory=dict)


def load(file: Path | None = None) -> DashboardSettings:
    """Read the table; an absent file or table gives the defaults.

    Raises `ConfigError` naming the file and what is accepted, for unknown names, and for keys that two actions of one
    place would share.
    """
    path, table = load_dashboard(file)
    if unknown := set(table) - set(_TABLES):
        raise ConfigError(f"{path}: unknown setting {min(unknown)!r} in [{DASHBOARD}]; known: {', '.join(_TABLES)}")
    theme = table.get("theme", "dark")
    if theme not in THEMES:
        raise ConfigError(f"{path}: theme = {theme!r} in [{DASHBOARD}]: must be one of {', '.join(THEMES)}")
    keys = _keys(path, table.get("keys", {}))
    _check_clashes(path, keys)
    return DashboardSettings(theme, keys)


def _keys(path: Path, table: Any) -> dict[str, str]:
    where = f"{path}: [{DASHBOARD}.keys]"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table of actions and their keys")
    names = {action.name for action in ACTIONS}
    for name, keys in table.items():
        if name not in names:
            raise ConfigError(f"{where}: unknown action {name!r}; known: {', '.join(sorted(names))}")
        if not isinstance(keys, str) or not all(keys.split(",")):
            raise ConfigError(f"{where}: {name} = {keys!r}: must be a key, or keys with commas between them")
    return {
        name: ",".join(_KEYS.get(key.strip(), key.strip()) for key in keys.split(",")) for name, keys in table.items()
    }


def _check_clashes(path: Path, remapped: Mapping[str, str]) -> None:
    """Refuse a key for two actions that can be meant at the same moment."""
    taken: dict[tuple[str, str], Action] = {}
    for action in ACTIONS:
        for key in remapped.get(action.name, action.keys).split(","):
            for place in (action.place, EVERYWHERE):
                other = taken.get((place, key))
                if other is not None and {action.name, other.name} & set(remapped):
                    raise ConfigError(
                        f"{path}: [{DASHBOARD}.keys]: {key!r} would mean both {other.name} and {action.name}"
                    )
            taken[action.place, key] = action
