"""Commands that divide the work of a state among machines: split, merge."""

from pathlib import Path
from typing import Annotated

import typer

from etl.cli import render
from etl.cli.options import Context, command, number
from etl.text import clean

group = typer.Typer()


@command(group, works=True)
def split(
    context: Context,
    parts: Annotated[int, number(least=2, most=10_000, help="How many parts.")],
    directory: Annotated[Path, typer.Argument(help="Where to make them: DIRECTORY/part-1, part-2, ...")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when parts of an earlier split have not come back.")
    ] = False,
) -> None:
    """Deal the work out to parts, each a state directory of its own; again to finish what was cut short."""
    from etl.maintenance.split import split as divide
    from etl.state.store import Store

    with Store.open(context.settings, create=False) as store:
        summary = divide(store, parts, directory, force=force)
    if context.json:
        render.answer(render.summary_json(summary))
        return
    for line in summary.lines():
        render.note(context, clean(line))


@command(group, works=True)
def merge(
    context: Context,
    part: Annotated[list[Path], typer.Argument(help="State directories of parts.", metavar="PART...")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the content of every picture with its hash, too.")
    ] = False,
    final: Annotated[
        bool, typer.Option("--final", help="What these parts have not done is done here from now on.")
    ] = False,
) -> None:
    """Take over what parts have done; into the state that was split or into a new one, again when they go on."""
    from etl.maintenance.merge import MergeSummary
    from etl.maintenance.merge import merge as unite
    from etl.state.store import Store

    def tell(summary: MergeSummary) -> None:
        if not context.json:
            for line in summary.lines():
                render.note(context, clean(line))

    with Store.open(context.settings) as store:
        summaries = unite(store, part, check=check, final=final, on_part=tell)
    if context.json:
        render.answer({"parts": [render.summary_json(summary) for summary in summaries]})
