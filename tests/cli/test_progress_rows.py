"""What is drawn of a run: one line for each thing, however narrow the terminal and whatever hosts are called."""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.fault_server import FaultServer, hang
from support.terminal import Terminal
from support.watching import wait_for

from etl.cli.progress import Screen, can_draw
from etl.cli.progress_rows import Pace, progress_line
from etl.domain.statuses import HostState, RunState
from etl.domain.views import Download, HostInfo, HostProgress, Progress, RunInfo

Etl = Callable[..., Any]

HOSTILE = "\u202eevil\x1b[2J" + "x" * 300 + "\n.\u6f22\u5b57.test"
REASON = "8 sources failed in a row: " + "connection reset by peer \t" * 30
NOON = 1_800_000_000_000


def a_run(stages: tuple[str, ...], state: RunState = RunState.RUNNING) -> RunInfo:
    """Return a run that began 12 minutes before `NOON`."""
    return RunInfo(
        id=1, uid="u", stages=stages, state=state, started_at=NOON - 720_000, heartbeat_at=NOON, ended_at=None,
        host="h", pid=1,
    )  # fmt: skip


def hosts(*names: str) -> tuple[HostProgress, ...]:
    """Return hosts in trouble."""
    return tuple(
        HostProgress(HostInfo(host=name, state=HostState.NOT_ANSWERING, reason=REASON, until=NOON), 55, 0.1, 300.0)
        for name in names
    )


WHOLE = Progress(
    records={"active": 14_659, "unselected": 163}, outcomes={"captioned": 1_200, "failed": 34, "pending": 13_425},
    sources={"done": 900, "dead": 32, "retry": 55, "ready": 8_872}, captions={"done": 700, "ready": 200},
    fetched_per_s=4.2, captioned_per_s=3.1, bytes_per_s=12.5 * 2**20, fetch_seconds=2040.0, at=NOON,
    run=a_run(("ingest", "fetch", "caption")), spent=1.2, device="NVIDIA H200", fetch_errors={"http_404": 12},
    hosts=hosts("slow.test", HOSTILE, *(f"host-{n}.test" for n in range(9))), more_hosts=(3_990, 8_000),
)  # fmt: skip
FETCH_ONLY = Progress(
    records={"active": 20}, outcomes={"pending": 20}, sources={"done": 5, "ready": 15}, captions={}, at=NOON,
    fetched_per_s=1.0, fetch_seconds=15.0, run=a_run(("fetch",)), hosts=hosts(HOSTILE),
)  # fmt: skip
HUGE = Progress(
    records={"active": 14_659_000}, outcomes={"captioned": 1_234_567, "pending": 13_424_433},
    sources={"done": 12_345_678, "dead": 1_111_111, "retry": 55, "ready": 1}, captions={}, fetched_per_s=4.2, at=NOON,
    run=a_run(("fetch", "caption"), RunState.STOPPING), spent=1_234_567.8, device="8 x " + "NVIDIA " * 30,
    download=Download(3 * 2**30, 14 * 2**30, 85 * 2**20), hosts=hosts(HOSTILE),
)  # fmt: skip
CASES = {"whole": (WHOLE, 3.0), "fetch": (FETCH_ONLY, 1.0), "huge": (HUGE, 0.01), "empty": (Progress(
    records={}, outcomes={}, sources={}, captions={}), 0.0)}  # fmt: skip


