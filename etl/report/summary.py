"""What stands above the pictures: counts, plots over the busy time, runs, failures by class and by host."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from etl.clock import iso_utc, now_ms
from etl.domain.statuses import RecordOutcome, RecordState, Stage
from etl.domain.views import Progress, RunInfo
from etl.report.plots import Series, plot
from etl.report.timeline import Timeline
from etl.state.read.cost import Cost, cost, cost_by_run
from etl.state.read.failures import failure_classes
from etl.state.read.manifests import all_manifests
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.state.read.report_rows import LINE, failures_by_host, finished_by_time
from etl.state.read.runs import latest_runs
from etl.text import clean
from etl.units import duration, size
from etl.version import __version__

BUCKETS = 120
"""Points of a line."""

SHOWN = 50
"""Rows of a table."""

ALL_RUNS = 100_000


def summarise(reader: Reader) -> dict[str, Any]:
    """Return the values of the template, but for those of the style and the script."""
    progress, spent = read_progress(reader), cost(reader)
    runs, costs = latest_runs(reader, ALL_RUNS), cost_by_run(reader)
    names = ", ".join(path.rpartition("/")[2] for _, path, *_ in all_manifests(reader)) or "nothing yet"
    recipe = next((one for one in all_recipes(reader) if one.current), None)
    model = clean(f"{recipe.model}@{recipe.revision}", LINE) if recipe else "no model yet"
    failures, hosts = list(_failures(reader)), failures_by_host(reader)
    return {
        "title": clean(f"Captions of {names}", LINE),
        "subtitle": f"{model} · {iso_utc(now_ms())[:16].replace('T', ' ')} UTC",
        "figures": list(_figures(progress, spent)),
        "plots": [Markup(one) for one in _plots(reader, runs, costs)],
        "runs": [_run(run, costs.get(run.id)) for run in runs[:SHOWN]],
        "runs_more": _more(runs),
        "costs": bool(costs),
        "failures": failures[:SHOWN],
        "failures_more": _more(failures),
        "hosts": [
            {"host": clean(host, LINE) or "this machine", "slug": clean(slug or "", LINE), "count": f"{n:,}"}
            for host, slug, n in hosts[:SHOWN]
        ],
        "hosts_more": _more(hosts),
        "footer": f"Made by caption-etl {__version__} from {clean(str(reader.state))}. "
        "Captions were written by a model and may be wrong.",
    }


def _more(rows: list[Any]) -> str:
    return f" (the first {SHOWN} of {len(rows):,})" if len(rows) > SHOWN else ""


def _figures(progress: Progress, spent: Cost | None) -> Iterator[dict[str, str]]:
    records, outcomes = progress.records, progress.outcomes
    counts = {
        "records selected": records.get(RecordState.ACTIVE, 0),
        "captioned": outcomes.get(RecordOutcome.CAPTIONED, 0),
        "failed": outcomes.get(RecordOutcome.FAILED, 0),
        "still to do": outcomes.get(RecordOutcome.PENDING, 0),
        "skipped": outcomes.get(RecordOutcome.SKIPPED, 0),
        "not selected": records.get(RecordState.UNSELECTED, 0),
        "invalid lines": records.get(RecordState.INVALID, 0),
    }
    yield from ({"name": name, "value": f"{count:,}"} for name, count in counts.items())
    yield {"name": "fetched", "value": size(progress.bytes_fetched)}
    if spent is not None:
        yield {"name": "spent", "value": f"{spent.total:,.2f}"}


def _failures(reader: Reader) -> Iterator[dict[str, Any]]:
    classes = sorted(failure_classes(reader), key=lambda one: -one[2])
    whole = sum(count for *_, count in classes)
    for stage, slug, count in classes:
        yield {"stage": stage, "slug": clean(slug, LINE), "count": f"{count:,}", "share": round(count / whole, 3)}


def _run(run: RunInfo, spent: float | None) -> dict[str, str]:
    seconds = ((run.ended_at or run.heartbeat_at) - run.started_at) // 1000
    return {
        "uid": clean(run.uid, LINE), "began": iso_utc(run.started_at)[:16].replace("T", " "),
        "stages": clean(" + ".join(run.stages), LINE),
        "state": clean(f"{run.state}{f': {run.message}' if run.message else ''}", LINE),
        "took": duration(seconds),
        "cost": "" if spent is None else f"{spent:,.2f}",
    }  # fmt: skip


def _plots(reader: Reader, runs: list[RunInfo], costs: dict[int, float]) -> Iterator[str]:
    """Yield the plots that have something to show; what was merely ingested has none."""
    worked = [run for run in runs if {Stage.FETCH, Stage.CAPTION} & set(run.stages)]
    line = Timeline(worked)
    if line.busy <= 0:
        return
    width = max(1000, line.busy // (4 * BUCKETS))
    buckets = max(2, min(BUCKETS, line.busy // 1000))
    minutes = line.busy / buckets / 60_000
    series = [
        Series(name, [n / minutes for n in line.gather(finished_by_time(reader, stage, width), buckets)], stage)
        for name, stage in (("fetched", Stage.FETCH), ("captioned", Stage.CAPTION))
    ]
    hours = line.busy / 3_600_000
    breaks = [span.offset / line.busy for span in line.spans[1:]]
    yield plot("Pictures and captions", series, span_h=hours, breaks=breaks, unit="a minute")
    spent = _cost_over_time(worked, costs, line, buckets)
    if spent[-1] > 0:
        yield plot("Money spent", [Series("cost", spent, "cost")], span_h=hours, breaks=breaks, unit="in all")


def _cost_over_time(runs: list[RunInfo], costs: dict[int, float], line: Timeline, buckets: int) -> list[float]:
    """Return what had been spent at so many instants of busy time; a run spends evenly from its begin to its end."""
    spent = [
        (line.place(run.started_at), line.place(run.ended_at or run.heartbeat_at), costs.get(run.id, 0.0))
        for run in runs
    ]
    instants = [n * line.busy / (buckets - 1) for n in range(buckets)]
    return [sum(_part(at, *one) for one in spent) for at in instants]


def _part(at: float, start: int, end: int, whole: float) -> float:
    return whole * min(1.0, max(0.0, (at - start) / max(1, end - start)))
