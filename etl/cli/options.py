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

from etl.errors import Interrupted
from etl.setting_sources import load
from etl.setting_values import Setting, known
from etl.settings import Settings
from etl.text import clean, clean_lines

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
    """

    settings: Settings
    json: bool
    quiet: bool
    config: Path | None = None


_GLOBALS: dict[str, Any] = {
    "config": Annotated[
        Path | None, typer.Option(help="Settings file (default: etl.toml, if there is one).", show_default=False)
    ],
    "json_output": Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")],
    "verbose": Annotated[int, typer.Option("--verbose", "-v", count=True, help="More log lines; twice: debug.")],
}


def command(
    app: typer.Typer, *, name: str | None = None, works: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that takes the global options and one option for each setting that it goes by.

    A command that ``works`` says first which files its settings are from.

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
        def wrapper(**values: Any) -> Any:
            given = {parameter.name: values.pop(parameter.name) for parameter in own}
            try:
                return function(_context(values, [one.name for one in settings], works=works), **given)
            except BrokenPipeError as error:
                # Whoever read our output has gone (`| head`); what is still buffered has nowhere to go.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(128 + signal.SIGPIPE) from error

        parameters = own + [_parameter(one, called) for one in settings]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=_default(option), annotation=annotation)
            for option, annotation in _GLOBALS.items()
        ]
        # Typer reads both; what functools.wraps copied would hide the options from it.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapper.__wrapped__
        app.command(name=called)(wrapper)
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


def _default(option: str) -> Any:
    return {"json_output": False, "quiet": False, "verbose": 0}.get(option)


def _context(values: dict[str, Any], used: list[str], *, works: bool) -> Context:
    _configure_logging(values.pop("verbose"), values["quiet"])
    json_output, quiet = values.pop("json_output"), values.pop("quiet")
    config = values.pop("config")
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    flags = {name: value for name, value in flags.items() if value != ()}
    loaded = load(flags, file=config, used=used)
    for line in loaded.lines if works and not quiet else ():
        typer.echo(clean(line, MAX_LINE), err=True)
    return Context(loaded.settings, json_output, quiet, config)


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
        return clean(super().formatMessage(record))

    def formatException(self, info: Any) -> str:
        return clean_lines(super().formatException(info))


def _parameter(setting: Setting, command: str) -> inspect.Parameter:
    """Return the option for a setting: ``None`` stands for "not given", so that file and environment count."""
    default = setting.default
    shown = ", ".join(default) if isinstance(default, tuple) else f"{default} {setting.unit}".rstrip()
    text = setting.help.replace("`", "") + (f" [default: {shown}]" if shown else "")
    flags = [f"{setting.flag}/--no-{setting.flag[2:]}"] if setting.kind is bool else [setting.flag]
    flags += [setting.also[command]] if command in setting.also else []
    kind = list[str] | None if isinstance(default, tuple) else setting.kind | None
    option = typer.Option(*flags, help=text, show_default=False)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )
