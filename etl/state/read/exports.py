"""What is on record of exports to files, and what a record's caption was when one was made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etl.state.read.reader import PAGE, Reader
from etl.state.record_captions import CAPTIONS_OF_RECORDS, SURROUNDINGS, around_of, written


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """An export as JSON Lines: the run that wrote it, where, of which recipe, its rows, and the hash of its lines."""

    run: int
    path: Path
    recipe: int | None
    rows: int
    sha256: str


def last_exported_file(reader: Reader) -> ExportedFile | None:
    """Return the last export as JSON Lines that none in another form has replaced; ``None`` if it went to a pipe."""
    rows = reader.rows(
        "SELECT run, path, recipe, rows, sha256 FROM exports e WHERE format = 'jsonl' AND NOT EXISTS "
        "(SELECT 1 FROM exports x WHERE x.path = e.path AND x.id > e.id) ORDER BY id DESC LIMIT 1"
    )
    if not rows or rows[0][1] == "-":
        return None
    run, path, *rest = rows[0]
    return ExportedFile(run, Path(path), *rest)


def changed_since(reader: Reader, export: ExportedFile) -> bool:
    """Return whether later runs may have changed the records or their pictures."""
    sql = "SELECT 1 FROM runs WHERE id > ? AND (stages LIKE '%ingest%' OR stages LIKE '%fetch%')"
    return bool(reader.rows(sql, (export.run,)))


def caption_texts(reader: Reader, record: int, recipe: int | None, last_run: int | None = None) -> set[str]:
    """Return the captions that a record has or had under a recipe, up to those of ``last_run``."""
    rows = reader.rows(
        f"WITH mine AS (SELECT c.* FROM {CAPTIONS_OF_RECORDS} WHERE r.id = ?1 AND c.recipe IS ?2) "
        "SELECT text FROM mine WHERE status = 'done' AND (?3 IS NULL OR run <= ?3) "
        "UNION SELECT e.text FROM mine JOIN earlier_captions e ON e.caption = mine.id "
        "WHERE ?3 IS NULL OR e.run <= ?3",
        (record, recipe, last_run),
    )
    return {text for (text,) in rows}


def caption_surroundings(reader: Reader) -> list[tuple[str, str]]:
    """Return what exports have put before and behind captions."""
    return [around_of(name) for (name,) in reader.rows(SURROUNDINGS)]


def texts_of_record(reader: Reader, record: int) -> set[str]:
    """Return what models wrote about a record's picture, whatever they were asked."""
    captions = "records r JOIN sources s ON s.id = r.source JOIN captions c ON c.image = s.image WHERE r.id = ?"
    return {text for (text,) in reader.rows(written(captions), (record,))}


def texts_of_others(reader: Reader, *, everything: bool) -> Iterator[str]:
    """Yield what models wrote about pictures that no source has any more, or about ``everything``."""
    unused = "NOT EXISTS (SELECT 1 FROM sources s WHERE s.image = c.image)"
    sql = written(f"captions c WHERE c.id > ? AND c.id <= ? AND (? OR {unused})")
    for after in range(0, reader.rows("SELECT coalesce(max(id), 0) FROM captions")[0][0], PAGE):
        for (text,) in reader.rows(sql, (after, after + PAGE, everything)):
            yield text
