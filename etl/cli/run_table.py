"""How ``etl runs`` looks: one row for each run, as wide as the terminal."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from etl.clock import now_ms
from etl.domain.statuses import LIVE, Stage
from etl.domain.views import RunInfo, RunWork
from etl.text import clean
from etl.units import duration

_HEADER = (
    f"{'run':>5} {'began':<11} {'took':>9} {'did':<7} {'fetched':>8} {'captioned':>9} {'failed':>6} {'rate':>7} outcome"
)
_MORE = 110
"""Columns from which machine, uid and message are told too."""


def run_lines(runs: list[RunInfo], work: Mapping[int, RunWork], width: int) -> Iterator[str]:
    """Yield a header and a line for each run; what a terminal has no room for is cut off."""
    if not runs:
        yield "there was no run yet"
        return
    wide = width >= _MORE
    yield _HEADER + "      machine, process, uid, message" * wide
    for run in runs:
        done = work[run.id]
        took = ((run.ended_at or (now_ms() if run.state in LIVE else run.heartbeat_at)) - run.started_at) / 1000
        row = (
            f"{run.id:>5} {_began(run.started_at):<11} {duration(took):>9} {_did(run):<7} {_n(done.fetched):>8} "
            f"{_n(done.captioned):>9} {_n(done.failed):>6} {_rate(done, took):>7} {run.state:<11}"
        )
        more = f"  {run.host} {run.pid}  {run.uid}  {run.message or ''}" if wide else ""
        yield clean(f"{row}{more}".rstrip(), width)


def _did(run: RunInfo) -> str:
    """Return the command that the run was."""
    both = Stage.FETCH in run.stages and Stage.CAPTION in run.stages
    return "run" if both else "+".join(run.stages)


def _began(moment: int) -> str:
    try:
        return f"{datetime.fromtimestamp(moment / 1000):%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "?"


def _n(number: int) -> str:
    return f"{number:,}" if number else "-"


def _rate(work: RunWork, seconds: float) -> str:
    """Return what was captioned in a second, or fetched where nothing was captioned."""
    done = work.captioned or work.fetched
    if not done or seconds <= 0:
        return "-"
    rate = done / seconds
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"
