"""The demo: a whole run over drawn pictures, with failures on the way, checked word for word."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from etl.demo.archive import DemoRecord, build_archive, write_manifest
from etl.demo.server import HOST, DemoServer
from etl.domain.statuses import QueueStatus, RecordOutcome
from etl.domain.views import FailureFilter, Progress
from etl.errors import UsageError
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan, Report
from etl.settings import DEMO_MODEL, Settings
from etl.state.read.failures import Failure, failed_items
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.text import clean

MANIFEST = "manifest.jsonl"
EXPORT = "captions.jsonl"

SHOWN_ROWS = 12
"""Rows of a table; the rest is counted."""

PROGRESS_S = 5.0
"""Seconds between two lines of progress."""


def run_demo(settings: Settings, directory: Path | None, pictures: int, *, write: Callable[[str], None]) -> bool:
    """Caption at least four drawn pictures end to end and tell it line by line; return whether all ended as it should.

    The state is thrown away unless a ``directory`` is given, which must be new or empty; the export then lies there
    as ``captions.jsonl``.  Of ``settings`` only those that belong to the machine count.

    Raises `UsageError` when the directory is not empty, and what the stages raise.
    """
    with contextlib.ExitStack() as stack:
        if directory:
            state = _checked(directory)
            write(f"the state is kept in {clean(str(state))}")
        else:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-demo-")))
            write(f"the state lies in {state} and is removed at the end")
        stack.enter_context(_no_proxies())
        server = stack.enter_context(DemoServer())
        good = _Demo(_demo_settings(settings, state), server, build_archive(server, pictures), write).run()
        if directory:
            _tell_where_next(state, write)
    return good


def _checked(directory: Path) -> Path:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty; the demo wants a directory of its own")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _demo_settings(settings: Settings, state: Path) -> Settings:
    """Return the defaults, whatever the user's model and limits are, with attempts that do not take long."""
    return Settings(
        state=state,
        model=DEMO_MODEL,
        device=settings.device,
        dtype="float32",
        decoders=settings.decoders,
        allow_host=(HOST,),
        max_attempts=2,
        backoff=0.2,
        min_free=16 * 1024**2,
    )


@contextlib.contextmanager
def _no_proxies() -> Iterator[None]:
    """Hide the environment's proxies: none of them reaches this machine's loopback address."""
    hidden = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


class _Demo:
    """The demo at work."""

    def __init__(
        self, settings: Settings, server: DemoServer, records: list[DemoRecord], write: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._server = server
        self._records = records
        self._write = write

    def run(self) -> bool:
        state, write = self._settings.state, self._write
        write_manifest(self._records, state / MANIFEST)
        urls = len({record.path for record in self._records})
        write(f"{len(self._records)} records with {urls} URLs on {self._server.base}")
        plan = Plan(fetch=True, caption=True, sources=(str(state / MANIFEST),), output=str(state / EXPORT))
        first = self._run("first run", plan)
        failing = {record.key for record in self._records if record.error_class or record.heals}
        as_planned = self._show_failures() == failing and first.failed == len(failing)

        self._server.heal()
        with Store.open(self._settings, create=False) as store:
            again = sum(store.retry_failed(FailureFilter()).values())
        write(f"the server is healed; retry-failed: {again} sources are ready again")
        self._run("second run", dataclasses.replace(plan, sources=()))
        lost = self._show_failures()
        hopeless = {record.key for record in self._records if record.error_class}
        if lost == hopeless:
            write("these stay failed, as they should: there is no picture behind their URLs")

        right = self._show_captions()
        first_url = self._records[0].path
        write(f"{first_url} has two records and was fetched {_times(self._server.requests[first_url])}")
        return as_planned and lost == hopeless and right and self._server.requests[first_url] == 1

    def _run(self, name: str, plan: Plan) -> Report:
        begun = shown = time.monotonic()

        def show(now: Progress) -> None:
            nonlocal shown
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                fetched, captioned = (counts.get(QueueStatus.DONE, 0) for counts in (now.sources, now.captions))
                self._write(f"{name}: {fetched} pictures fetched, {captioned} captions so far")

        report = run_pipeline(self._settings, plan, show)
        if report.signal is not None:
            self._write(f"{name}: stopped")
            raise SystemExit(128 + report.signal)
        captioned = report.progress.outcomes.get(RecordOutcome.CAPTIONED, 0)
        took = time.monotonic() - begun
        self._write(f"{name}: {captioned} records captioned, {report.failed} failed, {took:.1f} s")
        return report

    def _show_failures(self) -> set[str]:
        """Show what failed; return its keys, each with the error class that it should have had where that differs."""
        expected = {record.key: record.error_class for record in self._records}
        with Reader(self._settings.state) as reader:
            failures = list(failed_items(reader))
        for failure in failures[:SHOWN_ROWS]:
            self._write(clean(_failure_line(failure), _width()))
        if len(failures) > SHOWN_ROWS:
            self._write(f"  ... and {len(failures) - SHOWN_ROWS} more")
        return {
            failure.key
            if expected[failure.key] in (None, failure.error_class)
            else f"{failure.key} ({expected[failure.key]})"
            for failure in failures
        }

    def _show_captions(self) -> bool:
        """Show captions beside their pictures, wrong ones first; return whether all are right."""
        lines = (self._settings.state / EXPORT).read_text("utf-8").splitlines()
        captions = {row["id"]: row.get("vlm_caption") for row in map(json.loads, lines)}
        wanted = [record for record in self._records if record.caption is not None]
        wrong = [record for record in wanted if captions.get(record.key) != record.caption]
        shown = (wrong + [record for record in wanted if record not in wrong])[:SHOWN_ROWS]
        for line in _table(
            [
                (record.key, record.format, str(captions.get(record.key)), "WRONG" if record in wrong else "right")
                for record in shown
            ]
        ):
            self._write(line)
        if len(wanted) > len(shown):
            self._write(f"... and {len(wanted) - len(shown)} more")
        self._write(f"{len(wanted) - len(wrong)} of {len(wanted)} captions are right, word for word")
        return not wrong


def _failure_line(failure: Failure) -> str:
    return f"  {failure.key:<12} {failure.stage:<8} {failure.error_class:<13} {failure.message}"


def _table(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    """Yield aligned lines; the captions give way where the terminal is narrow."""
    rows = [("picture", "format", "caption", ""), *rows]
    first, second, last = (max(len(row[column]) for row in rows) for column in (0, 1, 3))
    room = max(20, _width() - first - second - last - 6)
    third = min(room, max(len(row[2]) for row in rows))
    for key, kind, caption, verdict in rows:
        yield f"{key:<{first}}  {kind:<{second}}  {clean(caption, third):<{third}}  {verdict}".rstrip()


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _tell_where_next(state: Path, write: Callable[[str], None]) -> None:
    shown = clean(str(state))
    write(f"captions in {clean(str(state / EXPORT))}; look around:")
    for command in ("status", "failures", "why scene-0001", "why gone", "runs", "dashboard"):
        write(f"  etl {command} --state {shown}")
