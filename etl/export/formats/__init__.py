"""The formats of exports: one in each module of this folder, as its ``FORMAT``.  A new one is a new module."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.export.format import Format
from etl.export.lines import STDOUT, ExportOptions

_DEFAULT = "jsonl"
"""The format of a name that says nothing else."""

_found: list[type[Format]] = [
    importlib.import_module(f"{__name__}.{module.name}").FORMAT for module in pkgutil.iter_modules(__path__)
]
FORMATS = {one.name: one for one in sorted(_found, key=lambda one: (one.pictures, one.name != _DEFAULT, one.name))}
"""All formats by name; the usual one first, those with pictures last."""


def format_of(target: str, options: ExportOptions) -> Format:
    """Return the format with its options, by what was asked for, else by the name of the target.

    Raises `ConfigError` for an unknown format or option, and where format and target do not fit.
    """
    suffixes = [suffix for suffix in Path(target).suffixes if suffix not in (".gz", ".zst")]
    named = [name for name, one in FORMATS.items() if suffixes and suffixes[-1] in one.suffixes]
    name = options.format or (named[0] if named else _DEFAULT)
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    if unknown := options.format_options.keys() - options_of_formats().keys():
        raise ConfigError(f"unknown option of a format {min(unknown)!r}; known: {', '.join(options_of_formats())}")
    kind = FORMATS[name]
    if target == STDOUT and (not kind.to_stdout or options.shard_size):
        raise ConfigError(f"{name} cannot be written to stdout; give a name")
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in options.format_options.items() if name in known})


def options_of_formats() -> dict[str, dataclasses.Field[Any]]:
    """Return the options of all formats by name; formats with the same one share it."""
    return {field.name: field for one in FORMATS.values() for field in dataclasses.fields(one)}
