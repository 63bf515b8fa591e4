"""The dashboard and an idle reader beside a run with many commits: the write-ahead log stays small, nobody dies."""

import sys
import threading
from pathlib import Path

import pytest
from support.common_check import check_state
from support.terminal import Terminal
from support.watching import wait_for

from etl.domain.statuses import RunState, Stage
from etl.ingest import stage as ingest_module
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions
from etl.ingest.stage import ingest
from etl.settings import Settings
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.store import Store

MIB = 2**20

RECORDS = 30_000
LINE = 2000
"""Bytes of each: 60 MB, all of which goes through the log."""

BOUND = 32 * MIB
"""SQLite empties the log after 1,000 pages of 16 KiB, where no reader is in its way; twice that is allowed."""


def write(path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for n in range(RECORDS):
            record = f'{{"id": "r{n}", "url": "http://a.example/{n % 1000}.jpg", "note": "'
            file.write(record.ljust(LINE - 3, "x") + '"}\n')


def test_the_log_stays_small_under_a_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of commits through the log while the dashboard looks on: it never grows beyond twice its first limit."""
    monkeypatch.setattr(ingest_module, "BATCH", 100)
    manifest, state = tmp_path / "manifest.jsonl", tmp_path / "state"
    write(manifest)
    log, sizes, over = state / "state.db-wal", [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            sizes.append(log.stat().st_size)

    with Store.open(Settings(state=state)) as store, store.run((Stage.INGEST,)) as run, Reader(state) as idle:
        assert read_progress(idle).records["active"] == 0
        dashboard = Terminal([sys.executable, "-m", "tui", "--state", str(state)], 120, 40)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            wait_for(lambda: "running" in dashboard.text(), 60)
            lines = Manifest(str(manifest))
            ingest(store, lines, IngestOptions(), on_batch=lambda _: store.heartbeat(run, RunState.RUNNING))
            wait_for(lambda: f"{RECORDS:,}" in dashboard.text(), 60)
            assert dashboard.process.poll() is None
            assert read_progress(idle).records["active"] == RECORDS
            dashboard.press("q")
            assert dashboard.process.wait(30) == 0
        finally:
            over.set()
            dashboard.cut()
            watcher.join()
    assert (state / "state.db").stat().st_size > 1.5 * BOUND, "too little went through the log to prove anything"
    assert 0 < max(sizes) < BOUND
    check_state(state)
