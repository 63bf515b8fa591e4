"""Commands that only look: status, failures, why, runs.  Their answer goes to stdout."""

from typing import Annotated

import typer

from etl.cli import render
from etl.cli.options import Context, command, number
from etl.cli.record_story import redacted, story_lines
from etl.clock import iso_utc
from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.errors import UsageError
from etl.redaction import redact_url
from etl.state.parts.split import latest_split
from etl.state.read.failures import Failure, failed_items
from etl.state.read.progress import ProgressReader
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.runs import latest_runs
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


@command(group)
def failures(
    context: Context,
    stage: StageOption = None,
    error_class: ClassOption = None,
    host: HostOption = None,
    key: KeyOption = None,
    limit: Annotated[int | None, number("--limit", "-n", least=1, help="At most so many.")] = None,
) -> None:
    """List what failed and why; with --json one object per line."""
    with Reader(context.settings.state) as reader:
        for failure in failed_items(
            reader, FailureFilter(stage=stage, error_class=error_class, host=host, key=key), limit
        ):
            if context.json:
                render.answer(_failure_json(failure))
            else:
                render.say(_failure_line(failure))


@command(group)
def why(
    context: Context,
    key: Annotated[str, typer.Argument(help="The record's key.")],
    raw: Annotated[bool, typer.Option("--raw", help="With --json: URLs whole, with what is secret in them.")] = False,
) -> None:
    """Tell the whole story of one record."""
    with Reader(context.settings.state) as reader:
        story = record_story(reader, key)
    if story is None:
        raise UsageError(f"there is no record with the key {key!r}")
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
    for run in found:
        if context.json:
            render.answer(render.run_json(run))
        else:
            render.say(
                f"{run.uid}  {iso_utc(run.started_at)}  {'+'.join(run.stages):<14} {run.state:<12} "
                f"{clean(run.host)} {run.pid}  {clean(run.message or '')}".rstrip()
            )


def _failure_json(failure: Failure) -> dict[str, object]:
    return {
        "stage": failure.stage,
        "error_class": failure.error_class,
        "key": failure.key,
        "url": redact_url(failure.url),
        "attempts": failure.attempts,
        "message": failure.message,
        "records": failure.records,
    }


def _failure_line(failure: Failure) -> str:
    more = f" (+{failure.records - 1} records)" if failure.records > 1 else ""
    return (
        f"{failure.stage:<8} {failure.error_class:<16} {clean(failure.key)}{more}  "
        f"{clean(redact_url(failure.url))}  {clean(failure.message)}"
    )
