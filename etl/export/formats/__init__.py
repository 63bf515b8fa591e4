"""The formats of exports: one in each module of this folder, as its ``FORMAT``.  A new one is a new module."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.export.format import Format, SidecarFormat
from etl.export.lines import STDOUT, ExportOptions
from etl.output_file import resolved
from etl.text import did_you_mean, nearest

_DEFAULT = "jsonl"
"""The format of a name that says nothing else."""

_found: list[type[Format]] = [
    importlib.import_module(f"{__name__}.{module.name}").FORMAT for module in pkgutil.iter_modules(__path__)
]
FORMATS = {one.name: one for one in sorted(_found, key=lambda one: (one.pictures, one.name != _DEFAULT, one.name))}
"""All formats by name; the usual one first, those with pictures last."""


COMPRESSED = (".gz", ".zst")
"""Endings behind that of the format: the file is compressed."""


def format_of(target: str, options: ExportOptions) -> Format:
    """Return the format with its options, by what was asked for, else by the ending of the target.

    A target without an ending is `_DEFAULT`.  Raises `ConfigError` for an unknown format, option or ending, and where
    format and target do not fit.  Looks at names alone, so that it can be asked before there is anything to export.
    """
    name = options.format or _by_ending(target)
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}; {did_you_mean(nearest(name, FORMATS))}known: {', '.join(FORMATS)}")
    if unknown := options.format_options.keys() - options_of_formats().keys():
        raise ConfigError(f"unknown option of a format {min(unknown)!r}; known: {', '.join(options_of_formats())}")
    kind = FORMATS[name]
    if target == STDOUT and (not kind.to_stdout or options.shard_size):
        raise ConfigError(f"{name} cannot be written to stdout; give a name")
    if options.shard_size and issubclass(kind, SidecarFormat):
        raise ConfigError(f"{name} is a file for each record, which has no shards; leave out --shard-size")
    known = options_of(kind)
    if strange := [name for name in given_options(options.format_options) if name not in known]:
        flag, takers = strange[0].replace("_", "-"), ", ".join(_takers(strange[0]))
        raise ConfigError(
            f"--{flag} is an option of {takers}, and this is written as {name}: leave it out, or --format"
        )
    made = kind(**{name: value for name, value in options.format_options.items() if name in known})
    if target.endswith("/") and not made.is_directory and not options.shard_size:
        folders = " or ".join(name for name, one in FORMATS.items() if one.pictures)
        raise ConfigError(
            f"{target} names a directory, and {name} is one file: give {target}captions{made.shard_suffix}, or "
            f"`etl export` with --shard-size for a directory of such files, or with --format {folders} for one of "
            "pictures"
        )
    return made


def _by_ending(target: str) -> str:
    """Return the format that a target's ending says.  Raises `ConfigError` for an ending that is no format's."""
    path, packed = Path(target), ""
    if path.suffix.lower() in COMPRESSED:
        path, packed = path.with_suffix(""), path.suffix
    ending = path.suffix.lower()
    if not ending or target.endswith("/"):
        return _DEFAULT
    endings = {suffix: name for name, one in FORMATS.items() for suffix in one.suffixes}
    if ending in endings:
        return endings[ending]
    place = resolved(target)
    if place.exists() and not place.is_file() and not place.is_dir():
        # A pipe has any name.
        return _DEFAULT
    near = nearest(ending, (*endings, *COMPRESSED))
    folder = next((name for name, one in FORMATS.items() if not one.suffixes and one.shard_suffix == ending), None)
    hint = did_you_mean(f"{path.with_suffix(near)}{packed}" if near else None)
    if folder:
        hint += f"{folder} is a directory of such files: `etl export {path.with_suffix('')} --format {folder}`. "
    hint = f"{hint}Known" if hint else "known"
    raise ConfigError(
        f"{target[:200]}: there is no export with the ending {ending[:40]}; {hint}: {', '.join(endings)}, with "
        f"{' or '.join(COMPRESSED)} behind it compressed; any other name needs `etl export --format`"
    )


def options_of(kind: type[Format]) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a format by name."""
    return {field.name: field for field in dataclasses.fields(kind) if "help" in field.metadata}


def options_of_formats() -> dict[str, dataclasses.Field[Any]]:
    """Return the options of all formats by name; formats with the same one share it."""
    return {name: field for one in FORMATS.values() for name, field in options_of(one).items()}


def given_options(values: Mapping[str, object]) -> dict[str, object]:
    """Return those options of formats that are other than they are where nobody gives them."""
    defaults = options_of_formats()
    return {name: value for name, value in values.items() if value != defaults[name].default}


def _takers(name: str) -> list[str]:
    """Return the formats that know an option."""
    return [one.name for one in FORMATS.values() if name in options_of(one)]
