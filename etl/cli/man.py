"""The manual page, from what the commands say of themselves: ``python -m etl.cli.man > etl.1`` (``make man``)."""

from collections.abc import Iterable
from typing import Any

import typer

from etl.cli.app import EPILOG, app
from etl.cli.help import COMMANDS, by_group
from etl.version import __version__

_END = """\
.SH ENVIRONMENT
Every option that is a setting is a variable, too: \\fB\\-\\-per\\-host 2\\fR is \\fBETL_PER_HOST=2\\fR.
.SH FILES
.TP
\\fI~/.config/caption\\-etl/etl.toml\\fR
Settings of yours: \\fBper_host = 2\\fR.
.TP
\\fIetl.toml\\fR
In the working directory: settings that do no harm; all of them with \\fB\\-\\-config\\fR.
.TP
\\fIstate/\\fR
Database, image cache and logs, unless \\fB\\-\\-state\\fR says otherwise.
"""


def man_page() -> str:
    """Return the page, for man(1): every command with all of its options, by groups."""
    program = typer.main.get_command(app)
    context = typer.Context(program, info_name="etl", **program.context_settings)
    first, *rest = (program.help or "").split("\n\n")
    lines = [
        f'.TH ETL 1 "" "caption\\-etl {__version__}" "User Commands"',
        ".SH NAME",
        f"etl \\- {_escaped(first.rstrip(':').rstrip('.').lower())}",
        ".SH SYNOPSIS",
        ".B etl",
        "[options] command [options] [arguments]",
        ".SH DESCRIPTION",
        *(line for text in rest for line in (".PP", _escaped(text))),
        ".SH OPTIONS",
        "They stand before or behind any command.",
        *_options(context, program.get_params(context)),
    ]
    for heading, commands in COMMANDS.items():
        lines.append(f".SH {heading.upper()}")
        for name in commands:
            command = program.commands[name]  # type: ignore[attr-defined]  # it is a group
            inner = typer.Context(command, parent=context, info_name=name)
            lines += [f'.SS "{_escaped(" ".join(["etl", name, *command.collect_usage_pieces(inner)]))}"']
            lines += [_escaped(command.help or "")]
            params = command.get_params(inner)
            lines += _options(inner, [one for one in params if one.param_type_name == "argument"])
            for group, options in by_group(params).items():
                lines += [f".PP\n.I {group}"] if group else []
                lines += _options(inner, options)
    return "\n".join([*lines, ".SH EXIT STATUS", _escaped(EPILOG.split("Exit codes: ")[1]), _END])


def _options(context: typer.Context, params: Iterable[Any]) -> list[str]:
    records = (one.get_help_record(context) for one in params)
    return [f".TP\n\\fB{_escaped(flags.strip())}\\fR\n{_escaped(text)}" for flags, text in filter(None, records)]


def _escaped(text: str) -> str:
    """Return text that troff prints as it stands; a line of it may begin with a dot."""
    plain = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    print(man_page())
