"""How each host fares, written about once a second so that other processes and the next run know it too."""

from collections.abc import Sequence

from etl.clock import now_ms
from etl.domain.statuses import HostState
from etl.domain.views import HostInfo
from etl.state.database import Connection, known

_COLUMNS = "host, state, reason, until, allowed, in_flight, done, failed, bytes, busy_ms"


class HostLog:
    """Writes rows of ``hosts`` for one run.  Counts are sums over all runs, so they only ever grow."""

    def __init__(self, connection: Connection, run: int) -> None:
        self._connection = connection
        self._run = run

    def record(self, hosts: Sequence[HostInfo]) -> None:
        """Write how the given hosts fare now; their counts are what came since the last call for the host."""
        now = now_ms()
        with self._connection.transaction("fetch.hosts") as db:
            db.conn.executemany(
                f"INSERT INTO hosts ({_COLUMNS}, run, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (host) DO UPDATE SET state = excluded.state, reason = excluded.reason, "
                "until = excluded.until, allowed = excluded.allowed, in_flight = excluded.in_flight, "
                "done = done + excluded.done, failed = failed + excluded.failed, bytes = bytes + excluded.bytes, "
                "busy_ms = busy_ms + excluded.busy_ms, run = excluded.run, updated_at = excluded.updated_at",
                [
                    (
                        info.host,
                        info.state,
                        info.reason,
                        info.until,
                        info.allowed,
                        info.in_flight,
                        info.done,
                        info.failed,
                        info.bytes,
                        info.busy_ms,
                        self._run,
                        now,
                    )
                    for info in hosts
                ],
            )

    def pauses(self) -> dict[str, HostInfo]:
        """Return the hosts whose pause or parking, as an earlier run wrote it, is not over yet."""
        rows = self._connection.rows(
            "SELECT host, state, reason, until FROM hosts WHERE state IN ('paused', 'parked') AND until > ?",
            (now_ms(),),
        )
        return {
            host: HostInfo(host=host, state=known(HostState, state), reason=reason, until=until)
            for host, state, reason, until in rows
        }
