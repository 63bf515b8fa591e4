"""How the program tells of itself: what a newcomer needs first, the rest by groups, and one line on a slip.

What is shown is what commands and settings say of themselves: an option without a ``rich_help_panel`` stands on its
command's first page of help; the panel of another one is the `Group` under which ``--help-all`` shows it.
"""

import enum
import importlib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import CompletionItem, TyperArgument, TyperCommand, TyperGroup, TyperOption  # type: ignore[attr-defined]
from typer.main import get_command_from_info

from etl.cli.completion import candidates
from etl.settings.values import MAX_SHOWN, Group
from etl.text import did_you_mean, nearest
from etl.units import written

COMMANDS = {
    "Work": {
        "run": ("work", "Do everything: ingest, fetch beside caption, export"),
        "ingest": ("work", "Load a manifest into the state"),
        "fetch": ("work", "Download and decode every source that is still due"),
        "caption": ("work", "Caption every fetched image that has no caption yet"),
        "export": ("export", "Write the manifest with its captions, in manifest order"),
        "pause": ("control", "Let the run at work claim nothing more until it is resumed"),
        "resume": ("control", "Let a paused run go on"),
        "stop": ("control", "Let the run at work finish what is in flight, and end"),
    },
    "Look": {
        "status": ("inspection", "Show where everything stands"),
        "dashboard": ("maintenance", "Watch a run live"),
        "failures": ("inspection", "List what failed and why"),
        "why": ("inspection", "Tell the whole story of one record"),
        "runs": ("inspection", "List the latest runs, newest first"),
        "report": ("maintenance", "Write a page of pictures, captions, failures and plots"),
    },
    "Mend": {
        "retry-failed": ("control", "Have failed items tried again, or flagged captions made again"),
        "verify": ("maintenance", "Check database and image cache against each other"),
        "gc": ("maintenance", "Remove from the image cache what nothing needs"),
    },
    "Move": {
        "split": ("parts", "Deal the work out to parts, each a state of its own"),
        "merge": ("parts", "Take over what parts have done"),
    },
    "Machine": {
        "doctor": ("maintenance", "Say what this machine offers and what may go wrong on it"),
        "demo": ("maintenance", "Caption drawn pictures end to end with a tiny model"),
    },
}
"""The commands by what one wants: the module of each, which is loaded when it is asked for, and its line."""

FEW = 16
"""A command with no more options than these shows them all at once."""

_METAVARS = {int: "N", float: "N", Path: "FILE"}


def _process_value(param: Any, ctx: Any, value: Any) -> Any:
    """Return a value as the command gets it, where it can be without pydantic, which Typer takes 0.1 s to load."""
    kind, parser = param.type_descriptor.annotation, param.type_descriptor.parameter_info.parser
    if isinstance(value, str) and (parser or kind in (str, Path)):
        value = (parser or kind)(value)
    elif isinstance(value, str) and isinstance(kind, type) and issubclass(kind, enum.Enum):
        value = _choice(value, kind)
    elif isinstance(value, str | list | tuple) or (value is None and param.required and not ctx.resilient_parsing):
        return super(type(param), param).process_value(ctx, value)
    return param.callback(ctx, param, value) if param.callback else value


def _choice(text: str, choices: type[enum.Enum]) -> enum.Enum:
    names = {str(one.value): one for one in choices}
    if text not in names:
        hint = did_you_mean(nearest(text, names, 0.7))
        raise typer.BadParameter(f"{text[:MAX_SHOWN]!r}: {hint}it must be one of {', '.join(names)}")
    return names[text]


def _shell_complete(param: Any, ctx: Any, incomplete: str) -> list[Any]:
    """Return what the shell may offer for a value."""
    found = candidates(param.name, ctx, incomplete)
    if found is None:
        return list(super(type(param), param).shell_complete(ctx, incomplete))
    return [CompletionItem(one) for one in found]


class Option(TyperOption):
    """An option, as its line in a help text shows it."""

    process_value = _process_value
    shell_complete = _shell_complete

    def get_help_record(self, ctx: Any) -> tuple[str, str] | None:  # noqa: ARG002 - the library's signature
        """Return flags and meaning, with the default as people write it."""
        if self.hidden:
            return None
        flags = ", ".join(sorted(self.opts, key=lambda flag: len(flag) > 2))
        if self.secondary_opts:
            pair = (self.opts[0], self.secondary_opts[0])
            flags = f"--[no-]{pair[0][2:]}" if pair[1] == f"--no-{pair[0][2:]}" else " / ".join(pair)
        if len(min(self.opts, key=len)) > 2:
            flags = f"    {flags}"
        if not (self.is_flag or self.count):
            flags += f" {value_name(self)}"
        return flags, _with_default(self)


class Argument(TyperArgument):
    """What stands on a command line without a flag."""

    process_value = _process_value
    shell_complete = _shell_complete

    def get_help_record(self, ctx: Any) -> tuple[str, str] | None:  # noqa: ARG002 - the library's signature
        """Return name and meaning."""
        return (value_name(self), _with_default(self))

    @property
    def display_name_raw(self) -> str:
        """Return its name in an error."""
        return value_name(self)

    def get_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the library's signature
        """Return what the line of usage says of it."""
        name = value_name(self)
        if self.nargs != 1 and "..." not in name:
            name += "..."
        return [name if self.required or name.startswith("[") else f"[{name}]"]


