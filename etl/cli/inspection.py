"""Commands that only look: status, failures, why, runs.  Their answer goes to stdout."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from etl.cli import failure_table, render
from etl.cli.failure_table import By, columns
from etl.cli.options import Context, command, number
from etl.cli.record_story import redacted, story_lines
from etl.cli.run_table import run_lines
from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.errors import UsageError
from etl.state.parts.split import latest_split
from etl.state.read.failures import failed_items, failure_groups
from etl.state.read.match import LISTED, keys_meant
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.runs import latest_runs, work_of_runs
from etl.state.read.story import record_story
from etl.text import clean

group = typer.Typer()

StageOption = Annotated[Stage | None, typer.Option(help="Only this stage.")]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", metavar="CLASS", help="Only this error class."),
]
HostOption = Annotated[str | None, typer.Option(metavar="HOST", help="Only this host.")]
KeyOption = Annotated[str | None, typer.Option(metavar="KEY", help="Only the record with this key.")]


@command(group)
def status(context: Context) -> None:
    """Show where everything stands."""
    with Reader(context.settings.state) as reader:
        progress, recipes = ProgressReader(reader).progress(), all_recipes(reader)
        parts = render.split_json(latest_split(reader))
    if context.json:
        render.answer(render.progress_json(progress) | {"split": parts})
        return
    for line in render.status_lines(progress):
        render.say(line)
    if parts:
        render.say(render.split_line(parts))
    for recipe in recipes:
        mark = "current" if recipe.current else "earlier"
        render.say(f"recipe    {recipe.sha256[:12]} {clean(recipe.model)}@{clean(recipe.revision)} ({mark})")
    if not parts:
        render.say(f"next      {render.next_step(progress)}")


@command(group)
def failures(
    context: Context,
    stage: StageOption = None,
    error_class: ClassOption = None,
    host: HostOption = None,
    key: KeyOption = None,
    by: Annotated[
        By | None,
        typer.Option(help="What a row is. [default: a class on a host; with --key or --json an item]"),
    ] = None,
    limit: Annotated[int | None, number("--limit", "-n", least=1, help="At most so many rows.")] = None,
) -> None:
    """Tell what failed and why, counted by class and host; with --json one failed item per line."""
    chosen = FailureFilter(stage=stage, error_class=error_class, host=host, key=key)
    items = by is By.ITEM or (by is None and (context.json or key is not None))
    with Reader(context.settings.state) as reader:
        failure_table.check_filter(reader, chosen)
        groups = failure_groups(reader, chosen)
        found = failed_items(reader, chosen, limit) if items and groups else iter(())
        rows = failure_table.merged(groups, by)
        if context.json:
            for answer in map(failure_table.failure_json, found) if items else map(asdict, rows[:limit]):
                render.answer(answer)
        if not groups:
            line = failure_table.nothing_line(chosen, failure_groups(reader, FailureFilter()))
            render.note(context, line) if context.json else render.say(line)
        elif not context.json:
            render.say(failure_table.total_line(groups))
            width = columns() if sys.stdout.isatty() else None
            table = failure_table.item_lines(found, width) if items else failure_table.group_lines(rows, limit)
            for line in table:
                render.say(line)
            if items and limit is not None and (more := sum(group.items for group in groups) - limit) > 0:
                render.say(f"{more:,} more: raise --limit")
            for line in failure_table.next_lines(groups, items=items):
                render.say(line)


@command(group)
def why(
    context: Context,
    key: Annotated[str, typer.Argument(help="The record's key, a part of it, or its picture's URL.")],
    raw: Annotated[bool, typer.Option("--raw", help="With --json: URLs whole, with what is secret in them.")] = False,
) -> None:
    """Tell the whole story of one record."""
    with Reader(context.settings.state) as reader:
        whole = _meant(reader, key)
        story = record_story(reader, whole)
    if story is None:
        raise UsageError(f"the record {clean(whole, 80)!r} is gone, as another ingest has just left it out")
    if context.json:
        render.answer(story if raw else redacted(story))
        return
    for line in story_lines(story):
        render.say(line)


@command(group)
def runs(
    context: Context, limit: Annotated[int, number("--limit", "-n", least=1, help="At most so many.")] = 20
) -> None:
    """List the latest runs, newest first."""
    with Reader(context.settings.state) as reader:
        found = latest_runs(reader, limit)
        work = work_of_runs(reader, [run.id for run in found])
    if context.json:
        for run in found:
            render.answer(render.run_json(run) | asdict(work[run.id]))
        return
    for line in run_lines(found, work, columns()):
        render.say(line)


def _meant(reader: Reader, text: str) -> str:
    """Return the key of the one record that is meant.  Raises `UsageError` where none is, or several."""
    keys = keys_meant(reader, text)
    if not keys:
        raise UsageError(failure_table.no_record(reader, text))
    if len(keys) > 1:
        for key in keys[:LISTED]:
            typer.echo(clean(key, columns()), err=True)
        many = f"more than {LISTED}" if len(keys) > LISTED else len(keys)
        raise UsageError(f"{many} records are like {clean(text, 80)!r}, see above; give the whole key of one")
    return keys[0]
