"""A state as plain values, for notebooks and scripts: each question is a short, read-only look, also beside a run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etl.domain.statuses import RecordOutcome, RecordState
from etl.domain.views import Progress
from etl.errors import ConfigError
from etl.extras import installer
from etl.state.read.export_rows import ExportRow, export_rows
from etl.state.read.failures import Failure, failed_items
from etl.state.read.manifests import all_manifests
from etl.state.read.progress import read_progress
from etl.state.read.reader import Reader
from etl.state.read.recipes import RecipeRow, all_recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a manifest and what became of it.

    Attributes:
        key: its name in the manifest.
        outcome: ``captioned``, ``failed``, ``pending`` or ``skipped``; ``unselected`` or ``invalid`` where
            nothing is to be done.
        url: the picture's URL or path; ``None`` for an invalid record.
        caption: the text, where there is one.
        error_class: why it failed (docs/errors.md), where it did.
        fields: the line itself; empty where it is no JSON object.
    """

    key: str
    outcome: str
    url: str | None
    caption: str | None
    error_class: str | None
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The caption of one record.  Records with the same picture and prompt share theirs.

    Attributes:
        key: the record's.
        url: the picture's URL or path.
        text: the caption.
        model, revision: what wrote it.
        captioned_at: when, UTC.
        finish_reason: ``stop``, ``length`` at the token limit, or ``file`` where no model made it.
        tokens: how many were generated.
        flags: what is suspicious about it (`etl.domain.statuses.QualityFlag`).
    """

    key: str
    url: str
    text: str
    model: str
    revision: str
    captioned_at: datetime
    finish_reason: str
    tokens: int
    flags: tuple[str, ...]


class State:
    """A state directory, read only.  Nothing stays open between two questions; an iterator is open while it is used.

    Raises `StateMissingError` where there is none, and `StateNewerError` for one of a newer version.
    """

    def __init__(self, path: str | Path = "state") -> None:
        self.path = Path(path)
        with Reader(self.path):
            pass

    def __repr__(self) -> str:
        return f"State({str(self.path)!r})"

    def progress(self) -> Progress:
        """Return all counts at one instant, in constant time."""
        with Reader(self.path) as reader:
            return read_progress(reader)

    def records(self) -> Iterator[Record]:
        """Yield all records, manifest by manifest and in their order, under the current recipe."""
        for row, _ in self._rows():
            idle = row.state != RecordState.ACTIVE
            yield Record(
                key=row.key,
                outcome=row.state if idle else row.outcome,
                url=row.url,
                caption=None if idle else row.text,
                error_class=row.error_class,
                fields=_fields(row.line),
            )

    def captions(self) -> Iterator[Caption]:
        """Yield the captions of the current recipe, in the order of their records."""
        for row, recipe in self._rows():
            if recipe is None or row.state != RecordState.ACTIVE or row.outcome != RecordOutcome.CAPTIONED:
                continue
            yield Caption(
                key=row.key,
                url=row.url or "",
                text=row.text or "",
                model=recipe.model,
                revision=recipe.revision,
                captioned_at=datetime.fromtimestamp((row.done_at or 0) / 1000, UTC),
                finish_reason=row.finish_reason or "",
                tokens=row.tokens or 0,
                flags=tuple(row.flags.split(",")) if row.flags else (),
            )

    def failures(self) -> Iterator[Failure]:
        """Yield what failed for good: sources, captions and lines of manifests."""
        with Reader(self.path) as reader:
            yield from failed_items(reader)

    def to_pandas(self) -> Any:
        """Return the records as a `pandas.DataFrame`, one row for each; raise `ConfigError` where pandas is missing."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(f"to_pandas needs one more package: {installer()} pandas") from error
        columns = list(Record.__slots__)
        return pandas.DataFrame(
            ([getattr(record, name) for name in columns] for record in self.records()), None, columns
        )

    def _rows(self) -> Iterator[tuple[ExportRow, RecipeRow | None]]:
        with Reader(self.path) as reader:
            recipe = next((recipe for recipe in all_recipes(reader) if recipe.current), None)
            for manifest, *_ in all_manifests(reader):
                for row in export_rows(reader, manifest, recipe.id if recipe else None):
                    yield row, recipe


def _fields(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
