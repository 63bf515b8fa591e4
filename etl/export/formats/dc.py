"""Dublin Core as CSV, for catalogues."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etl.clock import iso_utc
from etl.data_urls import is_data
from etl.domain.statuses import RecordOutcome
from etl.export.columns import cell, fields_of
from etl.export.format import Sink
from etl.export.formats.csv import CsvFormat
from etl.export.lines import Joined
from etl.state.read.titles import title_and_date

_FROM = {
    "dc:title": "title name label titre titel",
    "dc:creator": "creator author photographer artist creators",
    "dc:subject": "subject subjects keywords tags",
    "dc:publisher": "publisher",
    "dc:contributor": "contributor contributors",
    "dc:date": "date year created issued",
    "dc:language": "language lang",
    "dc:relation": "relation ispartof collection series",
    "dc:coverage": "coverage spatial place location",
    "dc:rights": "rights license licence copyright",
}
"""The elements that are taken from a record, and the fields that are looked for, in this order."""

_HEADER = (
    "dc:identifier", "dc:title", "dc:creator", "dc:subject", "dc:description", "dcterms:abstract", "dc:publisher",
    "dc:contributor", "dc:date", "dc:type", "dc:format", "dc:source", "dc:language", "dc:relation", "dc:coverage",
    "dc:rights", "dcterms:provenance",
)  # fmt: skip
_PREFIX = re.compile(r"^(dcterms|dublincore|dc)(?=.)")


@dataclass(frozen=True)
class DublinCore(CsvFormat):
    """A row for each record; several values of a field have ``|`` between them."""

    name = "dc"
    help = "a CSV with the elements of Dublin Core, `dc:title` and so on (below)"

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write header and rows."""
        self.put(stream, self._rows(records))

    def _rows(self, records: Iterator[Joined]) -> Iterator[Iterable[str]]:
        yield _HEADER
        for record in records:
            values = elements(record)
            yield [values.get(name, "") for name in _HEADER]


def elements(record: Joined) -> dict[str, str]:
    """Return what is known of a record in the elements of Dublin Core.

    The caption is the description, with a statement of what wrote it as provenance; a description that the record has
    itself is then the abstract, as nobody should take one for the other.
    """
    row, fields = record.row, _by_plain_name(fields_of(record.line))
    found = {element: _first(fields, names) for element, names in _FROM.items()}
    title, date = title_and_date(row.line)
    found |= {"dc:title": found["dc:title"] or title or "", "dc:date": found["dc:date"] or date or ""}
    own = _first(fields, "description")
    found |= {"dc:identifier": row.key, "dc:type": "StillImage", "dc:format": row.mime or ""}
    found["dc:source"] = "" if is_data(row.url or "") else row.url or ""
    if record.outcome != RecordOutcome.CAPTIONED:
        return found | {"dc:description": own}
    by = f"written by a machine: {record.recipe}, {iso_utc(row.done_at or 0)}"
    return found | {
        "dc:description": row.text or "",
        "dcterms:abstract": own,
        "dcterms:provenance": f"dc:description was {'taken from a file' if record.is_given else by}",
    }


def _by_plain_name(fields: Mapping[str, Any]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in fields.items():
        plain = _PREFIX.sub("", re.sub(r"[\W_]", "", name).casefold())
        text = "|".join(map(cell, value)) if isinstance(value, list) else cell(value)
        named[plain] = named.get(plain) or text
    return named


def _first(fields: Mapping[str, str], names: str) -> str:
    return next((text for name in names.split() if (text := fields.get(name, "").strip())), "")


FORMAT = DublinCore
