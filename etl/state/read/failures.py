"""How the failed items of each stage are found: the SQL behind ``etl failures`` and the dashboard."""

from etl.domain.statuses import Stage
from etl.domain.views import FailureFilter

CURRENT = "recipe = (SELECT id FROM recipes WHERE current = 1)"
"""Condition over ``captions``: those of the current recipe."""

_OF_SOURCE = "FROM records r WHERE r.source = t.id AND r.state = 'active'"
_OF_CAPTION = (
    "FROM sources s JOIN records r ON r.source = s.id "
    "WHERE s.image = t.image AND r.prompt = t.prompt AND r.state = 'active'"
)

FAILURES = {
    Stage.INGEST: (
        "SELECT t.id, t.error_class, t.error, t.key, coalesce((SELECT url FROM sources WHERE id = t.source), ''), 0, 1 "
        "FROM records t WHERE t.state = 'invalid'"
    ),
    Stage.FETCH: (
        f"SELECT t.id, t.error_class, t.error, coalesce((SELECT r.key {_OF_SOURCE} ORDER BY r.id LIMIT 1), ''), "
        f"t.url, t.attempts, (SELECT count(*) {_OF_SOURCE}) FROM sources t WHERE t.status = 'dead'"
    ),
    Stage.CAPTION: (
        f"SELECT t.id, t.error_class, t.error, coalesce((SELECT r.key {_OF_CAPTION} ORDER BY r.id LIMIT 1), ''), "
        f"coalesce((SELECT s.url {_OF_CAPTION} ORDER BY r.id LIMIT 1), ''), t.attempts, "
        f"(SELECT count(*) {_OF_CAPTION}) FROM captions t WHERE t.status = 'dead' AND t.{CURRENT}"
    ),
}
"""Per stage: item, error_class, message, key, url, attempts, records; in `Failure`'s order."""


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
        "key": "(t.image, t.prompt) = (SELECT s.image, r.prompt FROM records r JOIN sources s ON s.id = r.source "
        "WHERE r.key = ?)",
    },
}


def failure_condition(stage: Stage, chosen: FailureFilter) -> tuple[str, list[str]]:
    """Return ``AND ...`` conditions over the item ``t`` for what was chosen, and their arguments."""
    conditions = {"t.error_class = ?": chosen.error_class} | {
        sql: getattr(chosen, name) for name, sql in _FILTERS[stage].items()
    }
    given = {sql: value for sql, value in conditions.items() if value is not None}
    return "".join(f" AND {sql}" for sql in given), list(given.values())
