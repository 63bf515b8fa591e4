"""Options shared by commands: the global ones, and one option for each field of `Settings`."""

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.errors import Interrupted
from etl.settings import Settings, load
from etl.text import clean, clean_lines

FETCH_SETTINGS = (
    "concurrency", "per_host", "host_rate", "host_patience_s", "respect_robots", "connect_timeout_s", "read_timeout_s",
    "min_rate", "max_bytes", "max_pixels", "max_attempts", "backoff_s", "backoff_cap_s", "contact", "allow_host",
    "allow_path", "rewrite_url", "mirror_template", "prefer_mirror", "longest_edge", "keep_originals", "fetch_backend",
    "ray_address", "ray_timeout_s", "endpoint_patience_s", "insecure", "decoders", "decoder_memory", "min_free",
    "max_cache_size", "metrics_port", "metrics_address", "webhook", "deadline", "interval_s",
)  # fmt: skip
CAPTION_SETTINGS = (
    "model", "revision", "dtype", "device", "backend", "endpoint", "endpoint_model", "endpoint_concurrency",
    "endpoint_timeout_s", "endpoint_patience_s", "ray_address", "ray_cpus", "ray_timeout_s", "insecure", "engine",
    "slots", "gpu_memory_fraction", "gpus", "feeders", "batch_size", "max_new_tokens", "pad_to_square", "max_aspect",
    "max_attempts", "metrics_port", "metrics_address", "webhook", "deadline", "interval_s", "gpu_price",
)  # fmt: skip

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
    "state": Annotated[
        Path | None, typer.Option(help="State directory (default: state, or ETL_STATE).", show_default=False)
    ],
    "config": Annotated[
        Path | None, typer.Option(help="Settings file (default: etl.toml, if there is one).", show_default=False)
    ],
    "json_output": Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")],
    "verbose": Annotated[int, typer.Option("--verbose", "-v", count=True, help="More log lines; twice: debug.")],
}


def command(
    app: typer.Typer,
    *fields: str,
    name: str | None = None,
    also: Mapping[str, str] | None = None,
    works: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """Register a command that takes the global options and one option for each named field of `Settings`.

    ``also`` gives second names to the options of fields.  A command that ``works`` says first which files its settings
    are from.

    The function's first parameter receives the `Context`; its others stay its own options.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]

        @functools.wraps(function)
        def wrapper(**values: Any) -> Any:
            given = {parameter.name: values.pop(parameter.name) for parameter in own}
            try:
                return function(_context(values, fields, works=works), **given)
            except BrokenPipeError as error:
                # Whoever read our output has gone (`| head`); what is still buffered has nowhere to go.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(128 + signal.SIGPIPE) from error

        parameters = own + [_parameter(field, (also or {}).get(field)) for field in fields]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=_default(option), annotation=annotation)
            for option, annotation in _GLOBALS.items()
        ]
        # Typer reads both; what functools.wraps copied would hide the options from it.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapper.__wrapped__
        app.command(name=name)(wrapper)
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


def _context(values: dict[str, Any], fields: tuple[str, ...], *, works: bool) -> Context:
    _configure_logging(values.pop("verbose"), values["quiet"])
    json_output, quiet = values.pop("json_output"), values.pop("quiet")
    config = values.pop("config")
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    flags = {name: value for name, value in flags.items() if value != ()}
    assert set(flags) <= {"state", *fields}
    loaded = load(flags, file=config, used=("state", *fields))
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


def _parameter(field: str, second: str | None = None) -> inspect.Parameter:
    """Return the option for one field: ``None`` stands for "not given", so that file and environment count."""
    default = {f.name: f.default for f in dataclasses.fields(Settings)}[field]
    kind = typing.get_type_hints(Settings)[field]
    flag = "--" + field.removesuffix("_s").replace("_", "-")
    shown = ", ".join(default) if isinstance(default, tuple) else str(default)
    text = f"{_help()[field]} [default: {shown}]" if shown else _help()[field]
    if kind is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=text, show_default=False)
    else:
        option = typer.Option(flag, *((second,) if second else ()), help=text, show_default=False)
    wanted = list[str] | None if isinstance(default, tuple) else kind | None
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[wanted, option])


@functools.cache
def _help() -> dict[str, str]:
    """Return the text for each field from the docstring of `Settings`, so that it is written once."""
    documented = inspect.cleandoc(Settings.__doc__ or "").replace("``", "")
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", documented, re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    return {name: text[0].upper() + text[1:] for name, text in texts.items()}
