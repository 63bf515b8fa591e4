"""The command that writes what there is: export."""

from typing import Annotated

import typer

from etl.cli import render
from etl.cli.format_options import FormatOption, with_format_options
from etl.cli.options import Context, command, either, ends_when_interrupted, number
from etl.cli.work import ProvenanceOption

group = typer.Typer()

RecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar="HASH",
        help="Beginning of the recipe's hash (see `etl status`). [default: the latest]",
    ),
]
OnlyCaptionedOption = Annotated[bool, typer.Option("--only-captioned", help="Leave out records without a caption.")]


@command(group, works=True)
@with_format_options
def export(
    context: Context,
    output: Annotated[
        str | None, typer.Argument(help="File to write (.gz and .zst compress) or directory, or - for stdout.")
    ] = None,
    output_option: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The same as OUTPUT.")
    ] = None,
    recipe: RecipeOption = None,
    provenance: ProvenanceOption = False,
    only_captioned: OnlyCaptionedOption = False,
    since: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="Only what was captioned or failed since this run began (uid or number).",
        ),
    ] = "",
    format: FormatOption = "",  # noqa: A002 - the option's name
    shard_size: Annotated[
        int, number("--shard-size", least=0, help="Records in each file of a directory. [default: one file]")
    ] = 0,
    **format_options: bool | str,
) -> None:
    """Write the manifest with its captions, in manifest order."""
    from etl.export.stage import ExportOptions
    from etl.run.pipeline import export_manifest

    options = ExportOptions(
        recipe=recipe,
        provenance=provenance,
        only_captioned=only_captioned,
        since=since,
        format=format,
        shard_size=shard_size,
        format_options=format_options,
    )
    with ends_when_interrupted():
        summary = export_manifest(context.settings, either(output, output_option, "captions.jsonl"), options)
    render.exported(context, summary)
