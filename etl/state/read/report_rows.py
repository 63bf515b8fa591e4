"""What a report shows of each record, and what was done when: short reads over a whole state."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from etl.domain.statuses import RecordState, Stage
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.manifests import all_manifests
from etl.state.read.reader import Reader
from etl.state.read.titles import title_and_date

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
    """

    record: ExportRow
    title: str
    date: str


def report_rows(reader: Reader, recipe: int | None) -> Iterator[ReportRow]:
    """Yield the records of all manifests in their order; those that were not selected are left out."""
    for manifest, *_ in all_manifests(reader):
        for row in export_rows(reader, manifest, recipe):
            if row.state != RecordState.UNSELECTED:
                yield _cut(row)


def _cut(row: ExportRow) -> ReportRow:
    """Return a record with its title and date, and nothing that may be long: many are held at once."""
    title, date = title_and_date(row.line)
    return ReportRow(
        record=dataclasses.replace(row, line=b"", text=row.text and row.text[: CAPTION + 1]),
        title=(title or "")[: LINE + 1],
        date=(date or "")[: LINE + 1],
    )


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
