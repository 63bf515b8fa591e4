"""Everything known of one record: what ``etl why`` and the dashboard tell."""

from typing import Any

from etl.domain.statuses import Stage
from etl.state.database import ENGINE_VERSION
from etl.state.read.reader import Reader
from etl.state.record_captions import CAPTIONS_OF_RECORDS, PROMPT_OF_RECORD


def record_story(reader: Reader, key: str) -> dict[str, Any] | None:
    """Return everything known of one record: its line, source, image, captions and attempts."""
    record = _one(
        reader,
        "SELECT r.id, r.key, m.path AS manifest, r.position AS line, r.state, r.outcome, r.error_class, r.error, "
        f"r.source, {PROMPT_OF_RECORD} AS prompt FROM records r JOIN manifests m ON m.id = r.manifest WHERE r.key = ?",
        key,
    )
    if record is None:
        return None
    source = _one(reader, "SELECT * FROM sources WHERE id = ?", record.pop("source"))
    image = _one(reader, "SELECT * FROM images WHERE id = ?", source["image"]) if source else None
    captions = reader.dicts(
        f"SELECT c.*, p.model, p.revision, p.current FROM {CAPTIONS_OF_RECORDS} JOIN recipes p ON p.id = c.recipe "
        "WHERE r.key = ? ORDER BY c.id",
        key,
    )
    attempts = _attempts(reader, Stage.FETCH, source["id"]) if source else []
    for caption in captions:
        caption["earlier"] = _earlier(reader, caption["id"])
        attempts += _attempts(reader, Stage.CAPTION, caption["id"])
    line = reader.rows("SELECT line FROM record_lines WHERE record = ?", (record.pop("id"),))[0][0]
    return {
        "record": record,
        "source": source,
        "image": image,
        "captions": captions,
        "attempts": attempts,
        "line": bytes(line).decode("utf-8", "replace"),
    }


def _earlier(reader: Reader, caption: int) -> list[dict[str, Any]]:
    """Return what a caption was before it was made again, oldest first."""
    if reader.version < ENGINE_VERSION:
        return []
    return reader.dicts("SELECT * FROM earlier_captions WHERE caption = ? ORDER BY id", caption)


def _attempts(reader: Reader, stage: Stage, item: int) -> list[dict[str, Any]]:
    return reader.dicts(
        "SELECT stage, n, run, started_at, ended_at, error_class, message FROM attempts "
        "WHERE stage = ? AND item = ? ORDER BY id",
        stage,
        item,
    )


def _one(reader: Reader, sql: str, *arguments: object) -> dict[str, Any] | None:
    found = reader.dicts(sql, *arguments)
    return found[0] if found else None
