"""What failed: the items that were given up, those that will be tried again, and which of them somebody means."""

from collections.abc import Iterator
from dataclasses import dataclass

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter
from etl.state.read.reader import PAGE, Reader
from etl.state.record_captions import CURRENT_RECIPE, asked_by_record, records_of_caption

SHOWN = 200
"""Items on a page of `failure_page`."""

CURRENT = f"recipe = {CURRENT_RECIPE}"
"""Condition over ``captions``: those of the current recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One line of ``etl failures``: a failed item and one record that needs it.

    Attributes:
        stage: where it failed (`Stage`).
        item: row in the stage's queue.
        key: key of the first record that needs the item, or of the invalid record.
        records: number of active records that need it.
    """

    stage: str
    item: int
    error_class: str
    message: str
    key: str
    url: str
    attempts: int
    records: int = 1


_OF_SOURCE = "FROM records r WHERE r.source = t.id AND r.state = 'active'"
_OF_CAPTION = records_of_caption("t")

_ITEMS = {
    Stage.INGEST: (
        "SELECT t.id, t.error_class, t.error, t.key, coalesce((SELECT url FROM sources WHERE id = t.source), ''), 0, 1 "
        "FROM records t"
    ),
    Stage.FETCH: (
        f"SELECT t.id, t.error_class, t.error, coalesce((SELECT r.key {_OF_SOURCE} ORDER BY r.id LIMIT 1), ''), "
        f"t.url, t.attempts, (SELECT count(*) {_OF_SOURCE}) FROM sources t"
    ),
    Stage.CAPTION: (
        f"SELECT t.id, t.error_class, t.error, coalesce((SELECT r.key {_OF_CAPTION} ORDER BY r.id LIMIT 1), ''), "
        f"coalesce((SELECT s.url {_OF_CAPTION} ORDER BY r.id LIMIT 1), ''), t.attempts, "
        f"(SELECT count(*) {_OF_CAPTION}) FROM captions t"
    ),
}
"""Per stage: item, error_class, message, key, url, attempts, records; in `Failure`'s order."""

_HOSTS = {
    Stage.INGEST: "coalesce((SELECT host FROM sources WHERE id = t.source), '')",
    Stage.FETCH: "t.host",
    Stage.CAPTION: "coalesce((SELECT s.host FROM sources s WHERE s.image = t.image ORDER BY s.id LIMIT 1), '')",
}

_FAILED = {Stage.INGEST: "t.state = 'invalid'", Stage.FETCH: "t.status = 'dead'", Stage.CAPTION: "t.status = 'dead'"}
_WILL_RETRY = "t.status IN ('ready', 'retry') AND t.error_class IS NOT NULL"

_FILTERS = {
    Stage.INGEST: {
        "host": "t.source IN (SELECT id FROM sources WHERE host = ?)",
        "key": "t.key = ?",
    },
    Stage.FETCH: {
        "host": "t.host = ?",
        "key": "t.id = (SELECT source FROM records WHERE key = ?)",
    },
    Stage.CAPTION: {
        "host": "t.image IN (SELECT image FROM sources WHERE host = ?)",
        "key": asked_by_record("t", "r.key = ?"),
    },
}


def filter_condition(stage: Stage, chosen: FailureFilter) -> tuple[str, list[str]]:
    """Return ``AND ...`` conditions over the stage's items ``t`` that a filter means, and their arguments.

    Captions of an earlier recipe are never meant: nobody would work on them.
    """
    conditions = {"t.error_class = ?": chosen.error_class} | {
        sql: getattr(chosen, name) for name, sql in _FILTERS[stage].items()
    }
    given = {sql: value for sql, value in conditions.items() if value is not None}
    recipe = f" AND t.{CURRENT}" if stage is Stage.CAPTION else ""
    return recipe + "".join(f" AND {sql}" for sql in given), list(given.values())


