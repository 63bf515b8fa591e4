"""What failed in one way, a page at a time: the same rows as ``etl failures``, and those that will be tried again."""

from collections.abc import Iterator
from typing import Any

from etl.domain.statuses import Stage
from etl.domain.views import Failure
from etl.state.read.failures import FAILURES
from etl.state.read.reader import Reader

PAGE = 200
"""Rows of a page."""

_WAITING = "t.status IN ('ready', 'retry') AND t.error_class IS NOT NULL"


def failure_page(
    reader: Reader, stage: str, error_class: str, *, dead: bool = True, after: int = 0
) -> tuple[Failure, ...]:
    """Return the next items of a stage that failed with this class, in the order of their rows.

    ``dead`` ones are given up, the others wait for another attempt.  ``after`` is the item that ended the page before.
    """
    sql = FAILURES[Stage(stage)]
    if not dead:
        sql = sql.replace("t.status = 'dead'", _WAITING)
    rows = reader.rows(f"{sql} AND t.error_class = ? AND t.id > ? ORDER BY t.id LIMIT {PAGE}", (error_class, after))
    return tuple(_failures(stage, rows))


def _failures(stage: str, rows: list[tuple[Any, ...]]) -> Iterator[Failure]:
    for item, slug, message, *rest in rows:
        yield Failure(stage, item, slug, message or "", *rest)
