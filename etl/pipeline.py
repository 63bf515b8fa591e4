"""What the commands call: the stages of one run put together, from a manifest to an export."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etl.captioning.backends import check_model, open_captioner
from etl.config import Settings
from etl.errors import ConfigError, EtlError, StateLockedError, StateMissingError, StateSplitError
from etl.models import ExportSummary, IngestSummary, Progress, RecordOutcome, RecordState, RunState, Stage, StageSummary
from etl.net.mirrors import Mirrors
from etl.runner import RunResult, StageFunction, run_stages, watch_signals
from etl.stages.export import ExportOptions, check_target, export
from etl.stages.flow import Flow
from etl.stages.ingest import IngestOptions, ingest, reselect
from etl.stages.manifest import Manifest
from etl.state.cost import Cost, cost
from etl.state.outlook import Outlook
from etl.state.parts import latest_split
from etl.state.queries import Reader
from etl.state.store import Store
from etl.telemetry.metrics import metrics
from etl.text import clean

if TYPE_CHECKING:
    from etl.stages.foresight import Foresight


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        fetch, caption: the stages to run.
        manifest: what to ingest first.
        options: how to read it.
        reselect: apply ``options.selection`` to the manifests that the state holds already.
        refresh: ask again for the sources that were fetched before.
        output: where to export at the end.
        export: what the export holds.
        force: fetch and caption although the work was given to parts.
    """

    fetch: bool = False
    caption: bool = False
    manifest: str | None = None
    options: IngestOptions = field(default_factory=IngestOptions)
    reselect: bool = False
    refresh: bool = False
    output: str | None = None
    export: ExportOptions = field(default_factory=ExportOptions)
    force: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in their order."""
        wanted = {
            Stage.INGEST: self.manifest is not None, Stage.FETCH: self.fetch, Stage.CAPTION: self.caption,
            Stage.EXPORT: self.output is not None,
        }  # fmt: skip
        return tuple(stage for stage, yes in wanted.items() if yes)


@dataclass(frozen=True)
class Report:
    """What one run did.

    Attributes:
        state: how it ended.
        signal: the signal that stopped it, if one did.
        stages: per stage, what it did in this run.
        progress: the counts at its end.
        failed: records that are failed or invalid, over the whole state.
        ingested, exported: what was read and written, if anything was.
        cost: what this run and all runs have cost; ``None`` when no price is known.
    """

    state: RunState
    signal: int | None
    stages: dict[Stage, StageSummary]
    progress: Progress
    failed: int
    ingested: IngestSummary | None = None
    exported: ExportSummary | None = None
    cost: Cost | None = None


def ingest_manifest(
    settings: Settings, path: str, options: IngestOptions, on_batch: Callable[[int], None]
) -> tuple[IngestSummary, int | None]:
    """Ingest one manifest as a run of its own; return its summary and the signal that stopped it, if one did."""
    manifest = Manifest(path)
    with (
        Store.open(settings) as store,
        store.run((Stage.INGEST,)),
        watch_signals(second_interrupts=True) as caught,
    ):
        summary = ingest(store, manifest, options, on_batch=on_batch, should_stop=lambda: bool(caught))
        return summary, caught[0] if caught else None


def export_manifest(settings: Settings, target: str, options: ExportOptions) -> ExportSummary:
    """Export the state; beside a live run from a snapshot, which then is not recorded."""
    with Reader(settings.state):
        pass
    try:
        with Store.open(settings, create=False) as store, store.run((Stage.EXPORT,)) as run:
            return _export(store, run, target, options)
    except StateLockedError:
        with Reader(settings.state) as reader:
            return export(reader, target, options)[0]


def run_pipeline(settings: Settings, plan: Plan, on_progress: Callable[[Progress], None]) -> Report:
    """Run the stages of a plan over one state directory, and tell the webhook how that ended, where there is one.

    Raises, before anything begins, `ModelError` when the model cannot be found, `ConfigError` for a mirror that is
    wrongly given, `StateSplitError` for a state whose work was given to parts, and what `check_target` says of the
    output, else the errors of `Store.open` and of the stages.
    """
    try:
        report = _run(settings, plan, on_progress)
    except (ConfigError, StateLockedError, StateSplitError):
        # Nothing began, so nothing has ended.
        raise
    except EtlError as error:
        _announce(settings, {"state": RunState.FAILED, "error": str(error)}, f"failed: {error}")
        raise
    _announce(settings, *_told(report))
    return report


def _told(report: Report) -> tuple[dict[str, Any], str]:
    """Return what a webhook is told of a run, for programs and for people."""
    outcomes, run = report.progress.outcomes, report.progress.run
    counts = {str(outcome): outcomes.get(outcome, 0) for outcome in RecordOutcome}
    # An invalid line of the manifest is a failure too.
    counts[RecordOutcome.FAILED] = report.failed
    spent = report.cost.total if report.cost else None
    text = f"{report.state}: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    facts = {
        "run": run.uid if run else None, "state": report.state, "signal": report.signal, "records": counts,
        "cost": spent,
    }  # fmt: skip
    return facts, text if spent is None else f"{text}; {spent:,.2f} spent"


def _announce(settings: Settings, facts: dict[str, Any], text: str) -> None:
    if not settings.webhook:
        return
    from etl.telemetry.webhook import send

    line = clean(f"caption-etl on {socket.gethostname()}, {settings.state}: {text}", 1000)
    # Slack shows "text", Discord shows "content"; both leave the rest alone.
    send(settings.webhook, {"event": "run_ended", "text": line, "content": line, "host": socket.gethostname(), **facts})


def _run(settings: Settings, plan: Plan, on_progress: Callable[[Progress], None]) -> Report:
    manifest = Manifest(plan.manifest) if plan.manifest is not None else None
    if plan.caption:
        check_model(settings)
    if plan.fetch:
        # Refused before anything begins, so that no run is on record for it.
        Mirrors.of(settings)
    if plan.output is not None:
        check_target(plan.output, plan.export)
    if (plan.fetch or plan.caption) and not plan.force:
        _refuse_split(settings)
    with (
        Store.open(settings, create=manifest is not None) as store,
        # Before the run is on record: a port that is taken is a mistake of the command line.
        metrics(settings.state, settings.metrics_address, settings.metrics_port),
        store.run(plan.stages) as run,
        watch_signals(second_interrupts=True) as caught,
    ):
        ingested = exported = None
        if manifest is not None:
            ingested = ingest(store, manifest, plan.options, should_stop=lambda: bool(caught))
        elif plan.reselect:
            reselect(store, plan.options.selection)
        result = RunResult(RunState.INTERRUPTED, None)
        if not caught:
            result = run_stages(store, run, _stages(settings, plan), on_progress=on_progress)
        if plan.output is not None and not caught and result.signal is None:
            exported = _export(store, run, plan.output, plan.export)
        failed = _failed(store)
        state, signal = result.state, caught[0] if caught else result.signal
        if caught:
            state = RunState.INTERRUPTED
        elif state is RunState.DONE and failed:
            state = RunState.PARTIAL
        store.end_run(run, state)
        with Reader(store.directory) as reader:
            progress, spent = Outlook(reader).progress(), cost(reader)
        return Report(state, signal, result.summaries, progress, failed, ingested, exported, spent)


def _refuse_split(settings: Settings) -> None:
    try:
        with Reader(settings.state) as reader:
            found = latest_split(reader)
    except StateMissingError:
        # The run itself says so, or makes one.
        return
    if found is not None and found.is_open:
        back = sum(part.closed for part in found.parts)
        raise StateSplitError(
            f"this state is split into {found.of} parts in {found.directory}, of which {back} have come back finished: "
            "work on those, then `etl merge` them; --force works here too, and may do their work twice"
        )


def _stages(settings: Settings, plan: Plan) -> dict[Stage, StageFunction]:
    stages: dict[Stage, StageFunction] = {}
    if plan.fetch:
        stages[Stage.FETCH] = lambda store, run, flow: _fetch(store, run, settings, flow, plan.refresh)
    if plan.caption:
        stages[Stage.CAPTION] = lambda store, run, flow: _caption(store, run, settings, flow)
    return stages


def foresee_fetch(settings: Settings, *, refresh: bool) -> "Foresight":
    """Return what a fetch would do; also beside a live run."""
    from etl.stages.foresight import foresee

    with Reader(settings.state) as reader:
        return foresee(reader, settings, refresh=refresh)


def _fetch(store: Store, run: int, settings: Settings, flow: Flow, refresh: bool) -> StageSummary:
    # Imported here: captioning alone needs no HTTP client.
    from etl.stages.fetch import fetch

    return fetch(store, run, settings, flow, refresh=refresh)


def _caption(store: Store, run: int, settings: Settings, flow: Flow) -> StageSummary:
    from etl.imaging.cache import ImageCache
    from etl.stages.caption import caption

    with Reader(store.directory) as reader:
        edges = reader.longest_edges()
    # The copies that are there decide, not the setting: they may have been made on another machine.
    edge = edges[0] if edges else settings.longest_edge
    captioner = open_captioner(settings, ImageCache.of_state(store.directory), edge)
    try:
        return caption(store, run, settings, captioner, flow, more_coming=lambda: flow.is_active(Stage.FETCH))
    finally:
        captioner.close()


def _export(store: Store, run: int, target: str, options: ExportOptions) -> ExportSummary:
    with Reader(store.directory) as reader:
        summary, recipe = export(reader, target, options)
    store.record_export(run, summary, recipe)
    return summary


def _failed(store: Store) -> int:
    """Return how many records are failed or invalid, over the whole state."""
    with Reader(store.directory) as reader:
        progress = reader.progress()
    return progress.outcomes.get(RecordOutcome.FAILED, 0) + progress.records.get(RecordState.INVALID, 0)
