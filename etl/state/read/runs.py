"""Which runs there were, and how they stand."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from etl.domain.statuses import RunState, Stage
from etl.domain.views import RunInfo, RunWork
from etl.state.database import known
from etl.state.lock import is_locked
from etl.state.read.reader import Reader
from etl.state.record_captions import records_of_caption


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


_ENDED = "r.state IN ('done', 'partial')"
"""Of a run that did all it had to do: then what failed last did so for good; after a stop it may wait for another."""

_FAILED = f"""
SELECT a.run, sum(CASE a.stage
  WHEN 'fetch' THEN (SELECT count(*) FROM records WHERE source = a.item AND state = 'active')
  ELSE (SELECT count(*) {records_of_caption("c")}) END)
FROM attempts a JOIN runs r ON r.id = a.run
LEFT JOIN sources o ON a.stage = 'fetch' AND o.id = a.item LEFT JOIN captions c ON a.stage = 'caption' AND c.id = a.item
WHERE a.error_class IS NOT NULL AND a.run >= ? AND ({_ENDED} OR coalesce(o.status, c.status) = 'dead')
AND NOT EXISTS (SELECT 1 FROM attempts b WHERE b.stage = a.stage AND b.item = a.item AND b.id > a.id
  AND (b.run = a.run OR NOT {_ENDED}))
GROUP BY a.run"""


def work_of_runs(reader: Reader, runs: Sequence[int]) -> dict[int, RunWork]:
    """Return what each of these runs has done; an attempt that failed counts only where none came after it."""
    first = min(runs, default=0)
    rows = reader.rows(
        "SELECT run, stage, count(*) FROM attempts WHERE run >= ? AND error_class IS NULL GROUP BY 1, 2", (first,)
    )
    done = {(run, stage): n for run, stage, n in rows}
    failed = dict(reader.rows(_FAILED, (first,)))
    return {
        run: RunWork(done.get((run, Stage.FETCH), 0), done.get((run, Stage.CAPTION), 0), failed.get(run, 0))
        for run in runs
    }


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
