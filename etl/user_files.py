"""Where this user's own files lie, as the XDG Base Directory Specification has it: settings, and a secret."""

import os
from collections.abc import Mapping
from pathlib import Path

CONFIG, STATE = ("XDG_CONFIG_HOME", ".config"), ("XDG_STATE_HOME", ".local/state")


def user_file(kind: tuple[str, str], name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the path of the user's own file of this kind, `CONFIG` or `STATE`; ``None`` where there is no home."""
    environment = os.environ if environment is None else environment
    variable, below_home = kind
    home = environment.get("HOME", "")
    # A relative path counts as none, says the specification: it would be another one in each directory.
    for directory in (Path(environment.get(variable, "")), Path(home, below_home)):
        if directory.is_absolute():
            return directory / "caption-etl" / name
    return None
