"""What is said of a command line that is none."""

import re
from pathlib import Path
from typing import Any

import typer

from etl.cli.help import value_name
from etl.domain.hints import name_state
from etl.settings.values import MAX_SHOWN
from etl.text import clean, did_you_mean, nearest

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""A command line that is none; Typer exports only what is derived from it."""

_TOO_MUCH = re.compile(r"Got unexpected extra argument\(s\) \((.*)\)", re.DOTALL)


def _too_much(context: Any, extra: str) -> str:
    """Return what is wrong about arguments that a command does not take, and what to type."""
    shown, command = clean(extra, MAX_SHOWN), context.command_path
    if context.command.name in ("fetch", "caption"):
        return f"{command} takes no SOURCE; type `etl ingest {shown}` before it, or `etl run {shown}` for everything"
    names = " ".join(value_name(one) for one in context.command.params if one.param_type_name == "argument")
    return f"{command} takes {names or 'options'} alone, and {shown!r} is more; a state is named by --state DIR"


def usage_line(error: Any) -> str:
    """Return one line on a command line that is none: what is wrong, what was probably meant, where more stands."""
    message, context = str(error.format_message()).rstrip("."), error.ctx
    if context is None:
        return message
    # It ended before any setting was resolved; what was read of it by then is what there is.
    if given := [one.params["state"] for one in (context, context.parent) if one and one.params.get("state")]:
        name_state(Path(given[0]))
    if extra := _TOO_MUCH.fullmatch(message):
        message = _too_much(context, extra[1])
    if hasattr(error, "possibilities"):
        names = (name for one in context.command.get_params(context) for name in (*one.opts, *one.secondary_opts))
        flags = [name for name in names if name.startswith("-")]
        hint = did_you_mean(nearest(error.option_name, flags, 0.7)).strip()
        if not hint and context.parent is None:
            hint = "what belongs to a command stands behind its name"
        message = f"{error.message}; {hint}" if hint else error.message
    more = "--help-all" if hasattr(error, "possibilities") and context.parent else "--help"
    return f"{message} (see `{context.command_path} {more}`)"
