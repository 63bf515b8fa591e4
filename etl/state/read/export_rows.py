"""What an export says of each record."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from etl.domain.items import SIGNED
from etl.state.database import ENGINE_VERSION, FLAGS_VERSION, HOSTS_VERSION
from etl.state.read.manifests import as_it_came
from etl.state.read.reader import PAGE, Reader
from etl.state.record_captions import caption_of_record

ERROR_CHARS = 513
"""Of what went wrong: more than people read of it on a line."""


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One record with what became of it, for the export.

    ``error_class`` is the caption's, else the source's, else the record's own.  ``text`` and what follows is of the
    caption that counts: one that is to be made again counts as it was until the new one is done.  ``failed_at`` is when
    the caption or source failed for good, where that is known; ``working_sha256`` is ``None`` for a picture that is not
    in the cache; ``image_flags`` have commas between them.  ``mime`` and ``image_bytes`` are the original's;
    ``reduced`` is 1 where the working copy has fewer pixels.  ``error`` says what went wrong, cut to `ERROR_CHARS`; it
    and ``host`` are empty where there is none.  ``url`` is without the mark of one that was signed.
    """

    position: int
    record: int
    key: str
    state: str
    outcome: str
    line: bytes
    error_class: str | None
    text: str | None
    done_at: int | None
    finish_reason: str | None
    tokens: int | None
    flags: str | None
    repetition_penalty: float | None
    image_sha256: str | None
    mirror: str | None
    url: str | None
    failed_at: int | None
    working_sha256: str | None
    image_flags: str | None
    mime: str | None
    image_bytes: int
    reduced: int
    host: str
    error: str


def export_rows(
    reader: Reader, manifest: int, recipe: int | None, after: tuple[int, int] = (0, 0)
) -> Iterator[ExportRow]:
    """Yield the records of one manifest in its order, removed ones left out, joined with one recipe's captions.

    Begins behind the record with the position and number ``after``.
    """
    sql = _export_sql(reader.version)
    while rows := reader.page(sql, (recipe, manifest, *after, PAGE), line=5):
        for row in rows:
            found = ExportRow(*row[:-1])
            line = as_it_came(reader, found.line, row[-1])
            yield found if line is found.line else replace(found, line=line)
        after = rows[-1][:2]


def _export_sql(version: int) -> str:
    """Return the query for one page, in `ExportRow`'s order, the line's hash behind, for a database of this version.

    Its arguments are the recipe, the manifest, position and record behind which to begin, and the number of rows.
    """
    mirror = "s.mirror" if version >= HOSTS_VERSION else "NULL"
    flags, skipped = ("i.flags", "c.skipped") if version >= FLAGS_VERSION else ("NULL", "NULL")
    sql = _EXPORT.format(mirror=mirror, flags=flags, skipped=skipped)
    return ("" if version >= ENGINE_VERSION else _NOTHING_AGAIN) + sql


_NOTHING_AGAIN = """
WITH captions AS (SELECT *, NULL AS repetition_penalty FROM main.captions),
earlier_captions AS (SELECT *, id AS caption FROM captions WHERE false)
"""
"""What a database knew before captions could be made again, in the words of the one that does."""

_EXPORT = f"""
SELECT r.position, r.id, r.key, r.state,
  CASE WHEN c.status = 'done' OR e.id IS NOT NULL THEN 'captioned'
       WHEN s.status = 'dead' OR c.status = 'dead' THEN 'failed'
       WHEN {{skipped}} IS NOT NULL THEN 'skipped' ELSE 'pending' END,
  l.line, CASE WHEN c.status = 'dead' THEN c.error_class WHEN s.status = 'dead' THEN s.error_class
               ELSE r.error_class END,
  iif(e.id, e.text, c.text), iif(e.id, e.done_at, c.done_at), iif(e.id, e.finish_reason, c.finish_reason),
  iif(e.id, e.tokens, c.tokens), iif(e.id, e.flags, c.flags), iif(e.id, e.repetition_penalty, c.repetition_penalty),
  i.sha256, {{mirror}}, iif(s.url LIKE '%{SIGNED}', substr(s.url, 1, length(s.url) - {len(SIGNED)}), s.url),
  CASE WHEN c.status = 'dead' THEN coalesce(c.done_at, (SELECT max(a.ended_at) FROM attempts a
         WHERE a.stage = 'caption' AND a.item = c.id))
       WHEN s.status = 'dead' THEN coalesce(s.done_at, (SELECT max(a.ended_at) FROM attempts a
         WHERE a.stage = 'fetch' AND a.item = s.id)) END,
  iif(i.state = 'present', i.working_sha256, NULL), {{flags}}, i.mime, coalesce(i.bytes, 0),
  coalesce(i.working_width * i.working_height < i.width * i.height, 0), coalesce(s.host, ''),
  coalesce(substr(CASE WHEN c.status = 'dead' THEN c.error WHEN s.status = 'dead' THEN s.error ELSE r.error END,
                  1, {ERROR_CHARS}), ''),
  r.line_sha256
FROM records r
JOIN record_lines l ON l.record = r.id
LEFT JOIN sources s ON s.id = r.source
LEFT JOIN images i ON i.id = s.image
{caption_of_record("?")}
LEFT JOIN earlier_captions e
  ON e.id = CASE WHEN c.status <> 'done' THEN (SELECT max(x.id) FROM earlier_captions x WHERE x.caption = c.id) END
WHERE r.manifest = ? AND (r.position, r.id) > (?, ?) AND r.state <> 'removed'
ORDER BY r.position, r.id LIMIT ?
"""
