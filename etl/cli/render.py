"""How answers look: progress and summaries on stderr for people, one JSON object on stdout for programs."""

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from etl.cli.hosts import errors_text, host_json, host_line, is_news
from etl.cli.options import Context
from etl.clock import ago, iso_utc, now_ms, stops_at
from etl.domain.hints import hinted
from etl.domain.statuses import LIVE, QueueStatus, RecordOutcome, RecordState, RunState, status_in_words
from etl.domain.views import ExportSummary, HostProgress, IngestSummary, Progress, RunInfo, skipped_words
from etl.redaction import redact_url
from etl.state.requeue import UNLIKELY
from etl.text import clean, clean_json
from etl.units import count, duration, size

END_S = 25
"""Seconds within which a stopped program has ended, as docs/cli.md promises."""

if TYPE_CHECKING:
    from etl.run.checks.check import Check
    from etl.state.parts.split import Split
    from etl.state.read.cost import Cost


def split_json(found: "Split | None") -> dict[str, Any] | None:
    """Return what ``etl status --json`` says of a state that was split; ``None`` for one whose work is its own."""
    if found is None or not found.is_open:
        return None
    return {
        "directory": found.directory,
        "parts": found.of,
        "merged": sum(part.merged_at is not None for part in found.parts),
        "finished": sum(part.closed for part in found.parts),
    }


def split_line(found: dict[str, Any]) -> str:
    """Return one line on the parts that a state has given its work to."""
    return (
        f"split     into {found['parts']:,} parts in {clean(found['directory'])}: {found['merged']:,} merged, "
        f"{found['finished']:,} finished; fetch and caption there, then `etl merge`"
    )


def note(context: Context, text: str) -> None:
    """Print one line for people on stderr."""
    if not context.quiet:
        print(clean(hinted(text)), file=sys.stderr, flush=True)