def failed_items(reader: Reader, chosen: FailureFilter | None = None, limit: int | None = None) -> Iterator[Failure]:
    """Yield failed items and invalid records, by stage and error class."""
    chosen = chosen or FailureFilter()
    if chosen.flag is not None:
        return
    for stage, sql in _ITEMS.items():
        if chosen.stage not in (None, stage):
            continue
        # In the order of the partial indexes over failed items: by number, a page would look at every item.
        after = ("", 0)
        while limit is None or limit > 0:
            size = PAGE if limit is None else min(PAGE, limit)
            condition, arguments = filter_condition(stage, chosen)
            rows = reader.rows(
                f"{sql} WHERE {_FAILED[stage]}{condition} AND (t.error_class, t.id) > (?, ?) "
                "ORDER BY t.error_class, t.id LIMIT ?",
                (*arguments, *after, size),
            )
            yield from (_failure(stage, *row) for row in rows)
            limit = None if limit is None else limit - len(rows)
            if len(rows) < size:
                break
            after = (rows[-1][1], rows[-1][0])


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed items of one stage with one class and host, which is empty for local files; ``key`` is of one of them."""

    stage: str
    error_class: str
    host: str
    items: int
    key: str


def failure_groups(reader: Reader, chosen: FailureFilter) -> list[FailureGroup]:
    """Return how many items failed, by stage, class and host, the largest groups first."""
    groups = []
    for stage, sql in _ITEMS.items():
        if chosen.stage not in (None, stage):
            continue
        table = sql.rpartition(" FROM ")[2]
        condition, arguments = filter_condition(stage, chosen)
        for slug, host, n, item in reader.rows(
            f"SELECT t.error_class, {_HOSTS[stage]}, count(*), min(t.id) FROM {table} "
            f"WHERE {_FAILED[stage]}{condition} GROUP BY 1, 2",
            arguments,
        ):
            key = reader.rows(f"{sql} WHERE t.id = ?", (item,))[0][3]
            groups.append(FailureGroup(stage=stage, error_class=slug or "", host=host, items=n, key=key))
    return sorted(groups, key=lambda group: -group.items)


def failure_page(
    reader: Reader, stage: str, error_class: str, *, failed: bool = True, after: int = 0
) -> tuple[Failure, ...]:
    """Return the next items of a stage that failed with this class, in the order of their rows.

    The ``failed`` ones are given up, the others will be tried again.  ``after`` is the item that ended the page before.
    """
    stage = Stage(stage)
    where = _FAILED[stage] if failed else _WILL_RETRY
    condition, arguments = filter_condition(stage, FailureFilter(error_class=error_class))
    rows = reader.rows(
        f"{_ITEMS[stage]} WHERE {where}{condition} AND t.id > ? ORDER BY t.id LIMIT {SHOWN}", (*arguments, after)
    )
    return tuple(_failure(stage, *row) for row in rows)


def _failure(
    stage: Stage, item: int, slug: str, message: str | None, key: str, url: str, attempts: int, records: int
) -> Failure:
    return Failure(
        stage=stage,
        item=item,
        error_class=slug,
        message=message or "",
        key=key,
        url=url,
        attempts=attempts,
        records=records,
    )


def failure_classes(reader: Reader) -> list[tuple[str, str, int]]:
    """Return ``(stage, error_class, count)`` of everything that has failed or is invalid."""
    return [
        (stage, slug or "", n)
        for stage, table, where in (
            (Stage.INGEST, "records", "state = 'invalid'"),
            (Stage.FETCH, "sources", "status = 'dead'"),
            (Stage.CAPTION, "captions", f"status = 'dead' AND {CURRENT}"),
        )
        for slug, n in reader.rows(f"SELECT error_class, count(*) FROM {table} WHERE {where} GROUP BY error_class")
    ]


def retry_classes(reader: Reader) -> list[tuple[str, str, int]]:
    """Return ``(stage, error_class, count)`` of everything that failed and will be tried again."""
    return [
        (stage, slug or "", n)
        for stage, table, where in ((Stage.FETCH, "sources", "true"), (Stage.CAPTION, "captions", CURRENT))
        for slug, n in reader.rows(
            f"SELECT error_class, count(*) FROM {table} WHERE status IN ('ready', 'retry') "
            f"AND {where} AND error_class IS NOT NULL GROUP BY error_class"
        )
    ]
