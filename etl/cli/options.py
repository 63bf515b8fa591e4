"""Options shared by commands: the global ones, and one option for each setting."""

import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.cli.help import Command, show_everything
from etl.domain.hints import hinted, name_state
from etl.errors import Interrupted, UsageError
from etl.settings import Settings
from etl.settings.sources import load
from etl.settings.values import MAX_SHOWN, Group, Setting, known
from etl.text import clean, clean_lines
from etl.units import metavar, parse, written

MAX_LINE = 200
"""Characters of the line that says what a file has set."""


@dataclass(frozen=True)
class Context:
    """What every command knows.

    Attributes:
        settings: resolved from files, environment and flags.
        json: print machine-readable output on stdout, and nothing else there.
        quiet: print no progress and no notes.
        config: the settings file that was named, if one was.
        flags: the settings that the command line gives.
    """

    settings: Settings
    json: bool
    quiet: bool
    config: Path | None = None
    flags: frozenset[str] = frozenset()


ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Settings file. [default: etl.toml, if there is one]", rich_help_panel=Group.GENERAL),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Machine-readable output on stdout.", rich_help_panel=Group.OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=Group.OBSERVATION)
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="More log lines; twice: debug.", rich_help_panel=Group.OBSERVATION
    ),
]
HelpAllOption = Annotated[
    bool, typer.Option("--help-all", callback=show_everything, is_eager=True, help="Show all options, by groups.")
]

_GLOBALS: dict[str, tuple[Any, Any]] = {
    "config": (ConfigOption, None),
    "json_output": (JsonOption, False),
    "quiet": (QuietOption, False),
    "verbose": (VerboseOption, 0),
    "help_all": (HelpAllOption, False),
}
"""The options of every command beside the state, with their defaults."""


