"""Writing manifests: their records in batches, each together with the offset up to which the manifest was read.

An ingest that was killed so goes on exactly behind its last committed line.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from etl.domain.statuses import RecordState
from etl.state.database import Connection
from etl.state.images import wake_evicted
from etl.state.read.reader import Reader
from etl.state.record_captions import SURROUNDINGS, WRITTEN_ABOUT, around_of
from etl.state.records import BatchCounts, NewRecord, align_sources, write_batch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a manifest was read.

    Attributes:
        offset: bytes of the (decompressed) manifest read so far.
        sha256: hash of those bytes, hex.
        lines: lines so far, blank ones included.
        rows: records so far.
    """

    offset: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    lines: int = 0
    rows: int = 0


@dataclass(slots=True)
class ManifestRow:
    """The manifest's row: what is known of it from earlier runs."""

    id: int
    spec: str
    generation: int
    complete: bool
    size: int | None
    sha256: str | None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


class ManifestWriter:
    """Stores the records of one manifest, one generation at a time."""

    def __init__(self, connection: Connection, path: str, beside: Sequence[str] = ()) -> None:
        """Open the manifest known as ``path``; the keys of those ``beside`` it are left to them."""
        self._connection = connection
        self.path = path
        self._beside = beside

    def find(self) -> ManifestRow | None:
        """Return what is known of this manifest, or ``None``."""
        rows = self._connection.rows(
            "SELECT id, spec, generation, complete, bytes, sha256, offset, offset_sha256, lines, rows "
            "FROM manifests WHERE path = ?",
            (self.path,),
        )
        if not rows:
            return None
        number, spec, generation, complete, size, sha256, *progress = rows[0]
        return ManifestRow(number, spec, generation, bool(complete), size, sha256, Checkpoint(*progress))

    def begin(self, spec: str) -> ManifestRow:
        """Begin a new generation that reads the manifest from its start."""
        with self._connection.transaction("ingest.begin") as db:
            db.conn.execute(
                "INSERT INTO manifests (path, spec, generation, offset_sha256) VALUES (?, ?, 1, ?) "
                "ON CONFLICT (path) DO UPDATE SET spec = excluded.spec, generation = generation + 1, bytes = NULL, "
                "sha256 = NULL, offset = 0, offset_sha256 = excluded.offset_sha256, lines = 0, rows = 0, complete = 0",
                (self.path, spec, Checkpoint().sha256),
            )
        row = self.find()
        assert row is not None
        return row

    def note_root(self, root: str, seal: str) -> None:
        """Note the directory beside whose files the pictures may lie, with what proves that it was opened."""
        with self._connection.transaction() as db:
            db.conn.execute(
                "UPDATE manifests SET root = ?2, root_seal = ?3 WHERE path = ?1 "
                "AND (root IS NOT ?2 OR root_seal IS NOT ?3)",
                (self.path, root, seal),
            )

    def store(
        self, manifest: ManifestRow, records: Sequence[NewRecord], checkpoint: Checkpoint, *, strict: bool = False
    ) -> BatchCounts:
        """Commit one batch and the checkpoint behind it.

        With ``strict`` a key that was seen before raises `DuplicateKeyError`, and nothing of the batch is kept.
        """
        with self._connection.transaction("ingest.batch") as db:
            beside = [
                number
                for number, path in db.conn.execute("SELECT id, path FROM manifests").fetchall()
                if path in self._beside and number != manifest.id
            ]
            db.conn.executemany(
                "INSERT INTO own_pictures (url, data) VALUES (?, ?) ON CONFLICT DO NOTHING",
                ((record.url, record.data) for record in records if record.url and record.data is not None),
            )
            counts = write_batch(
                db, manifest.id, manifest.generation, records, strict=strict, beside=beside, name=Path(self.path).name
            )
            db.conn.execute(
                "UPDATE manifests SET offset = ?, offset_sha256 = ?, lines = ?, rows = ? WHERE id = ?",
                (checkpoint.offset, checkpoint.sha256, checkpoint.lines, checkpoint.rows, manifest.id),
            )
        return counts

    def model_wrote(self, url: str, text: str) -> bool:
        """Return whether a text beside a picture is a model's caption of it, as exports write it."""
        words = text.split()
        return any(
            f"{before}{caption.strip()}{behind}".split() == words
            for (caption,) in self._connection.rows(WRITTEN_ABOUT, (url,))
            for before, behind in self._around
        )

    @cached_property
    def _around(self) -> list[tuple[str, str]]:
        """What exports have put before and behind captions."""
        formats = self._connection.rows(SURROUNDINGS)
        return [("", ""), *(around_of(name) for (name,) in formats)]

    def finish(self, manifest: ManifestRow, checkpoint: Checkpoint) -> int:
        """Mark the generation complete; return how many records are no longer in the manifest.

        Only now, with the whole file read, is a record that was not seen known to be removed.
        """
        with self._connection.transaction("ingest.finish") as db:
            removed, first = 0, manifest.generation == 1
            if not first:
                removed = db.conn.execute(
                    "UPDATE records SET state = 'removed' "
                    "WHERE manifest = ? AND generation <> ? AND state <> 'removed'",
                    (manifest.id, manifest.generation),
                ).rowcount
            if not first or db.conn.execute("SELECT 1 FROM manifests WHERE id <> ?", (manifest.id,)).fetchone():
                align_sources(db)
            # Also in a first generation, of which a part may have been captioned before the rest was read.
            wake_evicted(db)
            db.conn.execute(
                "UPDATE manifests SET complete = 1, bytes = offset, sha256 = offset_sha256, lines = ?, rows = ? "
                "WHERE id = ?",
                (checkpoint.lines, checkpoint.rows, manifest.id),
            )
        return removed

    def states(self, manifest: ManifestRow) -> dict[str, int]:
        """Return the number of this manifest's records per state."""
        sql = "SELECT state, count(*) FROM records WHERE manifest = ? GROUP BY state"
        return {state: n for state, n in self._connection.rows(sql, (manifest.id,))}


def roots(reader: Reader) -> list[tuple[str, str | None, str | None]]:
    """Return each manifest's path, the directory of its pictures and its seal (`etl.local_roots`)."""
    # What came from elsewhere has none.
    sql = "SELECT path, root, root_seal FROM manifests WHERE root IS NOT NULL OR path NOT LIKE '%://%' ORDER BY id"
    return reader.rows(sql)


def reselect(connection: Connection, selections: Iterable[tuple[int, str, Iterable[tuple[int, RecordState]]]]) -> None:
    """Set the states of valid records, and remember each manifest's selection.

    ``selections`` has the manifest, its ``spec`` and the states of its records.  All in one transaction: a source that
    one manifest drops and another takes is needed all along, and a dead one among them stays dead.
    """
    with connection.transaction("ingest.reselect") as db:
        for manifest, spec, chosen in selections:
            db.conn.executemany(
                "UPDATE records SET state = ?2 WHERE id = ?1 AND state IN ('active', 'unselected') AND state <> ?2",
                chosen,
            )
            db.conn.execute("UPDATE manifests SET spec = ? WHERE id = ?", (spec, manifest))
        align_sources(db)
        wake_evicted(db)
