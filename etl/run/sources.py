"""The sources that one command names: manifests and directories of pictures, ingested one behind the other."""

from collections.abc import Callable, Sequence
from pathlib import Path

from etl.domain.statuses import RunState, Stage
from etl.domain.views import IngestSummary
from etl.errors import ManifestError
from etl.ingest.manifest import STDIN, Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.run.signals import watch_signals
from etl.settings import Settings
from etl.state.store import Store


def ingest_manifests(
    settings: Settings,
    sources: Sequence[str],
    options: IngestOptions,
    on_batch: Callable[[int], None],
    on_stop: Callable[[], None] = lambda: None,
) -> tuple[tuple[IngestSummary, ...], int | None]:
    """Ingest manifests as one run; return a summary of each that was begun, and the signal that stopped it, if any."""
    manifests = manifests_of(sources)
    with watch_signals(on_stop=on_stop) as signals, Store.open(settings) as store, store.run((Stage.INGEST,)) as run:
        signals.release = give_back(store, run)
        summaries = ingest_all(store, manifests, options, on_batch, should_stop=lambda: bool(signals))
        if signals:
            store.end_run(run, RunState.INTERRUPTED)
        return summaries, signals.first


def manifests_of(sources: Sequence[str]) -> tuple[Manifest, ...]:
    """Return the manifests that are meant, each once.  Raises `ManifestError` when one is not there."""
    try:
        return tuple({manifest.path: manifest for manifest in map(Manifest, sources)}.values())
    except ManifestError as error:
        *others, last = sources
        if others and all(Path(one).exists() for one in others if one != STDIN):
            raise ManifestError(str(error)).with_cure(f"is it the output? Then give -o {last}") from error
        raise


def ingest_all(
    store: Store,
    manifests: Sequence[Manifest],
    options: IngestOptions,
    on_batch: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> tuple[IngestSummary, ...]:
    """Ingest one behind the other, until a stop is wanted; return a summary of each that was begun."""
    summaries: list[IngestSummary] = []
    beside = [manifest.path for manifest in manifests]
    for manifest in manifests:
        if summaries and should_stop():
            break
        summaries.append(ingest(store, manifest, options, on_batch=on_batch, should_stop=should_stop, beside=beside))
    return tuple(summaries)


def give_back(store: Store, run: int) -> Callable[[str], None]:
    """Return what ends a run on record before the process is forced to end."""
    return lambda why: store.end_run(run, RunState.INTERRUPTED, why)
