"""How progress and estimates read: hosts, errors, time left; and where log lines go beside the bars."""

import io
import logging
import sys

import pytest

from etl.cli.hosts import estimate_lines
from etl.cli.options import Context
from etl.cli.progress import _log_above_bars
from etl.cli.progress_rows import progress_line
from etl.cli.render import note_wrapped, progress_json, status_lines
from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo, HostProgress, Progress
from etl.fetch.estimate import FetchEstimate, HostEstimate
from etl.settings import Settings

QUEUE = {"done": 1200, "dead": 12, "retry": 3, "ready": 785}


def test_the_plain_line_tells_hosts_errors_and_time() -> None:
    """One line has counts, rates, bytes, the time left, the most frequent errors, and each host with its trouble."""
    slow = HostInfo(
        host="slow.test",
        state=HostState.NOT_ANSWERING,
        reason="8 sources failed in a row: timeout",
        until=now_ms() + 25_400,
    )
    now = Progress(
        records={},
        outcomes={},
        sources=QUEUE,
        captions={},
        fetched_per_s=4.2,
        bytes_per_s=12.5 * 2**20,
        fetch_seconds=2040.0,
        fetch_errors={"timeout": 9, "http_404": 3, "dns": 1, "reset": 1, "tls": 1},
        hosts=(
            HostProgress(slow, 300),
            HostProgress(HostInfo(host="good.test", in_flight=4), 485, 4.2, 12.5 * 2**20),
            HostProgress(HostInfo(host="done.test"), 0),
        ),
    )
    line = progress_line(now, 4.2)
    assert line.count("\n") == 0
    assert "fetch 1,200/2,000 (12 failed, 3 will retry) 4.2/s 12.5 MiB/s, 34m" in line
    assert "errors: 9 timeout, 3 http_404, 1 dns, 1 reset, 1 other" in line
    assert "host slow.test 300 to come, not answering, asked again in 25s: 8 sources failed in a row: timeout" in line
    assert "host good.test 4.2/s 12.5 MiB/s, 4 at once, 485 to come" in line
    assert "done.test" not in line


def test_people_read_words_and_programs_read_codes() -> None:
    """`etl status` says failed, will retry and not needed; its JSON keeps the codes of the database."""
    now = Progress(records={}, outcomes={}, sources={"dead": 2, "retry": 1, "cancelled": 4}, captions={"done": 3})
    assert "sources   1 will retry, 2 failed, 4 not needed" in list(status_lines(now))
    assert progress_json(now)["sources"]["cancelled"] == 4


def test_names_of_hosts_cannot_act_on_the_terminal() -> None:
    """Host names and reasons come from outside; their control characters are shown, not sent."""
    host = HostProgress(HostInfo(host="a\x1b[2J.test", state=HostState.SLOWED, reason="after \x1b]0;x"), 1)
    assert "\x1b" not in progress_line(
        Progress(records={}, outcomes={}, sources=QUEUE, captions={}, hosts=(host,)), 0.0
    )


def test_an_estimate_says_what_it_does_not_know() -> None:
    """Hosts without a rate are named, the others' time is told; a small disk is said loudly; thousands are counted."""
    hosts = (
        HostEstimate(host="one.test", sources=10, retries=2, bytes=5 * 2**20, unknown=0, seconds=90.0),
        HostEstimate(host="two.test", sources=3, retries=0, bytes=0, unknown=3, seconds=None),
    )
    lines = list(estimate_lines(FetchEstimate(hosts, None, 10 * 2**20, 2**20), refresh=False))
    assert lines[0] == "13 pictures to fetch, 5.0 MiB and 3 of unknown size"
    assert lines[1] == "host      one.test: 10 pictures, 2 of them after a failure, 5.0 MiB, about 1m 30s"
    assert lines[2] == "host      two.test: 3 pictures, sizes not known"
    assert "about 1m 30s for the others; not known for two.test" in lines[3]
    assert lines[4].endswith("1.0 MiB free: NOT ENOUGH")
    lines = list(estimate_lines(FetchEstimate(hosts[1:] * 1000, None, 2**20, 2**20), refresh=False))
    assert lines[20:22] == [lines[1], "hosts     980 more: 2,940 pictures"]
    assert "not known for two.test, two.test, two.test, two.test and 996 more: fetch" in lines[22]


def test_log_lines_go_above_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """While bars are drawn, log lines take the way that the bars have laid; afterwards their own again."""
    before, above = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(before)
    logging.getLogger().addHandler(handler)
    try:
        monkeypatch.setattr(sys, "stderr", above)
        with _log_above_bars():
            logging.getLogger("etl.net").warning("a host does not answer")
        logging.getLogger("etl.net").warning("it answers again")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "a host does not answer\n" in above.getvalue()
    assert before.getvalue() == "it answers again\n"


def test_lines_that_are_wider_than_the_terminal_break_at_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal what follows is indented; elsewhere each is one line, for who looks through a log."""
    context = Context(Settings(), json=False, quiet=False)
    monkeypatch.setenv("COLUMNS", "40")
    note_wrapped(context, "took      1m 57s, 0.1 pictures/s fetched, on the CPU")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    note_wrapped(context, "took      1m 57s, 0.1 pictures/s fetched, on the CPU")
    assert capsys.readouterr().err.splitlines() == [
        "took      1m 57s, 0.1 pictures/s fetched, on the CPU",
        "took      1m 57s, 0.1 pictures/s",
        "          fetched, on the CPU",
    ]
