"""The demo: a whole run over drawn pictures, with failures on the way, checked word for word."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from etl.demo.archive import DemoRecord, build_archive, write_manifest
from etl.demo.server import HOST, DemoServer
from etl.domain.statuses import RecordOutcome
from etl.domain.views import FailureFilter, Progress
from etl.errors import UsageError
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan, Report
from etl.settings import DEMO_MODEL, Settings
from etl.state.read.failures import failed_items
from etl.state.read.reader import Reader
from etl.state.store import Store
from etl.text import clean

MANIFEST = "manifest.jsonl"
EXPORT = "captions.jsonl"

SHOWN_ROWS = 3
"""Rows of the table; the rest is counted."""

Show = Callable[[Progress], None]


class Screen(Protocol):
    """Where the demo is told."""

    def write(self, line: str) -> None:
        """Say one line."""

    def watch(self) -> AbstractContextManager[Show]:
        """Yield what shows the progress of one run."""

    def draw(self, picture: bytes, caption: str) -> bool:
        """Draw a picture beside its caption; return false where nothing can be drawn."""


def run_demo(settings: Settings, directory: Path | None, pictures: int, screen: Screen) -> bool:
    """Caption at least four drawn pictures end to end and tell it line by line; return whether all ended as it should.

    The state is thrown away unless a ``directory`` is given, which must be new or empty; the export then lies there
    as ``captions.jsonl``.  Of ``settings`` only those that belong to the machine count.

    Raises `UsageError` when the directory is not empty, and what the stages raise.
    """
    with contextlib.ExitStack() as stack:
        if directory:
            state = _checked(directory)
        else:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-demo-")))
        stack.enter_context(_no_proxies())
        server = stack.enter_context(DemoServer())
        good = _Demo(_demo_settings(settings, state), server, build_archive(server, pictures), screen).run()
        if directory:
            shown = clean(str(state))
            screen.write(f"kept in {shown}, captions in {clean(str(state / EXPORT))}; look around:")
            screen.write(f"  etl dashboard --state {shown}    # or status, failures, why scene-0001, report")
        else:
            screen.write("`etl demo DIRECTORY` keeps all this to look at; your own: `etl run PICTURES`")
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

    def __init__(self, settings: Settings, server: DemoServer, records: list[DemoRecord], screen: Screen) -> None:
        self._settings = settings
        self._server = server
        self._records = records
        self._screen = screen
        self._write = screen.write

    def run(self) -> bool:
        state, write = self._settings.state, self._write
        write_manifest(self._records, state / MANIFEST)
        urls = len({record.path for record in self._records})
        write(f"{len(self._records)} records, {urls} URLs of drawn pictures on a server of this machine; some fail")
        plan = Plan(fetch=True, caption=True, sources=(str(state / MANIFEST),), output=str(state / EXPORT))
        first = self._run("first run", plan)
        failing = {record.key for record in self._records if record.error_class or record.heals}
        as_planned = self._show_failures() == failing and first.failed == len(failing)

        self._server.heal()
        with Store.open(self._settings, create=False) as store:
            again = sum(store.retry_failed(FailureFilter()).values())
        write(f"the server is mended, and `etl retry-failed` gives {again} pictures another chance")
        self._run("second run", dataclasses.replace(plan, sources=()))
        lost = self._show_failures()
        hopeless = {record.key for record in self._records if record.error_class}
        if lost == hopeless:
            write("  as it should be: there is no picture behind these URLs")

        right = self._show_captions()
        first_url = self._records[0].path
        write(f"{first_url} has two records and was fetched {_times(self._server.requests[first_url])}")
        return as_planned and lost == hopeless and right and self._server.requests[first_url] == 1

    def _run(self, name: str, plan: Plan) -> Report:
        begun = time.monotonic()
        with self._screen.watch() as show:
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
        told = ", ".join(f"{failure.key} {failure.error_class}" for failure in failures[:SHOWN_ROWS])
        more = f" and {len(failures) - SHOWN_ROWS} more" if len(failures) > SHOWN_ROWS else ""
        self._write(f"  failed: {told}{more}")
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
        # The one with the most to say, of those that any library opens.
        plain = [record for record in wanted if record.format in ("JPEG", "PNG")]
        told = max(plain, key=lambda record: len(record.caption or ""))
        if wrong or not self._screen.draw(self._server.body(told.path), str(told.caption)):
            rows = [
                (record.key, record.format, str(captions.get(record.key)), "WRONG" if record in wrong else "right")
                for record in shown
            ]
            for line in _table(rows):
                self._write(line)
        self._write(f"{len(wanted) - len(wrong)} of {len(wanted)} captions are right, word for word")
        return not wrong


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