def drawn(now: Progress, per_s: float, width: int, height: int) -> list[str]:
    """Return the lines that a terminal of this size shows."""
    screen, stream = Screen(), io.StringIO()
    screen.show(Progress(**{name: getattr(now, name) for name in now.__slots__} | {"at": now.at - 100_000}))
    screen.show(now)
    screen._per_s = per_s
    Console(file=stream, force_terminal=True, color_system=None, width=width, height=height).print(screen)
    return stream.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("width, height", [(60, 20), (80, 24), (120, 30), (30, 6)])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_wider_than_the_terminal(case: str, width: int, height: int) -> None:
    """Each line fits, with a column to spare, and so do all together; nothing acts on the terminal."""
    lines = drawn(*CASES[case], width, height)
    assert max(map(cell_len, lines)) < width
    assert len(lines) <= height - 2
    assert "\x1b" not in "".join(lines) and "\u202e" not in "".join(lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_total_and_finish_are_always_there(width: int) -> None:
    """However many hosts have however much to tell, the first line has bar, done of all that is selected, and when."""
    lines = drawn(WHOLE, 3.0, width, 24)
    assert lines[0].startswith("records  ━") and "─ 1,234/14,659  8 %  ETA " in lines[0]
    assert "3.0/s  12m 00s so far" in lines[1] and "1h 14m left" in lines[1]
    assert ("1.20 spent" in lines[1], "NVIDIA H200" in lines[1]) == (True, width > 60)
    assert lines[2].startswith("fetch    ━") and "900/9,859  4.2/s  32 failed" in lines[2]
    assert lines[3].startswith("caption  ━") and "1,200/14,659  3.1/s" in lines[3]
    assert lines[4] == "errors   12 http_404"
    assert all(line.startswith("host     ") for line in lines[5:]) and len(lines) <= 9
    assert lines[-1].startswith("host     (3,998 more)  ")
    assert lines[5].endswith("...")


def test_what_else_is_told() -> None:
    """A run that only fetches counts pictures; a download of weights has a line; a stop is told; 100 % means done."""
    assert drawn(FETCH_ONLY, 1.0, 80, 24)[0].startswith("pictures ━")
    assert not any(line.startswith("caption") for line in drawn(FETCH_ONLY, 1.0, 80, 24))
    huge = drawn(HUGE, 0.01, 120, 30)
    assert any(line.startswith("model") and "3.0 GiB/14.0 GiB  85.0 MiB/s  2m 12s left" in line for line in huge)
    assert "stopping" in huge[1]
    nearly = Progress(records={"active": 1000}, outcomes={"captioned": 999, "pending": 1}, sources={}, captions={})
    assert "99 %" in drawn(nearly, 0.0, 80, 24)[0]


def test_the_pace_is_that_of_records() -> None:
    """Records that share a caption count each; a run that stands still has no pace, and the time left is not known."""
    pace = Pace()
    seen = [
        Progress(records={"active": 100}, outcomes={"pending": 100 - done}, sources={}, captions={}, at=at)
        for at, done in ((0, 0), (10_000, 50), (400_000, 50), (401_000, 50))
    ]
    assert [pace.per_s(now) for now in seen] == [0.0, 5.0, 0.0, 0.0]
    assert "ETA --:--" in progress_line(seen[-1], 0.0)


def test_a_model_that_loads_has_no_pace() -> None:
    """What fails while it loads foretells nothing, nor do fetch's numbers; the pace is taken from when it is loaded."""
    pace = Pace()
    seen = [
        Progress(
            records={"active": 100}, outcomes={"failed": failed, "pending": 100 - failed}, sources={}, captions={},
            at=at, loading=loading, fetch_seconds=9.0,
        )
        for at, failed, loading in ((0, 0, False), (1000, 10, True), (60_000, 10, True), (61_000, 15, False))
    ]  # fmt: skip
    told = [progress_line(now, pace.per_s(now)) for now in seen]
    assert ["ETA --:--, 0.0/s;" in line for line in told] == [False, True, True, False]
    assert "15 %, ETA " in told[-1] and "5.0/s, 17s left" in told[-1]


@pytest.mark.parametrize(
    "variables, terminal, draws",
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False), ({}, False, False)],
)
def test_where_bars_are_drawn(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, draws: bool
) -> None:
    """Bars are for terminals that can be drawn on; everybody else gets plain lines."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert can_draw() == draws


def test_an_interrupt_is_answered_at_once(tmp_path: Path) -> None:
    """On a real terminal, with a host that never answers, SIGINT is answered above the bars while the run goes on."""
    with FaultServer() as server:
        server.add("/a.jpg", b"x", "image/jpeg")
        url = server.url("/a.jpg")
        server.fail("/a.jpg", hang)
        (tmp_path / "m.jsonl").write_text(f'{{"id": "a", "url": "{url}"}}\n')
        options = ["--state", str(tmp_path / "s"), "--allow-host", "127.0.0.1", "--decoders", "1"]
        program = [sys.executable, "-m", "etl.cli.app"]
        ingest = os.spawnv(
            os.P_WAIT, sys.executable, [*program, "ingest", str(tmp_path / "m.jsonl"), *options[:2], "-q"]
        )
        assert ingest == 0
        terminal = Terminal([*program, "fetch", *options], 60, 20)
        try:
            wait_for(lambda: bool(server.requests["/a.jpg"]) and "ETA" in terminal.text())
            terminal.process.send_signal(signal.SIGINT)
            wait_for(lambda: "stopping: what is in flight is finished" in terminal.text(), 30)
            assert terminal.process.poll() is None
        finally:
            terminal.cut()
