"""The connection of those who only look: short read-only queries, each fetched whole.

The questions themselves are functions beside it, one for each.  Everything that shows a state (`etl status`, the
dashboard, exports) asks there and nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from etl.state.database import DATABASE_NAME, check_version, open_reader, translate_errors

RATE_WINDOW_MS = 60_000
"""Rates are averages over this window."""

PAGE = 2000
"""Rows read at once by the queries that walk a whole state."""

PAGE_BYTES = 32 * 1024**2
"""Bytes of manifest lines from which such a page is full, however few they are."""


class Reader:
    """Read-only access to one state directory; use as a context manager.

    Attributes:
        version: of the schema when it was opened; readers do not migrate.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self._path = state / DATABASE_NAME
        self._db = open_reader(state)
        try:
            with translate_errors(self._path):
                self.version = check_version(self._db)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def rows(self, sql: str, arguments: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one query and fetch it whole."""
        with translate_errors(self._path):
            return list(self._db.execute(sql, arguments).fetchall())

    def page(self, sql: str, arguments: Sequence[object], line: int) -> list[tuple[Any, ...]]:
        """Run the query for a page whose column ``line`` holds manifest lines; rows beyond `PAGE_BYTES` are left."""
        rows, size = list[tuple[Any, ...]](), 0
        with translate_errors(self._path):
            cursor = self._db.execute(sql, arguments)
            for row in cursor:
                rows.append(row)
                size += len(row[line])
                if size >= PAGE_BYTES:
                    break
            cursor.close()
        return rows

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one unchanging state during the block; keep it short beside a live run."""
        with translate_errors(self._path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def dicts(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one query and fetch it whole, each row as a dictionary by the names of its columns."""
        with translate_errors(self._path):
            cursor = self._db.execute(sql, arguments)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
