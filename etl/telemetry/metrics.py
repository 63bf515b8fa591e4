"""Metrics for Prometheus: what ``etl status`` knows, read from the state whenever they are asked for.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only grows.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from etl.domain.statuses import HostState, RunState
from etl.domain.views import EngineSample, GpuSample, Progress
from etl.errors import ConfigError
from etl.extras import install_extra
from etl.state.read.cost import cost
from etl.state.read.failures import failure_classes
from etl.state.read.progress import ProgressReader, engines, gpus
from etl.state.read.reader import Reader
from etl.state.read.recipes import all_recipes
from etl.text import clean
from etl.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

PREFIX = "caption_etl_"
LABEL_LIMIT = 200
"""Characters of a label: names of hosts and models are strangers' words."""


@contextlib.contextmanager
def metrics(state: Path, address: str, port: int) -> Iterator[None]:
    """Serve the metrics of a state at ``http://address:port/metrics`` during the block; with port 0, nothing.

    Raises `ConfigError` when the extra is not installed or the address cannot be listened on.
    """
    if not port:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ConfigError(f"--metrics-port needs prometheus-client: {install_extra('metrics')}") from error
    with Reader(state) as reader:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StateMetrics(reader))
        try:
            server, thread = start_http_server(port, address, registry)
        except OSError as error:
            raise ConfigError(
                f"the metrics cannot be served at {address}:{port} ({error.strerror or error}); choose another "
                "--metrics-port or --metrics-address"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class StateMetrics:
    """A collector of ``prometheus_client``: each scrape is one look at the state."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._outlook = ProgressReader(reader)
        # Scrapes come in threads of their own, and two may overlap.
        self._lock = threading.Lock()

    def collect(self) -> "Iterator[GaugeMetricFamily | CounterMetricFamily]":
        """Yield all metrics at one instant."""
        with self._lock:
            progress = self._outlook.progress()
            yield from self._counts(progress)
            yield from _hosts(progress)
            yield from self._run(progress)
            if progress.run is not None:
                yield from _engines(engines(self._reader, progress.run.id, progress.at))
                yield from _gpus(gpus(self._reader, progress.run.id, progress.at))

    def _counts(self, progress: Progress) -> "Iterator[GaugeMetricFamily | CounterMetricFamily]":
        yield _gauge(
            "records", "Records by what the manifest and the selection say of them.", "state", progress.records
        )
        yield _gauge("outcomes", "Selected records by what became of them.", "outcome", progress.outcomes)
        yield _gauge("sources", "Distinct pictures to fetch, by status.", "status", progress.sources)
        yield _gauge("captions", "Captions of the current recipe, by status.", "status", progress.captions)
        yield _gauge("flagged_captions", "Finished captions by quality flag.", "flag", progress.flags)
        yield _gauge("flagged_pictures", "Fetched pictures by the flags of their images.", "flag", progress.image_flags)
        failed = _gauge_family("failed_items", "Items that are given up, by error class.", ["stage", "error_class"])
        for stage, slug, count in failure_classes(self._reader):
            failed.add_metric([stage, clean(slug, LABEL_LIMIT)], count)
        yield failed
        yield _total("fetched_bytes", "Bytes of the distinct originals that were fetched.", progress.bytes_fetched)
        spent = cost(self._reader)
        if spent is not None:
            yield _total("cost", "What all runs have cost, in the currency of the price.", spent.total)

    def _run(self, progress: Progress) -> "Iterator[GaugeMetricFamily]":
        info = _gauge_family("info", "Version and model; always 1.", ["version", "model", "revision"])
        recipe = next((one for one in all_recipes(self._reader) if one.current), None)
        model, revision = (recipe.model, recipe.revision) if recipe else ("", "")
        info.add_metric([__version__, clean(model, LABEL_LIMIT), clean(revision, LABEL_LIMIT)], 1)
        yield info
        run = progress.run
        now = run.state if run is not None else RunState.NONE
        yield _gauge(
            "run_state", "1 for the state of the latest run.", "state", {str(s): int(s is now) for s in RunState}
        )
        if run is not None:
            yield _single("run_started_timestamp_seconds", "When the latest run began.", run.started_at / 1000)
            age = max(0.0, (progress.at - run.heartbeat_at) / 1000)
            yield _single("run_heartbeat_age_seconds", "Time since the latest run's last sign of life.", age)


def _hosts(progress: Progress) -> "Iterator[GaugeMetricFamily]":
    """Yield the busiest hosts and those in trouble, as ``etl status`` shows them."""
    pending = _gauge_family("host_pending_sources", "Pictures that are still to be fetched from a host.", ["host"])
    flying = _gauge_family("host_requests_in_flight", "Requests to a host that run now.", ["host"])
    allowed = _gauge_family("host_requests_allowed", "Requests to a host that may run at once.", ["host"])
    state = _gauge_family("host_state", "1 for how a host is treated now.", ["host", "state"])
    for host in progress.hosts:
        name = clean(host.info.host, LABEL_LIMIT)
        pending.add_metric([name], host.pending)
        flying.add_metric([name], host.info.in_flight)
        allowed.add_metric([name], host.info.allowed)
        for one in HostState:
            state.add_metric([name, one], int(one is host.info.state))
    yield from (pending, flying, allowed, state)


def _engines(samples: tuple[EngineSample, ...]) -> "Iterator[GaugeMetricFamily | CounterMetricFamily]":
    for field, text in (
        ("slots", "Captions that a worker can write at once."),
        ("in_use", "Captions that a worker is writing."),
        ("waiting", "Prepared pictures that wait for a slot."),
    ):
        yield _gauge(f"engine_{field}", text, "worker", {str(one.worker): getattr(one, field) for one in samples})
    for field, text in (
        ("captions", "Captions that a worker has finished since it began."),
        ("tokens", "Tokens that a worker has generated since it began."),
    ):
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(f"{PREFIX}engine_{field}", text, labels=["worker"])
        for one in samples:
            family.add_metric([str(one.worker)], getattr(one, field))
        yield family


def _gpus(samples: tuple[GpuSample, ...]) -> "Iterator[GaugeMetricFamily]":
    for name, text, values in (
        ("gpu_load_ratio", "Share of time with a kernel running.", [(s.gpu, s.load_percent, 0.01) for s in samples]),
        ("gpu_memory_used_bytes", "Memory in use.", [(s.gpu, s.memory_used, 1.0) for s in samples]),
        ("gpu_memory_bytes", "Memory of the GPU.", [(s.gpu, s.memory_total, 1.0) for s in samples]),
        ("gpu_power_watts", "Power drawn.", [(s.gpu, s.power_w, 1.0) for s in samples]),
    ):
        known = {str(gpu): value * unit for gpu, value, unit in values if value is not None}
        yield _gauge(name, text, "gpu", known)


def _gauge_family(name: str, text: str, labels: list[str]) -> "GaugeMetricFamily":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(PREFIX + name, text, labels=labels)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> "GaugeMetricFamily":
    family = _gauge_family(name, text, [label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _single(name: str, text: str, value: float) -> "GaugeMetricFamily":
    family = _gauge_family(name, text, [])
    family.add_metric([], value)
    return family


def _total(name: str, text: str, value: float) -> "CounterMetricFamily":
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(PREFIX + name, text, value=value)
