"""A deadline: what may be written, when claiming ends for it, and what a run says that it cut short."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from support.common_check import check_state
from support.etl_process import Program
from support.watching import wait_for
from support.workbench import PlainCaptioner, Workbench, scenes, write_manifest
from support.zygote import Zygote

from etl.caption.stage import caption
from etl.cli.progress_rows import progress_line
from etl.cli.run_report import report_lines
from etl.clock import stops_at
from etl.deadline import Deadline, moment
from etl.domain.items import CaptionItem
from etl.domain.statuses import RunState, Stage
from etl.domain.views import Progress, StageSummary
from etl.errors import ConfigError
from etl.export.stage import export_seconds
from etl.run import pipeline
from etl.run.kept_back import SPARE_S, KeptBack
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.run.supervisor import run_stages
from etl.run_control import GRACE_S, RunControl
from etl.settings import Settings
from etl.settings.sources import load_settings
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs
from etl.state.store import Store

pytestmark = pytest.mark.usefixtures("forked_decoders")

NOW = datetime.fromisoformat("2026-11-25T17:30:10+00:00")


@pytest.fixture(autouse=True)
def in_montreal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time with summer time, so that days of 23 and 25 hours are among them."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/Montreal")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("12:31", "2026-11-25T17:31:00"),
        ("12:30", "2026-11-26T17:30:00"),
        ("9:05:30", "2026-11-26T14:05:30"),
        ("2026-11-25T17:40", "2026-11-25T22:40:00"),
        ("2026-11-25 17:40:00+02:00", "2026-11-25T15:40:00"),
        ("2026-11-25T17:40Z", "2026-11-25T17:40:00"),
        ("90m", "2026-11-25T19:00:10"),
        ("2h30m", "2026-11-25T20:00:10"),
        (" +2h ", "2026-11-25T19:30:10"),
        ("1d45s", "2026-11-26T17:30:55"),
    ],
)
def test_what_may_be_written(text: str, utc: str) -> None:
    """A time is the next such local one; a moment without a zone is local; a duration counts from now."""
    assert moment(text, NOW) == datetime.fromisoformat(f"{utc}+00:00")


def test_the_next_time_of_the_day_is_one_of_the_clock_on_the_wall() -> None:
    """In the night in which summer time begins, tomorrow's noon is 23 hours behind today's."""
    noon = datetime.fromisoformat("2026-03-07T12:00:00-05:00")
    assert moment("12:00", noon) - noon == timedelta(hours=23)


@pytest.mark.parametrize("text", ["2h30", "soon", "25:00", "12:60", "2026-11-25", "-5m", "h", "+", "2026-13-01T10:00"])
def test_what_may_not(text: str) -> None:
    """Anything else is a wrong setting, wherever it stands, and the message says what is accepted."""
    with pytest.raises(ConfigError, match="90m, 2h30m"):
        load_settings(environment={"ETL_DEADLINE": text})


def test_a_file_may_hold_times_of_its_own(tmp_path: Path) -> None:
    """TOML's local times and moments are taken as they are."""
    file = tmp_path / "etl.toml"
    for value in ("17:30:00", "2026-11-25T17:30:00Z", '"90m"'):
        file.write_text(f"deadline = {value}\n")
        moment(load_settings(file=file, environment={}).deadline, NOW)


def test_one_that_is_over_begins_nothing(tmp_path: Path) -> None:
    """It is refused before a model is looked for or a state made."""
    settings = Settings(state=tmp_path / "state", deadline="2020-01-01T00:00", model=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="is over"):
        run_pipeline(settings, Plan(caption=True, sources=("m.jsonl",)), lambda _: None)
    assert not (tmp_path / "state").exists()


