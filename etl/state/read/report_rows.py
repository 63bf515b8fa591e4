"""What a report shows of each record, and what was done when: short reads over a whole state."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from etl.domain.statuses import RecordState, Stage
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.manifests import all_manifests
from etl.state.read.reader import Reader
from etl.state.read.titles import title_and_date
from etl.state.record_captions import caption_of_record

PAGE = 500
"""Records whose sources and pictures are read at once."""

LINE = 512
"""Characters of any text but a caption: what people read of it on a line, and the longest key of a record."""

CAPTION = 4_000
"""Characters of a caption; the longest that a model may write has fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One record that was selected, or could not be used.

    Attributes:
        record: what the export says of it, but for its line; its caption is cut to a little more than `CAPTION`.
        title, date: what the line calls the picture, cut to a little more than `LINE`; empty where it does not.
        url, host: of its source, whole; empty where it has none.
        error: what went wrong, for people, cut as the title; empty where nothing did.
        working_sha256: names its working copy; ``None`` where the cache holds none.
    """

    record: ExportRow
    title: str
    date: str
    url: str
    host: str
    error: str
    working_sha256: str | None


def report_rows(reader: Reader, recipe: int | None) -> Iterator[ReportRow]:
    """Yield the records of all manifests in their order; those that were not selected are left out."""
    for manifest, *_ in all_manifests(reader):
        rows = (_cut(row) for row in export_rows(reader, manifest, recipe) if row.state != RecordState.UNSELECTED)
        while page := list(itertools.islice(rows, PAGE)):
            more = _details(reader, recipe, [row.record for row, *_ in page])
            for row, title, date in page:
                url, host, error, sha256 = more[row.record]
                yield ReportRow(
                    record=row, title=title, date=date, url=url, host=host, error=error, working_sha256=sha256
                )


def _cut(row: ExportRow) -> tuple[ExportRow, str, str]:
    """Return a record with its title and date, and nothing that may be long: many are held at once."""
    title, date = title_and_date(row.line)
    text = row.text and row.text[: CAPTION + 1]
    return dataclasses.replace(row, line=b"", text=text), (title or "")[: LINE + 1], (date or "")[: LINE + 1]


def _details(reader: Reader, recipe: int | None, records: list[int]) -> dict[int, tuple[str, str, str, str | None]]:
    found = reader.rows(
        "SELECT r.id, coalesce(s.url, ''), coalesce(s.host, ''), "
        "coalesce(substr(CASE WHEN c.status = 'dead' THEN c.error WHEN s.status = 'dead' THEN s.error "
        f"ELSE r.error END, 1, {LINE + 1}), ''), "
        "CASE WHEN i.state = 'present' THEN i.working_sha256 END "
        "FROM records r LEFT JOIN sources s ON s.id = r.source LEFT JOIN images i ON i.id = s.image "
        f"{caption_of_record('?')} WHERE r.id IN (SELECT value FROM json_each(?))",
        (recipe, json.dumps(records)),
    )
    return {number: (url, host, error, sha256) for number, url, host, error, sha256 in found}


def count_reported(reader: Reader) -> int:
    """Return how many rows `report_rows` yields."""
    rows = reader.rows("SELECT count(*) FROM records WHERE state IN ('active', 'invalid')")
    return int(rows[0][0])


def failures_by_host(reader: Reader) -> list[tuple[str, str, int]]:
    """Return ``(host, error class, records)`` of the dead sources, most first; hosts of local files are empty."""
    return reader.rows(
        "SELECT s.host, s.error_class, count(*) FROM sources s "
        "JOIN records r ON r.source = s.id AND r.state = 'active' WHERE s.status = 'dead' "
        "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    )


def finished_by_time(reader: Reader, stage: Stage, width_ms: int) -> Counter[int]:
    """Return how many sources or captions were finished in each ``width_ms`` of Unix time, by its beginning."""
    table = {Stage.FETCH: "sources", Stage.CAPTION: "captions"}[stage]
    rows = reader.rows(
        f"SELECT done_at / ?1 * ?1, count(*) FROM {table} WHERE status = 'done' AND done_at IS NOT NULL GROUP BY 1",
        (width_ms,),
    )
    return Counter(dict(rows))
