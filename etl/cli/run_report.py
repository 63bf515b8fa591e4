"""The last lines of a run: what it did, what it left out, what that cost, where the output is, what to do next."""

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etl.cli.render import (
    answer,
    cost_line,
    export_line,
    flag_lines,
    ingest_line,
    note_wrapped,
    progress_json,
    summary_json,
)
from etl.domain.statuses import RecordOutcome, RecordState, RunState, Stage
from etl.export.formats import given_options
from etl.text import clean
from etl.units import count, duration, rate

if TYPE_CHECKING:
    from etl.cli.options import Context
    from etl.run.plan import Plan, Report

SHOWN_SOURCES = 2
SHOWN_CLASSES = 4

_ITEMS = {Stage.INGEST: "line", Stage.FETCH: "picture", Stage.CAPTION: "caption"}


def export_command(context: "Context", plan: "Plan") -> str:
    """Return the command that writes what a run writes at its end, or would write if it had been told where."""
    words = ["etl", "export", plan.output or "captions.jsonl", "--state", str(context.settings.state)]
    words += ["--format", plan.export.format] * bool(plan.export.format)
    words += ["--provenance"] * plan.export.provenance
    for name, value in given_options(plan.export.format_options).items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def report(context: "Context", done: "Report", *, export_command: str | None, output: str | None = None) -> None:
    """Tell what a run did; ``export_command`` is what writes the output, where the run has written none.

    ``output`` is the one that it was told of.
    """
    if context.json:
        answer(report_json(done, export_command))
        return
    for line in report_lines(done, export_command, output):
        note_wrapped(context, line)


def report_json(done: "Report", export_command: str | None) -> dict[str, Any]:
    """Return the object of ``etl run --json``."""
    elapsed = _elapsed(done)
    return {
        "state": done.state,
        "signal": done.signal,
        "deadline": done.deadline,
        "failed": done.failed,
        "failures": [{"stage": stage, "class": slug, "items": n} for stage, slug, n in done.failures],
        "not_selected": [summary_json(one) for one in done.left_out],
        "unreachable": [{"host": host, "class": slug, "pictures": n} for host, slug, n in done.unreachable],
        "stages": {stage: summary_json(summary) for stage, summary in done.stages.items()},
        "elapsed_s": round(elapsed, 1),
        "per_s": {stage: round(summary.done / elapsed, 3) for stage, summary in done.stages.items() if elapsed},
        "device": done.progress.device or None,
        "ingested": [summary_json(summary) for summary in done.ingested],
        "exported": summary_json(done.exported) if done.exported else None,
        "export_command": export_command,
        "cost": summary_json(done.cost) if done.cost else None,
        "status": progress_json(done.progress),
    }


def report_lines(done: "Report", export_command: str | None, output: str | None = None) -> Iterator[str]:
    """Yield the same for people: ten lines at most."""
    yield from _ingest_lines(done)
    yield f"records   {_records(done)}"
    for left in done.left_out[:1]:
        more = sum(one.records for one in done.left_out[1:])
        yield f"not needed  {left.line()}" + (f"; {more:,} more for other reasons" if more else "")
    if done.failures:
        again = any(stage != Stage.INGEST for stage, _, _ in done.failures)
        cure = "`etl retry-failed` tries them again" if again else "mend the manifest, and ingest it again"
        yield f"failed    {_failures(done)}: `etl failures` lists them, {cure}"
    for host, slug, n in done.unreachable[:1]:
        name = clean(host, 80)
        others = f" and {count(len(done.unreachable) - 1, 'more host')}" if len(done.unreachable) > 1 else ""
        then = "" if done.state is RunState.INTERRUPTED else f", then `etl retry-failed --host {name}`"
        yield f"not reachable  {name} ({slug}, {count(n, 'picture')}){others}: check the name and the network{then}"
    yield f"took      {_took(done)}"
    if Stage.CAPTION in done.stages and (flags := list(flag_lines(done.progress.flags))):
        yield flags[0] + (f"; {count(len(flags) - 1, 'more flag')} in `etl status`" if len(flags) > 1 else "")
    if done.exported:
        yield f"exported  {export_line(done.exported)}"
    yield from _next(done)
    if export_command and output is not None:
        yield f"{clean(output, 80)} was not written; `{export_command}` writes what there is"
    elif export_command and done.state is not RunState.INTERRUPTED:
        yield f"no output was named; to write the captions: {export_command}"