def value_name(param: Any) -> str:
    """Return what stands for a parameter's value: its own word, the choices, or a word for its kind."""
    if param.metavar:
        return str(param.metavar)
    kind = param.type_descriptor.annotation
    if isinstance(kind, types.GenericAlias):
        (kind,) = typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(str(one.value) for one in kind)
    return str(param.name).upper() if param.param_type_name == "argument" else _METAVARS.get(kind, "TEXT")


def _with_default(param: Any) -> str:
    text, default = (param.help or "").strip(), param.default
    if "[default" in text or not param.show_default or default in (None, False, "", 0, [], ()):
        return text
    shown = "on" if default is True else str(default) if isinstance(default, str | Path) else written(default)
    return f"{text} [default: {shown}]"


def _ours(params: list[Any]) -> list[Any]:
    # Typer makes its own, and lets nobody say what else.
    for param in params:
        if type(param) in (TyperOption, TyperArgument):
            param.__class__ = Option if isinstance(param, TyperOption) else Argument
    return params


class Command(TyperCommand):
    """A command whose help begins with what a newcomer needs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options and arguments."""
        return _ours(super().get_params(ctx))

    def get_help(self, ctx: Any) -> str:
        """Return the page."""
        return _let_go(super().get_help(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options: the first ones, or with ``--help-all`` all of them, by groups."""
        params = self.get_params(ctx)
        _write(formatter, "Arguments", (one for one in params if one.param_type_name == "argument"))
        grouped = by_group(params)
        everything = ctx.meta.get(EVERYTHING, False)
        _write(formatter, "Options", grouped.pop(None))
        if everything or not grouped:
            for group, options in grouped.items():
                _write(formatter, str(group), options)
            return
        more = sum(map(len, grouped.values()))
        formatter.write_paragraph()
        formatter.write_text(f"{more} more with --help-all: {', '.join(str(group).lower() for group in grouped)}.")


EVERYTHING = "etl.everything"
"""The entry of a context's ``meta`` that says that all options are to be shown."""


def show_everything(ctx: typer.Context, wanted: bool) -> None:
    """Show all options of a command, and end; the callback of ``--help-all``."""
    if wanted and not ctx.resilient_parsing:
        ctx.meta[EVERYTHING] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def by_group(params: Iterable[Any]) -> dict[str | None, list[Any]]:
    """Return the options that are shown at once (under ``None``) and the others, by group."""
    options = [one for one in params if one.param_type_name == "option" and not one.hidden]
    if len(options) <= FEW:
        return {None: [one for one in options if one.name != "help_all"]}
    panels: dict[str | None, list[Any]] = {None: [one for one in options if not one.rich_help_panel]}
    found = {group: [one for one in options if one.rich_help_panel == group] for group in Group}
    return panels | {str(group): members for group, members in found.items() if members}


def _write(formatter: Any, heading: str, params: Iterable[Any]) -> None:
    rows = [(flags, _held(text)) for one in params for flags, text in filter(None, [one.get_help_record(None)])]
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows, col_max=28)


_HELD = str.maketrans("- ", "\u2011\xa0")
"""What stands for a hyphen or a space at which no line may end."""


def _held(text: str) -> str:
    """Return a text whose names and ``{{ fields }}`` stay whole where lines are broken; `_let_go` undoes it."""
    return re.sub(r"-|\{\{.*?\}\}", lambda found: found[0].translate(_HELD), text)


def _let_go(text: str) -> str:
    return text.translate(str.maketrans("\u2011\xa0", "- "))


class _Commands(Mapping[str, Any]):
    """The commands by name, each made when it is asked for: most of the program's start would be the others'."""

    def __init__(self) -> None:
        self._modules = {name: module for lines in COMMANDS.values() for name, (module, _) in lines.items()}
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module = importlib.import_module(f"etl.cli.{self._modules[name]}")
            (info,) = (one for one in module.group.registered_commands if one.name == name)
            self._made[name] = get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class Program(TyperGroup):
    """The program: its commands under headings, and the options that stand before or behind any of them."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts | {"epilog": _held(facts["epilog"])})
        self.commands: Any = _Commands()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options."""
        params = _ours(super().get_params(ctx))
        for param in params:
            param.hidden = param.name in ("install_completion", "show_completion")
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the command's own arguments; without any, show what there is."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """Return the page."""
        return _let_go(super().get_help(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands, then options."""
        width = max(map(len, self.commands))
        for heading, lines in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<{width}}", line) for name, (_, line) in lines.items()])
        _write(formatter, "Options, before or behind the command", self.get_params(ctx))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the options or commands that begin so, with their lines."""
        if incomplete.startswith("-"):
            return TyperCommand.shell_complete(self, ctx, incomplete)
        lines = {name: line for group in COMMANDS.values() for name, (_, line) in group.items()}
        return [CompletionItem(name, help=line) for name, line in lines.items() if name.startswith(incomplete)]
