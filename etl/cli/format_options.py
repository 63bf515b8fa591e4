"""The options of `etl export` that belong to one of its formats, as the formats tell of them."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from etl.export.formats import FORMATS, options_of_formats
from etl.settings.values import Group

FORMAT_HELP = ", ".join([*FORMATS][:-1]) + f" or {[*FORMATS][-1]}. [default: by the name]"
"""The help of ``--format``."""

FormatOption = Annotated[str, typer.Option("--format", metavar="NAME", help=FORMAT_HELP)]


def with_format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command, instead of its ``**`` parameter, an option for each one of a format."""
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, field in options_of_formats().items():
        flag = name.replace("_", "-")
        is_switch = isinstance(field.default, bool)
        spelled = f"--{flag}/--no-{flag}" if is_switch else f"--{flag}"
        option = typer.Option(
            spelled,
            metavar=None if is_switch else "TEXT",
            rich_help_panel=Group.OUTPUT,
            help=field.metadata["help"],
        )
        annotation: Any = Annotated[type(field.default), option]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
        )
        function.__annotations__[name] = annotation
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
