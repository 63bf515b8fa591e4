"""Commands to a state or to the run at work on it: retry-failed, pause, resume, stop."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from etl.cli import render
from etl.cli.failure_table import By, check_filter, merged, nothing_line
from etl.cli.inspection import ClassOption, HostOption, KeyOption, StageOption
from etl.cli.options import Context, command
from etl.domain.statuses import QualityFlag, Stage
from etl.domain.views import FailureFilter
from etl.errors import EtlError, StateLockedError, UsageError, first_of
from etl.state import commands as control
from etl.state.read.failures import FailureGroup, failure_groups
from etl.state.read.reader import Reader
from etl.state.requeue import HIGHEST_PENALTY, LOWEST_PENALTY, PENALTY, UNLIKELY
from etl.units import count

if TYPE_CHECKING:
    from etl.state.store import Store

group = typer.Typer()

FlagOption = Annotated[
    QualityFlag | None,
    typer.Option(
        help="Not failed items, but the finished captions with this quality flag: make them again, decoded otherwise.",
    ),
]
PenaltyOption = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help=f"How strongly words that are there already are avoided, from {LOWEST_PENALTY} to {HIGHEST_PENALTY:g}; "
        f"what it exceeds 1 by is added to the penalty that a caption was made with. [default: {PENALTY}]",
        show_default=False,
    ),
]


@command(group, name="retry-failed", works=True)
def retry_failed(
    context: Context,
    stage: StageOption = None,
    error_class: ClassOption = None,
    host: HostOption = None,
    key: KeyOption = None,
    flag: FlagOption = None,
    repetition_penalty: PenaltyOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
) -> None:
    """Have failed items tried again, or flagged captions made again; their history is kept."""
    from etl.state.store import Store

    chosen = FailureFilter(
        stage=stage, error_class=error_class, host=host, key=key, flag=flag, repetition_penalty=repetition_penalty
    )
    _check(chosen)
    with Reader(context.settings.state) as reader:
        check_filter(reader, chosen)
        groups = failure_groups(reader, chosen) if flag is None else []
        everything = failure_groups(reader, FailureFilter()) if flag is None and not groups else []
    if stage is Stage.INGEST or (groups and all(group.stage == Stage.INGEST for group in groups)):
        raise UsageError("an invalid line is not tried again: mend it, then run `etl ingest` on its manifest")
    if flag is None and not groups and not context.json:
        render.note(context, nothing_line(chosen, everything))
        return
    if not context.json:
        for line in _first_lines(groups):
            render.note(context, line)
    if flag in UNLIKELY and not context.json:
        render.note(context, f"a repetition penalty is unlikely to help: {UNLIKELY[flag]}")
    try:
        with Store.open(context.settings, create=False) as store:
            retry = _retry_failed if flag is None else _caption_again
            retry(context, store, chosen, dry_run=dry_run)
    except StateLockedError:
        if dry_run:
            raise
        # The run that holds the state does it for us.
        _tell(context, control.send(context.settings.state, control.RETRY, chosen))


@command(group, name=control.PAUSE)
def pause(context: Context) -> None:
    """Let the run at work claim nothing more until it is resumed."""
    _tell(context, control.send(context.settings.state, control.PAUSE))


@command(group, name=control.RESUME)
def resume(context: Context) -> None:
    """Let a paused run go on."""
    _tell(context, control.send(context.settings.state, control.RESUME))


@command(group, name=control.STOP)
def stop(context: Context) -> None:
    """Let the run at work finish what is in flight, and end."""
    _tell(context, control.send(context.settings.state, control.STOP))


def _check(chosen: FailureFilter) -> None:
    """Raise `UsageError` for options that do not go together, and for a penalty that cannot be obeyed."""
    penalty = chosen.repetition_penalty
    if chosen.flag is None and penalty is not None:
        raise UsageError("--repetition-penalty needs --flag: it is for finished captions that are to be made again")
    if chosen.flag is not None and (chosen.error_class is not None or chosen.stage not in (None, Stage.CAPTION)):
        raise UsageError("--flag means finished captions, which have no --class and no other --stage; leave these out")
    if penalty is not None and not LOWEST_PENALTY <= penalty <= HIGHEST_PENALTY:
        raise UsageError(f"--repetition-penalty must be from {LOWEST_PENALTY} to {HIGHEST_PENALTY:g}, not {penalty:g}")


def _first_lines(groups: list[FailureGroup]) -> Iterator[str]:
    """Yield what must be done before another attempt can help, by class."""
    for group in merged(groups, By.CLASS):
        if group.stage != Stage.INGEST and (first := first_of(group.error_class)):
            yield f"{group.items:,} {group.error_class} will fail again unless this is done first: {first}"


def _retry_failed(context: Context, store: "Store", chosen: FailureFilter, *, dry_run: bool) -> None:
    counts = store.retry_failed(chosen, dry_run=dry_run)
    if context.json:
        render.answer(counts)
        return
    verb = "would be" if dry_run else "are"
    for name, n in counts.items():
        if n:
            render.note(context, f"{name}: {count(n, 'failed item')} {verb if n != 1 or dry_run else 'is'} ready again")
    if any(counts.values()) and not dry_run:
        render.note(context, "now run `etl run` (or `etl fetch` and `etl caption`) again")


def _caption_again(context: Context, store: "Store", chosen: FailureFilter, *, dry_run: bool) -> None:
    again = store.recaption(chosen, dry_run=dry_run)
    if context.json:
        render.answer(dataclasses.asdict(again))
        return
    if not again.caption and not again.exhausted:
        render.note(context, f"no caption that is meant is flagged {chosen.flag}; `etl status` counts the flags")
        return
    render.note(context, again.line(dry_run=dry_run))
    if again.caption and not dry_run:
        commands = "`etl fetch` and `etl caption`" if again.waiting else "`etl caption`"
        render.note(context, f"until then the captions that are there count; now run `etl run` (or {commands})")


def _tell(context: Context, reply: str | None) -> None:
    if reply is None:
        raise EtlError("the run has not answered in time; it may still obey: see `etl status`")
    if context.json:
        render.answer({"answer": reply})
    else:
        render.note(context, reply)
