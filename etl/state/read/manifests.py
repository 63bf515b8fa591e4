"""Which manifests there are, and their lines as they were ingested."""

from collections.abc import Iterator

from etl.data_urls import holds_name, line_hash, put_back
from etl.state.database import OWN_PICTURES_VERSION, TAKEN_OUT_VERSION
from etl.state.read.reader import PAGE, Reader


def all_manifests(reader: Reader) -> list[tuple[int, str, str, bool]]:
    """Return ``(id, path, spec, complete)`` of every manifest, in the order they were first ingested."""
    return [
        (number, path, spec, bool(complete))
        for number, path, spec, complete in reader.rows("SELECT id, path, spec, complete FROM manifests ORDER BY id")
    ]


def living_elsewhere(reader: Reader) -> list[str]:
    """Return the path of every manifest that does not lie on this machine and of which a record is left."""
    rows = reader.rows(
        "SELECT path FROM manifests m WHERE path LIKE '%://%' "
        "AND EXISTS (SELECT 1 FROM records r WHERE r.manifest = m.id AND r.state <> 'removed')"
    )
    return [path for (path,) in rows]


def manifest_lines(reader: Reader, manifest: int) -> Iterator[tuple[int, int, str, bytes]]:
    """Yield ``(position, record, state, line)`` for the records of one manifest, in order, removed ones left out."""
    after = (0, 0)
    while rows := reader.page(
        "SELECT r.position, r.id, r.state, l.line FROM records r JOIN record_lines l ON l.record = r.id "
        "WHERE r.manifest = ? AND (r.position, r.id) > (?, ?) AND r.state <> 'removed' "
        "ORDER BY r.position, r.id LIMIT ?",
        (manifest, *after, PAGE),
        line=3,
    ):
        yield from rows
        after = rows[-1][:2]


def exported_lines(reader: Reader) -> Iterator[bytes]:
    """Yield the line of every record of the state that an export may have, as it was ingested."""
    after = 0
    while rows := reader.page(
        "SELECT r.id, l.line, r.line_sha256 FROM records r JOIN record_lines l ON l.record = r.id "
        "WHERE r.id > ? AND r.state <> 'removed' AND r.error_class IS NOT 'invalid_json' ORDER BY r.id LIMIT ?",
        (after, PAGE),
        line=1,
    ):
        yield from (as_it_came(reader, line, known_by) for _, line, known_by in rows)
        after = rows[-1][0]


def as_it_came(reader: Reader, line: bytes, known_by: bytes) -> bytes:
    """Return a record's line with the pictures that it held itself, which the state keeps apart.

    ``known_by`` is the hash of the record's line, which tells whether any were taken out of it.
    """
    if not holds_name(line) or reader.version < OWN_PICTURES_VERSION:
        return line
    if reader.version >= TAKEN_OUT_VERSION and known_by != line_hash(line, is_taken_out_of=True):
        return line

    def picture(url: str) -> bytes | None:
        rows = reader.rows("SELECT data FROM own_pictures WHERE url = ?", (url,))
        return rows[0][0] if rows else None

    return put_back(line, picture)


def unselected_records(reader: Reader) -> list[tuple[str, int]]:
    """Return the ``spec`` of each manifest of which records were left out, and how many; looks at every record."""
    return reader.rows(
        "SELECT m.spec, count(*) FROM records r JOIN manifests m ON m.id = r.manifest "
        "WHERE r.state = 'unselected' GROUP BY m.id ORDER BY m.id"
    )