def test_it_is_measured_with_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A jump of the wall clock moves nothing."""
    deadline = Deadline.begin("1h")
    assert deadline is not None
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 3500 < deadline.left() <= 3600


def test_what_is_kept_back_is_said() -> None:
    """How long before the deadline nothing is begun any more, and what for; where that is all of it, too."""
    plain = "20s for what is in flight, 5s to end"
    assert KeptBack(0).line(3600) == f"the deadline is in 1h 00m; in the last 25s nothing is begun ({plain})"
    assert KeptBack(6).line(20) == (
        f"the deadline is in 20s, and the last 31s are kept back ({plain}, 6s for the export): "
        "nothing new is begun, give a later one"
    )


@pytest.mark.parametrize(
    ("left_s", "shown"),
    [(4320, "stops at 13:42 (in 1h 12m)"), (720, "stops at 12:42 (in 12m 00s)"), (45, "stops at 12:30 (in 45s)"),
     (-3, "stops at 12:30 (now)"), (2 * 86400, "stops at 2026-11-27 12:30 (in 2d 0h)")],
)  # fmt: skip
def test_how_it_is_shown(left_s: int, shown: str) -> None:
    """The time of the day in local time, with the date when that is another one, and how long it is until then."""
    now = round(NOW.timestamp() * 1000)
    assert stops_at(now + left_s * 1000, now) == shown


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """Six local pictures, ingested and not fetched."""
    bench = Workbench(tmp_path, batch_size=1)
    for n, (_, body) in enumerate(scenes(6)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    bench.ingest(*(str(tmp_path / f"{n}.jpg") for n in range(6)))
    return bench


def left_in(seconds: float) -> str:
    """Return a deadline before which claiming ends in so many seconds."""
    at = datetime.now().astimezone() + timedelta(seconds=seconds + GRACE_S + SPARE_S + export_seconds(6))
    return at.isoformat()


def test_what_is_in_flight_is_finished_and_nothing_else_claimed(bench: Workbench) -> None:
    """When the time comes the caption at work is still committed; what was not begun stays due."""
    bench.fetch()
    controls: list[RunControl] = []
    begun = []

    def before(item: CaptionItem) -> None:
        begun.append(item.id)
        if len(begun) == 3:
            wait_for(lambda: controls[0].stopping, 30)

    def stage(store: Store, run: int, control: RunControl) -> StageSummary:
        controls.append(control)
        return caption(store, run, bench.settings, PlainCaptioner(before=before), control)

    with Store.open(bench.settings) as store, store.run((Stage.CAPTION,)) as run:
        result = run_stages(store, run, {Stage.CAPTION: stage}, stop_at=time.monotonic() + 1.0)
    assert (result.state, result.deadline, result.summaries[Stage.CAPTION].done) == (RunState.INTERRUPTED, True, 3)
    assert bench.counts("captions") == {"done": 3, "ready": 3}


def test_the_export_is_written_in_time_and_the_run_says_what_is_left(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less left than work in flight may take, no model is loaded, nothing claimed, and what there is exported."""
    monkeypatch.setattr(pipeline, "open_captioner", lambda *_: pytest.fail("a model that nobody has time for"))
    output = bench.state.parent / "out.jsonl"
    settings = dataclasses.replace(bench.settings, deadline="20s")
    shown: list[Progress] = []
    report = run_pipeline(settings, Plan(fetch=True, caption=True, output=str(output)), shown.append)
    assert (report.deadline, report.state, report.signal) == (True, RunState.INTERRUPTED, None)
    assert output.read_bytes() == (bench.state.parent / "manifest.jsonl").read_bytes()
    with Reader(bench.state) as reader:
        (run,) = latest_runs(reader, 1)
    assert run.message == "deadline reached, 6 records left"
    assert run.stops_at is not None
    assert 15_000 < run.stops_at - run.started_at <= 20_000
    assert "stops at " in progress_line(shown[-1], 0.0)
    assert bench.counts("sources") == {"ready": 6}


def test_a_model_that_is_still_loading_is_not_waited_for(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time comes the run goes on to its export without whoever loads, and what is fetched is kept."""
    loads, free = threading.Event(), threading.Event()
    captioner = PlainCaptioner()

    def load(*_: object) -> PlainCaptioner:
        loads.set()
        assert free.wait(60)
        return captioner

    monkeypatch.setattr(pipeline, "open_captioner", load)
    output = bench.state.parent / "out.jsonl"
    settings = dataclasses.replace(bench.settings, deadline=left_in(3.0))
    try:
        report = run_pipeline(settings, Plan(fetch=True, caption=True, output=str(output)), lambda _: None)
        assert (loads.is_set(), report.deadline, report.exported is not None) == (True, True, True)
        assert RunControl.abandoned()
    finally:
        free.set()
    wait_for(lambda: captioner.closed and not RunControl.abandoned(), 30)
    assert bench.counts("sources") == {"done": 6}
    assert bench.rows("SELECT count(*) FROM recipes") == [(0,)]


def test_what_was_finished_before_is_no_matter_of_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with nothing left to do is done, however late it is."""
    monkeypatch.setattr(pipeline, "open_captioner", lambda *_: PlainCaptioner())
    plan = Plan(fetch=True, caption=True)
    assert run_pipeline(bench.settings, plan, lambda _: None).state is RunState.DONE
    report = run_pipeline(dataclasses.replace(bench.settings, deadline="5s"), plan, lambda _: None)
    assert (report.state, report.deadline) == (RunState.DONE, False)


def test_a_manifest_that_is_not_read_to_its_end_is_not_exported(bench: Workbench, tmp_path: Path) -> None:
    """Half a manifest would be half an export; the next run reads on."""
    output = tmp_path / "out.jsonl"
    plan = Plan(fetch=True, sources=(str(tmp_path / "manifest.jsonl"),), output=str(output))
    write_manifest(tmp_path / "manifest.jsonl", [{"id": "new", "url": str(tmp_path / "0.jpg")}])
    report = run_pipeline(dataclasses.replace(bench.settings, deadline="4s"), plan, lambda _: None)
    assert (report.deadline, report.exported, output.exists()) == (True, None, False)
    assert (
        list(report_lines(report, "etl export o", "o"))[-1] == "o was not written; `etl export o` writes what there is"
    )
    assert bench.rows("SELECT message FROM runs ORDER BY id DESC LIMIT 1")[0][0].startswith("deadline reached before")


def test_the_program_ends_with_a_code_of_its_own(tmp_path: Path, plain_zygote: Zygote) -> None:
    """`etl fetch` that its deadline cut short exits 6 and says what is left; run again, it finishes."""
    program = Program(tmp_path, zygote=plain_zygote)
    (tmp_path / "0.jpg").write_bytes(scenes(1)[0][1])
    manifest = write_manifest(tmp_path / "manifest.jsonl", [{"id": "r0", "url": str(tmp_path / "0.jpg")}])
    assert program.run("ingest", manifest).code == 0
    cut = program.run("fetch", "--deadline", "20s")
    assert (cut.code, "deadline reached, 1 picture left; run the same command again" in cut.stderr) == (6, True)
    assert "nothing new is begun, give a later one" in cut.stderr.splitlines()[0]
    assert program.status()["run"]["stops_at"] is not None
    late = program.run("fetch", "--deadline", "2020-01-01T00:00")
    assert (late.code, late.stderr.count("\n"), "is over" in late.stderr) == (2, 1, True)
    assert program.run("fetch", "--deadline", "1h").code == 0
    check_state(program.state)
