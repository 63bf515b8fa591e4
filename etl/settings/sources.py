"""Where settings come from: defaults < profile < the user's file < ``etl.toml`` < ``ETL_*`` environment < flags.

Each is called the same everywhere: ``per_host = 2`` in a file, ``ETL_PER_HOST=2``, ``--per-host 2`` as a flag.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.settings.fields import PROFILES, Settings
from etl.settings.files import FOUND, SettingFile, setting_files
from etl.settings.values import MAX_SHOWN, Trust, known, read, shown
from etl.text import clean, nearest

DASHBOARD = "dashboard"
"""The table of a settings file that belongs to the dashboard alone (`load_dashboard`)."""

_PREFIX = "ETL_"

_NO_SETTING = re.compile(r"ETL_(API_KEY(_\d+)?|FAILPOINTS)", re.ASCII)
"""Variables of ours that are no settings: keys of endpoints are neither kept nor shown as settings are."""


@dataclass(frozen=True)
class Loaded:
    """The settings, and a line on each file that was read: what it has set."""

    settings: Settings
    lines: tuple[str, ...]


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    used: Iterable[str] | None = None,
) -> Settings:
    """Resolve the settings; see `load`."""
    return load(flags, file=file, environment=environment, used=used).settings


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    used: Iterable[str] | None = None,
) -> Loaded:
    """Resolve the settings; flags that are ``None`` count as not given.

    ``file`` must exist when named; without it ``etl.toml`` in the working directory is read if there is one.
    ``used`` are the settings that the command goes by; all, unless given.

    Raises `ConfigError` naming file or variable, key and what is accepted; also where a setting that the command goes
    by would be another, if a file that may be a stranger's had its way.
    """
    environment = os.environ if environment is None else environment
    given = _from_environment(environment) | {name: value for name, value in (flags or {}).items() if value is not None}
    obeyed: dict[str, tuple[SettingFile, Any]] = {}
    refused: dict[str, tuple[SettingFile, Any]] = {}
    about = known(Settings)
    files = setting_files(file, environment)
    for each in files:
        for name, value in _from_file(each).items():
            (refused if each.doubt and about[name].trust is not Trust.HARMLESS else obeyed)[name] = (each, value)
            if not each.doubt:
                refused.pop(name, None)
    counting = {name: value for name, (_, value) in obeyed.items()} | given
    settings = Settings(**{**PROFILES[counting.get("profile", "archive")], **counting})
    missed = {name for name, (_, value) in refused.items() if value != getattr(settings, name)}
    lost = [name for name in refused if name in missed - given.keys() and (used is None or name in used)]
    if lost:
        raise ConfigError(_refusal(refused[lost[0]][0], lost))
    told = {name: value for name, value in settings.redacted().items() if name in obeyed and name not in given}
    lines = (
        _line(each.path, {name: told[name] for name in obeyed if name in told and obeyed[name][0] is each})
        for each in files
    )
    return Loaded(settings, tuple(lines))


def _refusal(file: SettingFile, names: list[str]) -> str:
    flags = ", ".join(known(Settings)[name].flag for name in names)
    return (
        f"{file.path} {file.doubt}, so its {', '.join(names)} cannot count: if it is yours, add --config {file.path}; "
        f"else take that out of it, or give {flags} yourself"
    )


def _line(path: Path, told: Mapping[str, Any]) -> str:
    changed = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in told.items())
    return f"settings  {path}: {changed or 'nothing that counts'}"


def load_dashboard(file: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the dashboard's table of the configuration as it stands there, and the file that it is in.

    Raises `ConfigError` as `load_settings` does, and when it is no table.
    """
    files = setting_files(file, os.environ)
    tables = [(each.path, each.table[DASHBOARD]) for each in files if DASHBOARD in each.table]
    path, own = tables[-1] if tables else (FOUND, {})
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: {DASHBOARD} is not a table; write [{DASHBOARD}] and its settings below")
    return path, own


def _from_file(file: SettingFile) -> dict[str, Any]:
    table = {name: value for name, value in file.table.items() if name != DASHBOARD}
    for name, value in table.items():
        if isinstance(value, dict) and name not in known(Settings):
            raise ConfigError(f"{file.path}: {_misplaced(name, value)}")
    return read(table, known(Settings), str(file.path))


def _misplaced(name: str, table: Mapping[str, Any]) -> str:
    """Return what is wrong about a table, and what its first setting is called."""
    if nearest(name, (DASHBOARD,)):
        return f"there is no table {shown(name)}; did you mean [{DASHBOARD}]?"
    key = next(iter(table), "")
    near = nearest(key, known(Settings), 0.7)
    hint = f", as {near} = ..." if near else ""
    return f"settings stand at the top level{hint}: take the line [{clean(name, MAX_SHOWN)}] out, and put them first"


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment sets; an empty variable counts as not given, as `ETL_STATE=` is no directory."""
    given = {
        name: value
        for name, value in environment.items()
        if name.startswith(_PREFIX) and value and not _NO_SETTING.fullmatch(name)
    }
    return read(given, known(Settings), "", spelt=lambda name: _PREFIX + name.upper())
