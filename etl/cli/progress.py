"""Live progress on stderr: bars on a terminal, one plain line per interval elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from etl.cli.hosts import errors_text, host_line, is_news
from etl.cli.options import Context
from etl.cli.render import note
from etl.clock import stops_at
from etl.domain.statuses import QueueStatus, RecordState, Stage
from etl.domain.views import Progress
from etl.text import clean
from etl.units import duration, size


@contextmanager
def ingest_progress(context: Context) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many records were read."""
    last = time.monotonic()

    def show(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= min(context.settings.interval, 5.0):
            last = time.monotonic()
            note(context, f"ingest: {rows:,} records")

    yield show


@contextmanager
def progress(context: Context) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows progress: bars on a terminal, one plain line per interval elsewhere."""
    if context.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _plain_lines(context)


def _plain_lines(context: Context) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= context.settings.interval:
            last = time.monotonic()
            note(context, progress_line(now))

    return show


def progress_line(now: Progress) -> str:
    """Return the counts and rates as one plain line."""
    parts = []
    for stage, counts, rate in (
        (Stage.FETCH, now.sources, now.fetched_per_s),
        (Stage.CAPTION, now.captions, now.captioned_per_s),
    ):
        done, total = counts.get(QueueStatus.DONE, 0), wanted(counts)
        parts.append(
            f"{stage} {done:,}/{total:,} ({counts.get(QueueStatus.DEAD, 0):,} failed, "
            f"{counts.get(QueueStatus.RETRY, 0):,} will retry) {rate:.1f}/s"
        )
    if now.bytes_per_s:
        parts[0] += f" {size(now.bytes_per_s)}/s"
    if now.fetch_seconds:
        parts[0] += f", {duration(now.fetch_seconds)} left"
    if now.fetch_errors:
        parts.append(f"errors: {errors_text(now)}")
    parts += [f"host {host_line(host)}" for host in now.hosts if is_news(host)]
    if now.run is not None and now.run.stops_at is not None:
        parts.append(stops_at(now.run.stops_at, now.at))
    return "; ".join(parts)


def wanted(counts: dict[str, int]) -> int:
    """Return how many items of a queue some record needs."""
    return sum(n for status, n in counts.items() if status != QueueStatus.CANCELLED)


_STAGES = (Stage.FETCH, Stage.CAPTION)

HOST_WIDTH = 24
"""Characters of a host's name beside its bar; two bars and their numbers fit into 80 columns."""


@contextmanager
def _log_above_bars() -> Iterator[None]:
    """Let log lines go through what the bars have put in the place of stderr, instead of across the bars."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    before = [(handler, handler.setStream(sys.stderr)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<8}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=False) as bars, _log_above_bars():
        tasks: dict[str, Any] = {stage: bars.add_task(stage, total=None, rest="") for stage in _STAGES}

        told = False

        def show(now: Progress) -> None:
            nonlocal told
            if not told and now.run is not None and now.run.stops_at is not None:
                bars.console.print(stops_at(now.run.stops_at, now.at), highlight=False)
            told = True
            selected = now.records.get(RecordState.ACTIVE, 0)
            for stage, counts, rate in (
                (Stage.FETCH, now.sources, now.fetched_per_s),
                (Stage.CAPTION, now.captions, now.captioned_per_s),
            ):
                failed, retrying = counts.get(QueueStatus.DEAD, 0), counts.get(QueueStatus.RETRY, 0)
                rest = f"{rate:5.1f}/s  {failed:,} failed  {retrying:,} will retry"
                total = wanted(counts) or (selected if stage is Stage.CAPTION else None)
                bars.update(tasks[stage], total=total, completed=counts.get(QueueStatus.DONE, 0), rest=rest)
            for host in now.hosts:
                name = host.info.host
                if name not in tasks and is_news(host):
                    tasks[name] = bars.add_task(clean(name)[:HOST_WIDTH], total=None, rest="")
                if name in tasks:
                    rest = host_line(host).removeprefix(clean(name)).strip()
                    done = host.info.done
                    bars.update(tasks[name], total=done + host.pending, completed=done, rest=rest)

        yield show