def _ingest_lines(done: "Report") -> Iterator[str]:
    if len(done.ingested) <= SHOWN_SOURCES:
        yield from map(ingest_line, done.ingested)
    else:
        records = sum(summary.records for summary in done.ingested)
        invalid = sum(summary.invalid for summary in done.ingested)
        yield f"{len(done.ingested)} sources: {count(records, 'record')}" + (f"; {invalid:,} invalid" * bool(invalid))


def _records(done: "Report") -> str:
    """Return what has become of the selected records, and how much of it in this run."""
    records, outcomes = done.progress.records, done.progress.outcomes
    selected = records.get(RecordState.ACTIVE, 0)
    if Stage.CAPTION in done.stages:
        parts = [f"{outcomes.get(RecordOutcome.CAPTIONED, 0):,} of {selected:,} selected captioned"]
        now = done.stages[Stage.CAPTION].done
    else:
        parts = [f"{selected:,} selected"]
        now = 0
    if now:
        parts[0] += f" ({count(now, 'caption')} in this run)"
    if Stage.FETCH in done.stages:
        parts.append(f"{count(done.stages[Stage.FETCH].done, 'picture')} fetched")
    parts.append(f"{outcomes.get(RecordOutcome.FAILED, 0):,} failed")
    if pending := outcomes.get(RecordOutcome.PENDING, 0):
        parts.append(f"{pending:,} still to be done")
    if skipped := outcomes.get(RecordOutcome.SKIPPED, 0):
        parts.append(f"{skipped:,} skipped for a flag of their picture")
    for stage, summary in done.stages.items():
        if summary.released:
            parts.append(f"{count(summary.released, _ITEMS[stage])} given back")
    return ", ".join(parts)


def _failures(done: "Report") -> str:
    """Return what failed, by stage and class, so that nobody looks for a download's failure in the captions."""
    by_stage: dict[str, Counter[str]] = {}
    for stage, slug, n in done.failures:
        by_stage.setdefault(stage, Counter())[slug] += n
    parts = []
    for stage, classes in by_stage.items():
        most = classes.most_common(SHOWN_CLASSES)
        more = classes.total() - sum(n for _, n in most)
        words = [f"{n:,} {slug}" for slug, n in most] + ([count(more, "other")] if more else [])
        parts.append(f"{count(classes.total(), _ITEMS[Stage(stage)])} at {stage} ({', '.join(words)})")
    return "; ".join(parts)


def _took(done: "Report") -> str:
    elapsed, summaries = _elapsed(done), done.stages
    parts = [duration(elapsed)]
    for stage, what, how in ((Stage.FETCH, "pictures", " fetched"), (Stage.CAPTION, "captions", "")):
        if stage in summaries and summaries[stage].done and elapsed:
            parts.append(rate(summaries[stage].done / elapsed, what) + how)
    if done.progress.device:
        parts.append(f"on {clean(done.progress.device, 60)}")
    return ", ".join(parts) + (f"; cost {cost_line(done.cost)}" if done.cost else "")


def _elapsed(done: "Report") -> float:
    run = done.progress.run
    return 0.0 if run is None else max(0, (run.ended_at or done.progress.at) - run.started_at) / 1000


def _next(done: "Report") -> Iterator[str]:
    """Yield how to go on."""
    if waiting := done.without_pictures:
        wait = f"{count(waiting, 'caption')} wait{'s' * (waiting == 1)}"
        yield f"{wait} for pictures that are not in the cache: run `etl fetch`, then this again"
    if done.deadline:
        why = done.progress.run.message if done.progress.run else ""
        yield f"{why}; run the same command again to go on"
    elif done.state is RunState.INTERRUPTED:
        yield "stopped; everything finished is kept: run the same command again to go on"
    elif done.stages and Stage.CAPTION not in done.stages and done.progress.outcomes.get(RecordOutcome.PENDING, 0):
        yield "now run `etl caption`, here or where a copy of the state has a GPU"
    else:
        if _was_idle(done):
            yield "nothing to do: no picture is due and no caption is missing" + (
                "; no model was loaded" if Stage.CAPTION in done.stages else ""
            )


def _was_idle(done: "Report") -> bool:
    counts = [(one.done, one.dead, one.retried, one.lost, one.released) for one in done.stages.values()]
    return bool(counts) and not any(map(any, counts)) and not done.progress.outcomes.get(RecordOutcome.PENDING, 0)