def command(
    app: typer.Typer, *, name: str | None = None, works: bool = False, stateless: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that takes the global options and one option for each setting that it goes by.

    A command that ``works`` says first which files its settings are from; help on a ``stateless`` one, which refuses a
    state that is named, keeps silent of that option.

    The function's first parameter receives the `Context`; its others stay its own options.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        called = name or function.__name__
        settings = [one for one in known(Settings).values() if not one.commands or called in one.commands]
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]

        @functools.wraps(function)
        def wrapper(_context: typer.Context, **values: Any) -> Any:
            given = {parameter.name: values.pop(parameter.name) for parameter in own}
            values |= {name: value for name, value in _before(_context).items() if not values[name]}
            try:
                return function(_resolved(values, [one.name for one in settings], works=works), **given)
            except BrokenPipeError as error:
                # Whoever read our output has gone (`| head`); what is still buffered has nowhere to go.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(128 + signal.SIGPIPE) from error

        # The state last, as every command has it.
        settings.sort(key=lambda one: one.name == "state")
        parameters = own + [_parameter(one, called, hidden=stateless and one.name == "state") for one in settings]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (annotation, default) in _GLOBALS.items()
        ]
        context = inspect.Parameter("_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters.append(context)
        # Typer reads both; what functools.wraps copied would hide the options from it.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapper.__wrapped__
        app.command(name=called, cls=Command)(wrapper)
        return function

    return register


@contextlib.contextmanager
def ends_when_interrupted() -> Iterator[None]:
    """End with the exit code of the signal that cut the block off."""
    try:
        yield
    except Interrupted as error:
        typer.echo(f"stopped by {signal.Signals(error.number).name}; run the same command again", err=True)
        raise typer.Exit(128 + error.number) from error


def _before(context: typer.Context) -> dict[str, Any]:
    """Return the global options that stand before the command."""
    return {} if context.parent is None else {name: context.parent.params.get(name) for name in (*_GLOBALS, "state")}


def _resolved(values: dict[str, Any], used: list[str], *, works: bool) -> Context:
    values.pop("help_all")
    _configure_logging(values.pop("verbose"), values["quiet"])
    json_output, quiet = values.pop("json_output"), values.pop("quiet")
    config = values.pop("config")
    about = known(Settings)
    given = {name: value for name, value in values.items() if value not in (None, [], ())}
    flags = {name: about[name].convert(value, about[name].flag) for name, value in given.items()}
    loaded = load(flags, file=config, used=used)
    name_state(loaded.settings.state)
    for line in loaded.lines if works and not quiet else ():
        typer.echo(clean(line, MAX_LINE), err=True)
    return Context(loaded.settings, json_output, quiet, config, frozenset(flags))


def _configure_logging(verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    if logging.getLogger().handlers:
        return
    logging.basicConfig(level=level)
    # The handler's own level too: runs log more than that, into the log of the state.
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Clean("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        handler.setLevel(level)


class _Clean(logging.Formatter):
    """Makes each message one harmless line, and each line of a traceback behind it: both hold what strangers wrote."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean(hinted(super().formatMessage(record)))

    def formatException(self, info: Any) -> str:
        return clean_lines(super().formatException(info))


def number(
    *flags: str,
    help: str,  # noqa: A002 - as everywhere in this trade
    least: int,
    most: int | None = None,
    group: Group | None = None,
    unit: str = "",
) -> Any:
    """Return an option, or an argument where there are no flags, with a number that may be written as settings are."""

    def parsed(text: str) -> int:
        try:
            value = parse(text, unit)
        except ValueError as error:
            raise typer.BadParameter(f"{text[:MAX_SHOWN]!r} is not understood: {error}") from error
        if not least <= value <= (most or value):
            span = f"at least {written(least)}" if most is None else f"between {written(least)} and {written(most)}"
            raise typer.BadParameter(f"{text[:MAX_SHOWN]!r}: must be {span}")
        return int(value)

    if not flags:
        return typer.Argument(parser=parsed, metavar=metavar(unit), help=help)
    return typer.Option(*flags, parser=parsed, metavar=metavar(unit), help=help, rich_help_panel=group)


def either(place: str | None, option: str | None, example: str) -> str:
    """Return what a command writes to, as an argument or behind ``--output``.  Raises `UsageError` unless once."""
    if (place is None) == (option is None):
        raise UsageError(f"say once where to write to: `{example}`, or `--output {example}`")
    return place or option or ""


def _parameter(setting: Setting, command: str, *, hidden: bool) -> inspect.Parameter:
    """Return the option for a setting: ``None`` stands for "not given", so that file and environment count."""
    option = _option(setting, command, hidden=hidden)
    # Texts but for switches: what a text means is the setting's to say.
    kind: Any = bool if setting.kind is bool else list[str] if isinstance(setting.default, tuple) else str
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _option(setting: Setting, command: str, *, hidden: bool = False) -> Any:
    shown, switch = setting.default_text, setting.kind is bool
    flags = [f"{setting.flag}/--no-{setting.flag[2:]}"] if switch else [setting.flag]
    flags += [flag for flag in (setting.short, setting.also.get(command)) if flag]
    return typer.Option(
        *flags,
        # What 0 means is said where it is one's default.
        help=setting.help.replace("`", "") + (f" [default: {shown}]" if shown not in ("", "0") else ""),
        show_default=False,
        hidden=hidden,
        metavar=None if switch else setting.metavar,
        rich_help_panel=None if command in setting.first else setting.group,
    )


StateOption = Annotated[str | None, _option(known(Settings)["state"], "run")]

IdFieldOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=Group.MANIFEST,
        help="Field with the record's key. [default: metadata_filename, id or key]",
    ),
]

ImageFieldOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=Group.MANIFEST,
        help="Field with the image. [default: external_url, url, image_url, image or path]",
    ),
]

EncodingOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=Group.MANIFEST,
        help="Encoding of CSV, lists and JSON. [default: found out]",
    ),
]

SidecarsOption = Annotated[
    str | None,
    typer.Option(
        metavar="KINDS",
        rich_help_panel=Group.MANIFEST,
        help="Take captions from files beside the pictures (or fields): txt, caption, json, or several with commas.",
    ),
]
