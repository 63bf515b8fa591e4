"""The options of `etl export` that belong to one of its formats, as the formats tell of them."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from etl.export.formats import FORMATS, options_of_formats

FORMAT_HELP = ", ".join([*FORMATS][:-1]) + f" or {[*FORMATS][-1]}. [default: by the name]"
"""The help of ``--format``."""


def with_format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command, instead of its ``**`` parameter, an option for each one of a format."""
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, field in options_of_formats().items():
        flag = name.replace("_", "-")
        option = typer.Option(f"--{flag}/--no-{flag}", help=field.metadata["help"])
        annotation = Annotated[bool, option]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
        )
        function.__annotations__[name] = annotation
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
