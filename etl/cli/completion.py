"""What the shell may offer for a value: from the state on the line, the formats, the models at hand.

Everything here is silent: a completion that cannot be had is none.  Keys and hosts are strangers' words, and zsh runs
what it is given, so only plain ones are offered.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from etl.settings import DEFAULT_MODEL, DEMO_MODEL, Settings
from etl.settings.sources import load_settings
from etl.settings.values import known

MOST = 200
"""Values that are offered at most."""

_PLAIN = re.compile(r"[\w@+][\w@+.,:/=%-]*")


def candidates(name: str, context: typer.Context, begin: str) -> list[str] | None:
    """Return what may be typed where ``begin`` stands, by the name of the option; none for files and free texts."""
    about = known(Settings).get(name)
    find = _FINDS.get(name)
    if find is None and not (about and about.choices):
        return None
    with contextlib.suppress(Exception):
        found = sorted({*(find(context, begin) if find else about.choices if about else ())})
        return [one for one in found if one.startswith(begin) and _PLAIN.fullmatch(one)][:MOST]
    return []


def _state(context: typer.Context) -> Path:
    """Return the state that the line, the environment or a file names."""
    given = context.params.get("state") or (context.parent and context.parent.params.get("state"))
    return load_settings({"state": Path(given)} if given else {}, used=("state",)).state


def _keys(context: typer.Context, begin: str) -> Iterable[str]:
    from etl.state.read.names import keys_from
    from etl.state.read.reader import Reader

    with Reader(_state(context)) as reader:
        return keys_from(reader, begin, MOST)


def _hosts(context: typer.Context, _begin: str) -> Iterable[str]:
    from etl.state.read.names import some_hosts
    from etl.state.read.reader import Reader

    with Reader(_state(context)) as reader:
        return some_hosts(reader)


def _classes(context: typer.Context, _begin: str) -> Iterable[str]:
    from etl.errors import item_error_classes
    from etl.state.read.names import classes_that_failed
    from etl.state.read.reader import Reader

    with Reader(_state(context)) as reader:
        return classes_that_failed(reader, ("internal", *(one.slug for one in item_error_classes())))


def _runs(context: typer.Context, _begin: str) -> Iterable[str]:
    from etl.state.read.reader import Reader
    from etl.state.read.runs import latest_runs

    with Reader(_state(context)) as reader:
        return [run.uid for run in latest_runs(reader, MOST)]


def _recipes(context: typer.Context, _begin: str) -> Iterable[str]:
    from etl.state.read.reader import Reader
    from etl.state.read.recipes import all_recipes

    with Reader(_state(context)) as reader:
        return [recipe.sha256[:12] for recipe in all_recipes(reader)]


def _formats(_context: typer.Context, _begin: str) -> Iterable[str]:
    from etl.export.formats import FORMATS

    return FORMATS


def _models(_context: typer.Context, _begin: str) -> Iterable[str]:
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")
    cached = Path(hub).expanduser().glob("models--*")
    return (DEMO_MODEL, DEFAULT_MODEL, *(one.name.removeprefix("models--").replace("--", "/") for one in cached))


_FINDS: dict[str, Callable[[typer.Context, str], Iterable[str]]] = {
    "key": _keys,
    "host": _hosts,
    "error_class": _classes,
    "since": _runs,
    "recipe": _recipes,
    "format": _formats,
    "model": _models,
}
