"""What the commands call: the stages of one run put together, from a manifest to an export."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from etl.caption.backends import device_in_words, fetch_weights, open_captioner
from etl.deadline import Deadline
from etl.domain.statuses import QueueStatus, RecordOutcome, RecordState, RunState, Stage
from etl.domain.views import ExportSummary, IngestSummary, Progress, StageSummary
from etl.errors import ConfigError, EtlError, StateLockedError, StateSplitError
from etl.export.stage import ExportOptions, check_target, export
from etl.ingest.manifest import Manifest
from etl.ingest.options import left_out
from etl.ingest.stage import reselect
from etl.run.announcement import announce_end, announce_failure
from etl.run.checks.check import Check
from etl.run.early_look import look_at_hosts
from etl.run.kept_back import SPARE_S, KeptBack
from etl.run.plan import Plan, Report
from etl.run.preflight import check, check_mirrors
from etl.run.signals import Signals, watch_signals
from etl.run.sources import give_back, ingest_all
from etl.run.supervisor import RunResult, StageFunction, run_stages
from etl.run_control import RunControl
from etl.settings import Settings
from etl.state.read.cost import cost
from etl.state.read.failures import failure_classes
from etl.state.read.progress import SHOWN_HOSTS, ProgressReader
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs
from etl.state.read.sources import longest_edges, unreachable_hosts
from etl.state.store import Store
from etl.telemetry.metrics import metrics
from etl.units import count

if TYPE_CHECKING:
    from etl.fetch.estimate import FetchEstimate

_NOTHING = StageSummary()
"""What a stage has done that did not begin."""

_MANIFEST_LEFT = "deadline reached before the manifest was read; nothing was exported"


def export_manifest(settings: Settings, target: str, options: ExportOptions) -> ExportSummary:
    """Export the state; beside a live run from a snapshot, which then is not recorded.

    Raises `Interrupted` when a signal comes; a file that was there is then untouched.
    """
    with Reader(settings.state):
        pass
    check_target(target, options)
    with watch_signals(interrupt=True) as signals:
        try:
            with Store.open(settings, create=False) as store, store.run((Stage.EXPORT,)) as run:
                signals.release = give_back(store, run)
                return _export(store, run, target, options)
        except StateLockedError:
            with Reader(settings.state) as reader:
                return export(reader, target, options)[0]


def run_pipeline(
    settings: Settings,
    plan: Plan,
    on_progress: Callable[[Progress], None],
    on_stop: Callable[[], None] = lambda: None,
    on_silence: Callable[[Check], None] | None = None,
) -> Report:
    """Run the stages of a plan over one state directory, and tell the webhook how that ended, where there is one.

    ``on_stop`` is called, in a thread of its own, as soon as a signal asks for the end; ``on_silence`` in another one,
    where hosts do not answer when fetching begins.

    Raises, before anything begins, `ModelError` when the model cannot be found, `ConfigError` for a mirror that is
    wrongly given or a deadline that is over, `StateSplitError` for a state whose work was given to parts, and what
    `check_target` says of the output, else the errors of `Store.open` and of the stages.
    """
    try:
        report = _recorded(settings, plan, on_progress, on_stop, on_silence)
    except (ConfigError, StateLockedError, StateSplitError):
        # Nothing began, so nothing has ended.
        raise
    except EtlError as error:
        announce_failure(settings, error)
        raise
    announce_end(settings, report)
    return report


def _recorded(
    settings: Settings,
    plan: Plan,
    on_progress: Callable[[Progress], None],
    on_stop: Callable[[], None],
    on_silence: Callable[[Check], None] | None,
) -> Report:
    deadline = Deadline.begin(settings.deadline)
    if deadline is not None:
        # What a duration means is known from here on, and told by the run's row.
        settings = replace(settings, deadline=deadline.at.isoformat(timespec="milliseconds"))
    manifests = check(settings, plan)
    with (
        watch_signals(on_stop=on_stop) as signals,
        Store.open(settings, create=bool(manifests)) as store,
        # Before the run is on record: a port that is taken is a mistake of the command line.
        metrics(settings.state, settings.metrics_address, settings.metrics_port),
        store.run(plan.stages) as run,
    ):
        signals.release = give_back(store, run)
        return _Run(store, run, settings, plan, signals, deadline).work(manifests, on_progress, on_silence)


class _Run:
    """One recorded run of a plan."""

    def __init__(
        self, store: Store, run: int, settings: Settings, plan: Plan, signals: Signals, deadline: Deadline | None
    ) -> None:
        self._store = store
        self._run = run
        self._settings = settings
        self._plan = plan
        self._signals = signals
        self._deadline = deadline

    def work(
        self,
        manifests: Sequence[Manifest],
        on_progress: Callable[[Progress], None],
        on_silence: Callable[[Check], None] | None,
    ) -> Report:
        """Do what the plan says, and record how it ended."""
        ingested, whole = self._ingest(manifests)
        result = RunResult(RunState.INTERRUPTED, None, deadline=not whole and not self._signals)
        if whole:
            if ingested and self._plan.fetch:
                check_mirrors(self._settings, known=True)
            stages, stop_at = _stage_functions(self._settings, self._plan), self._stop_at()
            looks = look_at_hosts(self._settings, on_silence) if self._plan.fetch and on_silence else nullcontext()
            with looks:
                result = run_stages(
                    self._store, self._run, stages, on_progress=on_progress, signals=self._signals, stop_at=stop_at
                )
        exported = self._export() if whole else None
        with Reader(self._store.directory) as reader:
            progress, spent = ProgressReader(reader).progress(), cost(reader)
        failed = _failed(progress)
        left = self._left(progress) if result.deadline and not self._signals else 0
        state = result.state
        if self._signals:
            state = RunState.INTERRUPTED
        elif state is RunState.DONE or (result.deadline and whole and not left):
            state = RunState.PARTIAL if failed else RunState.DONE
        message = None
        if result.deadline and state is RunState.INTERRUPTED and not self._signals:
            message = f"deadline reached, {count(left, self._plan.counted)} left" if whole else _MANIFEST_LEFT
        self._store.end_run(self._run, state, message)
        with Reader(self._store.directory) as reader:
            progress = replace(progress, run=latest_runs(reader, 1)[0], device=result.device)
            failures, unreachable = failure_classes(reader), unreachable_hosts(reader, SHOWN_HOSTS)
            unneeded = left_out(reader) if progress.records.get(RecordState.UNSELECTED) else ()
        return Report(
            state=state,
            signal=self._signals.first,
            stages=result.summaries,
            progress=progress,
            failed=failed,
            ingested=ingested,
            exported=exported,
            cost=spent,
            deadline=self._deadline is not None and message is not None,
            failures=tuple(failures),
            left_out=unneeded,
            unreachable=tuple(unreachable),
        )

    def _ingest(self, manifests: Sequence[Manifest]) -> tuple[tuple[IngestSummary, ...], bool]:
        """Read the manifests, or select anew; return what was read, and whether nothing cut it short."""
        if not manifests:
            if self._plan.reselect:
                reselect(self._store, self._plan.options.selection)
            return (), not self._signals
        cut = False

        def should_stop() -> bool:
            nonlocal cut
            cut = bool(self._signals) or (self._deadline is not None and self._deadline.left() <= SPARE_S)
            return cut

        read = ingest_all(self._store, manifests, self._plan.options, lambda _: None, should_stop)
        return read, not cut

    def _stop_at(self) -> float | None:
        """Return the moment, of `time.monotonic`, from which nothing is claimed so that the deadline is kept."""
        if self._deadline is None:
            return None
        return self._deadline.ends - KeptBack.of(self._settings, self._plan).seconds

    def _export(self) -> ExportSummary | None:
        """Export, where that is wanted and no signal has come; one that comes now ends it."""
        if self._plan.output is None or self._signals:
            return None
        target = self._plan.output
        return self._signals.unless_interrupted(lambda: _export(self._store, self._run, target, self._plan.export))

    def _left(self, progress: Progress) -> int:
        """Return how much a run of the same plan would still have to do."""
        if self._plan.caption:
            return progress.outcomes.get(RecordOutcome.PENDING, 0)
        return sum(progress.sources.get(status, 0) for status in (QueueStatus.READY, QueueStatus.RETRY))


def _stage_functions(settings: Settings, plan: Plan) -> dict[Stage, StageFunction]:
    """Return the wanted stages in their order, each to be run in a thread of its own."""
    stages: dict[Stage, StageFunction] = {}
    if plan.fetch:
        stages[Stage.FETCH] = lambda store, run, control: _fetch(store, run, settings, control, plan.refresh)
    if plan.caption:
        stages[Stage.CAPTION] = lambda store, run, control: (
            # Seconds or minutes for a model that would caption nothing.
            _NOTHING if control.stopping else _caption(store, run, settings, control)
        )
    return stages


def _fetch(store: Store, run: int, settings: Settings, control: RunControl, refresh: bool) -> StageSummary:
    # Imported here: captioning alone needs no HTTP client.
    from etl.fetch.stage import fetch

    return fetch(store, run, settings, control, refresh=refresh)


def _caption(store: Store, run: int, settings: Settings, control: RunControl) -> StageSummary:
    from etl.caption.need import settle_without_model, wait_for_picture
    from etl.caption.stage import caption
    from etl.images.cache import ImageCache
    from etl.state.presence import require_cache

    store.settle_skipped(run)
    with Reader(store.directory) as reader:
        edges = longest_edges(reader)
        # Before minutes are spent on a model that would have nothing to look at.
        require_cache(reader)
        # The copies that are there decide, not the setting: they may have been made on another machine.
        edge = edges[0] if edges else settings.longest_edge
        if not wait_for_picture(reader, settings, edge, control, lambda: control.is_active(Stage.FETCH)):
            settle_without_model(store, reader, run, settings, control)
            return _NOTHING
    control.loading = True
    fetch_weights(settings, control.note_download)
    control.download = None
    captioner = open_captioner(settings, ImageCache.of_state(store.directory), edge)
    try:
        control.device, control.loading = device_in_words(settings, captioner), False
        if control.stopping:
            # The run may have gone on without us: it waits for nobody who only loads.
            return _NOTHING
        return caption(store, run, settings, captioner, control, more_coming=lambda: control.is_active(Stage.FETCH))
    finally:
        captioner.close()


def estimate_fetch(settings: Settings, *, refresh: bool) -> "FetchEstimate":
    """Return what a fetch would do; also beside a live run."""
    from etl.fetch.estimate import estimate_of

    with Reader(settings.state) as reader:
        return estimate_of(reader, settings, refresh=refresh)


def _export(store: Store, run: int, target: str, options: ExportOptions) -> ExportSummary:
    with Reader(store.directory) as reader:
        summary, recipe = export(reader, target, options)
    store.record_export(run, summary, recipe)
    return summary


def _failed(progress: Progress) -> int:
    """Return how many records are failed or invalid, over the whole state."""
    return progress.outcomes.get(RecordOutcome.FAILED, 0) + progress.records.get(RecordState.INVALID, 0)