def note_wrapped(context: Context, text: str) -> None:
    """Print a line for people on stderr; one that is wider than the terminal is broken at words, and indented."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
    text = clean(hinted(text))
    lines = textwrap.wrap(text, width, subsequent_indent=" " * 10, break_on_hyphens=False) if width else [text]
    for line in lines:
        note(context, line)


def finding(context: Context, found: "Check") -> None:
    """Tell of something that a run should not keep for its end: what, and what to do about it."""
    for line in filter(None, (found.detail, found.cure)):
        note_wrapped(context, line)


def stopping(context: Context) -> None:
    """Answer a signal that asks for the end."""
    note(context, f"stopping: what is in flight is finished, up to {END_S} s; once more to leave now")


def say(text: str) -> None:
    """Print one line of an answer for people on stdout."""
    print(clean(hinted(text)))


def answer(value: Any) -> None:
    """Print one JSON value on stdout, as one line."""
    print(clean_json(value), flush=True)


def summary_json(value: Any) -> dict[str, Any]:
    """Return a summary's fields as plain values."""
    return dataclasses.asdict(value)


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return the object of ``etl status --json``."""
    records, outcomes = progress.records, progress.outcomes
    return {
        "records": {
            "total": sum(n for state, n in records.items() if state != RecordState.REMOVED),
            "selected": records.get(RecordState.ACTIVE, 0),
            "captioned": outcomes.get(RecordOutcome.CAPTIONED, 0),
            "failed": outcomes.get(RecordOutcome.FAILED, 0),
            "pending": outcomes.get(RecordOutcome.PENDING, 0),
            "skipped": outcomes.get(RecordOutcome.SKIPPED, 0),
            "unselected": records.get(RecordState.UNSELECTED, 0),
            "invalid": records.get(RecordState.INVALID, 0),
            "removed": records.get(RecordState.REMOVED, 0),
        },
        "sources": {status.value: progress.sources.get(status, 0) for status in QueueStatus},
        "captions": {status.value: progress.captions.get(status, 0) for status in QueueStatus},
        "bytes_fetched": progress.bytes_fetched,
        "run": run_json(progress.run),
        "rates": {
            "fetched_per_s": round(progress.fetched_per_s, 3),
            "captioned_per_s": round(progress.captioned_per_s, 3),
            "bytes_per_s": round(progress.bytes_per_s),
        },
        "hosts": [host_json(host) for host in progress.hosts],
        "more_hosts": dict(zip(("hosts", "pending"), progress.more_hosts, strict=True)),
        "flags": progress.flags,
        "image_flags": progress.image_flags,
        "fetch_errors": progress.fetch_errors,
        "fetch_seconds": None if progress.fetch_seconds is None else round(progress.fetch_seconds),
    }


def run_json(run: RunInfo | None) -> dict[str, Any]:
    """Return what is known of a run; only ``state`` where there was none yet."""
    if run is None:
        return {"uid": None, "state": RunState.NONE.value, "heartbeat_age_s": None}
    return {
        "number": run.id,
        "uid": run.uid,
        "state": run.state.value,
        "heartbeat_age_s": round(max(0, now_ms() - run.heartbeat_at) / 1000, 1),
        "stages": list(run.stages),
        "host": run.host,
        "pid": run.pid,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "message": run.message,
        "stops_at": run.stops_at,
    }


def status_lines(progress: Progress) -> Iterator[str]:
    """Yield what ``etl status`` says to people."""
    value = progress_json(progress)
    records = value["records"]
    yield (
        f"records   {records['total']:,} in the manifest, {records['selected']:,} selected: "
        f"{records['captioned']:,} captioned, {records['failed']:,} failed, {records['pending']:,} pending"
        + "".join(f"; {records[name]:,} {word}" for name, word in _BESIDE.items() if records[name])
    )
    for stage in ("sources", "captions"):
        counts = ", ".join(f"{n:,} {status_in_words(status)}" for status, n in value[stage].items() if n)
        yield f"{stage:<9} {counts or 'none yet'}"
    if progress.flags:
        yield f"flags     {', '.join(f'{n:,} {flag}' for flag, n in progress.flags.items())}"
    if progress.image_flags:
        yield f"pictures  {', '.join(f'{n:,} {flag}' for flag, n in progress.image_flags.items())}"
    if progress.bytes_fetched:
        yield f"fetched   {size(progress.bytes_fetched)}"
    run = progress.run
    live = run is not None and run.state in LIVE
    if live:
        yield (
            f"rates     {progress.fetched_per_s:.1f} pictures/s, {size(progress.bytes_per_s)}/s, "
            f"{progress.captioned_per_s:.1f} captions/s"
        )
    hosts = progress.hosts if live else map(_at_rest, progress.hosts)
    yield from (f"host      {host_line(host)}" for host in hosts if is_news(host))
    if progress.more_hosts[0]:
        yield "hosts     {:,} more, {:,} to come".format(*progress.more_hosts)
    if progress.fetch_errors:
        yield f"errors    {errors_text(progress)}"
    yield f"run       {_run_text(run) if run else 'none yet'}"
    if run is not None and live and run.stops_at is not None:
        yield f"deadline  {stops_at(run.stops_at, now_ms())}"


_BESIDE = {"skipped": "skipped for a flag of their picture", "unselected": "not selected", "invalid": "invalid"}
"""Records that are not to be captioned, and the words for them."""

_ENDED = {
    RunState.DONE: "ended well",
    RunState.PARTIAL: "ended, some records failed",
    RunState.INTERRUPTED: "was stopped",
    RunState.FAILED: "failed",
}
"""How a run has ended."""


def _run_text(run: RunInfo) -> str:
    """Return which run it is, and how it fares or ended."""
    beat = f"last heartbeat {ago(run.heartbeat_at, now_ms(), duration)}"
    if run.ended_at is None:
        how = f"{run.state}, {beat}"
    else:
        how = (
            f"{_ENDED.get(run.state, run.state)} {ago(run.ended_at, now_ms(), duration)}, {iso_utc(run.ended_at)[:19]}Z"
        )
    named = f"{run.id}, {run.uid} ({', '.join(run.stages)}) on {clean(run.host)}"
    return f"{named}: {how}" + (f"; {clean(run.message)}" if run.message else "")


def _at_rest(host: HostProgress) -> HostProgress:
    """Return a host when nobody works any more: the rates of the last minute are no longer true."""
    return HostProgress(dataclasses.replace(host.info, in_flight=0), host.pending)


def next_step(progress: Progress) -> str:
    """Return in one line what somebody who looks at a state may do next."""
    run, pending = progress.run, progress.outcomes.get(RecordOutcome.PENDING, 0)
    if run is not None and run.state in LIVE:
        return "`etl resume` lets the run go on" if run.state is RunState.PAUSED else "`etl dashboard` shows it live"
    if not any(n for state, n in progress.records.items() if state != RecordState.REMOVED):
        return "`etl ingest MANIFEST`: there are no records yet"
    if pending:
        return f"`etl run` goes on with the {count(pending, 'record')} that {'are' if pending != 1 else 'is'} pending"
    if progress.outcomes.get(RecordOutcome.FAILED, 0):
        return "`etl failures` tells what failed, `etl retry-failed` tries it again; `etl export captions.jsonl`"
    if progress.outcomes.get(RecordOutcome.SKIPPED, 0) and not progress.outcomes.get(RecordOutcome.CAPTIONED, 0):
        return "all is skipped for a flag of its picture: `etl run` without --skip-flag captions it"
    if not progress.outcomes.get(RecordOutcome.CAPTIONED, 0):
        return "no record is selected: `etl run --all` captions all of them"
    if progress.records.get(RecordState.INVALID, 0):
        return "all but the invalid lines (`etl failures`) is captioned: `etl export captions.jsonl`"
    return "all is captioned: `etl export captions.jsonl`"


def ingested(context: Context, summary: IngestSummary) -> None:
    """Tell what an ingest did."""
    if context.json:
        answer(summary_json(summary))
        return
    note(context, ingest_line(summary))


def ingest_line(summary: IngestSummary) -> str:
    """Return one line on what an ingest did."""
    head = f"{clean(redact_url(str(summary.path)))}: {count(summary.records, 'record')}, "
    head += f"{summary.selected:,} selected"
    skipped = skipped_words(summary.skipped)
    if summary.unchanged:
        return "; ".join(filter(None, (head, "unchanged", skipped)))
    parts = [f"{summary.added:,} new", f"{summary.changed:,} changed", f"{summary.removed:,} removed"]
    if summary.resumed_at:
        parts.insert(0, f"resumed behind record {summary.resumed_at:,}")
    if summary.invalid:
        parts.append(f"{summary.invalid:,} invalid (see `etl failures --stage ingest`)")
    return "; ".join(filter(None, (head, ", ".join(parts), skipped)))


def exported(context: Context, summary: ExportSummary) -> None:
    """Tell what an export wrote."""
    if str(summary.path) == "-":
        note(context, export_line(summary))
    elif context.json:
        answer(summary_json(summary))
    else:
        note(context, export_line(summary))


def export_line(summary: ExportSummary) -> str:
    """Return one line on what an export wrote."""
    where = "stdout" if str(summary.path) == "-" else clean(str(summary.path))
    line = (
        f"{where}: {count(summary.rows, 'row')}, {size(summary.size)}: {summary.captioned:,} captioned, "
        f"{summary.failed:,} failed, {summary.pending:,} pending"
        + "".join(f"; {getattr(summary, name):,} {word}" for name, word in _BESIDE.items() if getattr(summary, name))
    )
    if summary.shards:
        line += f"; {count(summary.shards, 'shard')}, {summary.written:,} of them written"
    if summary.files:
        line += f"; a file for each row, {summary.written:,} of them written"
    if summary.foreign:
        line += f"; {count(summary.foreign, 'file')} of other programs"
        is_text = summary.format.startswith(("txt", "caption"))
        line += ", or edited since," * is_text + " left as found" + " (--overwrite writes over them)" * is_text
    if summary.without_original:
        line += (
            f"; {count(summary.without_original, 'picture')} as working copies, for their original is not here, or few "
            "programs open it"
        )
    elif summary.reduced:
        line += (
            f"; {count(summary.reduced, 'picture')} as working copies, smaller than what came; --originals writes that"
        )
    if summary.without_picture:
        line += f"; {count(summary.without_picture, 'captioned record')} left out, whose picture has left the cache"
    if summary.left_out:
        line += f"; {count(summary.left_out, 'line')} without a JSON object left out"
    return line


def cost_line(cost: "Cost") -> str:
    """Return what a run and all runs have cost."""
    run = f"{cost.run:,.2f} at {cost.price:,.2f} an hour" if cost.price else "not known, no price given (--gpu-price)"
    return f"{run}; all runs {cost.total:,.2f}"


def flag_lines(flags: Mapping[str, int]) -> Iterator[str]:
    """Yield what can be done about captions with quality flags."""

    for flag, n in flags.items():
        if flag in UNLIKELY:
            yield f"{count(n, 'caption')} flagged {flag}; making them again is unlikely to help: {UNLIKELY[flag]}"
        else:
            yield f"{count(n, 'caption')} flagged {flag}; `etl retry-failed --flag {flag}` has them made again"
