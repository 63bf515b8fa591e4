"""Metrics: whatever a scrape says is what the state says, while a run lasts and in a form that Prometheus reads."""

import contextlib
import json
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fault_server import FaultServer, status
from support.made_state import MadeState
from support.workbench import scenes

from etl.domain.statuses import HostState, Stage
from etl.domain.views import EngineSample, GpuSample, HostInfo
from etl.errors import ConfigError
from etl.ingest.options import IngestOptions
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.settings import Settings
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs
from etl.state.store import Store
from etl.telemetry.metrics import StateMetrics, metrics

Samples = dict[tuple[str, ...], float]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> Samples:
    """Return every sample by its name and the values of its labels, in the order of their names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix("caption_etl_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.contextmanager
def served(state: Path) -> Iterator[int]:
    """Serve a state's metrics; yield the port."""
    port = free_port()
    with metrics(state, "127.0.0.1", port):
        yield port


def test_a_scrape_is_what_the_state_says(tmp_path: Path) -> None:
    """Counts, failures, flags, cost, hosts, engines, GPUs and the run, each under its name."""
    state = MadeState(tmp_path, gpu_price=1e6)
    lines = [{"id": f"r{n}", "url": f"http://a.example/{n}.jpg"} for n in range(6)]
    state.ingest("".join(json.dumps(line) + "\n" for line in lines).encode())
    state.finish({"r0": "A", "r1": "B"}, dead_sources={"r2": "http_404"}, flags=("echo",), model="some/llava")
    with Store.open(state.settings) as store:
        run = store.begin_run([Stage.CAPTION])
        store.hosts(run).record(
            [HostInfo(host="a.example", state=HostState.SLOWED, reason="slow", allowed=4, in_flight=3)]
        )
        store.record_engine(run, EngineSample(worker=0, slots=32, in_use=30, waiting=5, captions=700, tokens=9000))
        store.record_gpu(run, GpuSample(0, 97, 30_000, 80_000, None))
        with served(state.settings.state) as port:
            seen = scrape(port)
    assert seen["records", "active"] == 6
    assert (seen["outcomes", "captioned"], seen["outcomes", "failed"], seen["outcomes", "pending"]) == (2, 1, 3)
    assert (seen["sources", "dead"], seen["captions", "done"]) == (1, 2)
    assert seen["failed_items", "http_404", "fetch"] == 1
    assert seen["flagged_captions", "echo"] == 2
    assert seen["fetched_bytes_total",] == 200
    assert seen["cost_total",] > 0
    assert (seen["host_requests_in_flight", "a.example"], seen["host_requests_allowed", "a.example"]) == (3, 4)
    assert (seen["host_state", "a.example", "slowed"], seen["host_state", "a.example", "open"]) == (1, 0)
    assert (seen["engine_slots", "0"], seen["engine_tokens_total", "0"]) == (32, 9000)
    assert (seen["gpu_load_ratio", "0"], seen["gpu_memory_used_bytes", "0"]) == (0.97, 30_000)
    assert ("gpu_power_watts", "0") not in seen
    assert (seen["run_state", "running"], seen["run_state", "done"]) == (1, 0)
    assert 0 <= seen["run_heartbeat_age_seconds",] < 60
    assert any(key[:3] == ("info", "some/llava", "0123abcd") for key in seen)


def test_a_state_without_a_run_can_be_asked(tmp_path: Path) -> None:
    """Nothing is known of hosts, engines and costs, and that is no error."""
    state = MadeState(tmp_path)
    state.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n')
    with Reader(state.settings.state) as reader:
        reader._db.execute("PRAGMA query_only = ON")
        names = [family.name for family in StateMetrics(reader).collect()]
    assert "caption_etl_records" in names
    assert "caption_etl_cost" not in names


def test_names_of_strangers_break_no_line(tmp_path: Path) -> None:
    """A host's name with quotes and line ends stays one label of one sample."""
    state = MadeState(tmp_path)
    state.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n')
    hostile = 'a"} 1\ncaption_etl_records{state="active"} 99\n\x1b[31m\\'
    with Store.open(state.settings) as store:
        store.hosts(store.begin_run([Stage.FETCH])).record([HostInfo(host=hostile, state=HostState.NOT_ANSWERING)])
        with served(state.settings.state) as port:
            seen = scrape(port)
    assert seen["records", "active"] == 1
    assert [key[1] for key in seen if key[0] == "host_requests_allowed" and "\n" not in key[1] and 'a"}' in key[1]]


def test_a_run_is_watched_while_it_lasts(tmp_path: Path) -> None:
    """With --metrics-port a run answers from its beginning, and no longer than to its end."""
    port, seen = free_port(), list[Samples]()
    with FaultServer() as server:
        urls = [server.add(f"/{n}.jpg", body) for n, (_, body) in enumerate(scenes(3))]
        server.fail("/1.jpg", status(404))
        manifest = tmp_path / "manifest.jsonl"
        manifest.write_text("".join(json.dumps({"url": url}) + "\n" for url in urls), encoding="utf-8")
        settings = Settings(
            state=tmp_path / "state", allow_host=("127.0.0.1",), min_free=0, decoders=1, metrics_port=port
        )
        plan = Plan(fetch=True, sources=(str(manifest),), options=IngestOptions())
        run_pipeline(settings, plan, lambda _: seen.append(scrape(port)))
    assert seen[0]["records", "active"] == 3
    assert seen[0]["run_state", "running"] == 1
    assert (seen[-1]["sources", "done"], seen[-1]["sources", "dead"]) == (2, 1)
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_port_that_is_taken_is_told_before_anything_begins(tmp_path: Path) -> None:
    """One line that names the port and the option; no run is on record."""
    state = MadeState(tmp_path)
    state.ingest(b'{"id": "1", "url": "http://a.example/1.jpg"}\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        state.change(metrics_port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{taken.getsockname()[1]} .*--metrics-port"):
            run_pipeline(state.settings, Plan(fetch=True), lambda _: None)
    with Reader(state.settings.state) as reader:
        assert [run.stages for run in latest_runs(reader)] == [("ingest",)]


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus-client is wanted only by those who ask for metrics."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with metrics(tmp_path, "127.0.0.1", 0):
        pass
    with (
        pytest.raises(ConfigError, match=r"pip install 'prometheus-client<1"),
        metrics(tmp_path, "127.0.0.1", 1),
    ):
        pass
