"""Which runs there were, and how they stand."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from etl.domain.statuses import RunState, Stage
from etl.domain.views import RunInfo, RunWork
from etl.state.database import known
from etl.state.lock import is_locked
from etl.state.read.reader import Reader


def latest_runs(reader: Reader, limit: int = 20) -> list[RunInfo]:
    """Return the latest runs, newest first."""
    rows = reader.rows(
        "SELECT id, uid, stages, state, started_at, heartbeat_at, ended_at, host, pid, message, "
        "CASE WHEN json_valid(config) THEN json_extract(config, '$.deadline') END FROM runs "
        "ORDER BY id DESC LIMIT ?",
        (limit,),
    )
    return [_run(reader, *row) for row in rows]


def _run(reader: Reader, number: int, uid: str, stages: str, state: str, *rest: Any) -> RunInfo:
    started, heartbeat, ended, host, pid, message, deadline = rest
    if ended is None and not is_locked(reader.state):
        # Nobody holds the kernel's lock: the process is gone, however fresh its heartbeat.
        state = RunState.CRASHED
    return RunInfo(
        id=number,
        uid=uid,
        stages=tuple(filter(None, stages.split(","))),
        state=known(RunState, state),
        started_at=started,
        heartbeat_at=heartbeat,
        ended_at=ended,
        host=host,
        pid=pid,
        message=message,
        stops_at=_unix_ms(deadline),
    )


def work_of_runs(reader: Reader, runs: Sequence[int]) -> dict[int, RunWork]:
    """Return what each of these runs has done."""
    counts: Counter[tuple[int, str]] = Counter()
    for run, stage, failed, n in reader.rows(
        "SELECT run, stage, error_class IS NOT NULL, count(*) FROM attempts WHERE run >= ? GROUP BY 1, 2, 3",
        (min(runs, default=0),),
    ):
        counts[run, "failed" if failed else stage] += n
    return {run: RunWork(counts[run, Stage.FETCH], counts[run, Stage.CAPTION], counts[run, "failed"]) for run in runs}


def run_began_at(reader: Reader, run: str) -> int | None:
    """Return when a run began, Unix milliseconds, by its uid, the beginning of that, or its number."""
    number = int(run) if run.isdecimal() and len(run) < 12 else None
    runs = reader.rows("SELECT started_at, uid, id FROM runs WHERE uid LIKE ? || '%' OR id = ?", (run, number))
    for is_it in (lambda uid, _: uid == run, lambda _, id_: id_ == number, lambda *_: len(runs) == 1):
        for started_at, *names in runs:
            if is_it(*names):
                return int(started_at)
    return None


def _unix_ms(moment: Any) -> int | None:
    """Return a run's deadline, which is stored as a moment with its zone; ``None`` for what is none."""
    try:
        return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None
    except (ValueError, TypeError, OverflowError):
        return None
