"""Ingest: manifest lines become records, resumably and idempotently.

Rows and the position in the manifest are committed together.  A killed ingest goes on behind its last batch
when the part already read is unchanged; a manifest that is already complete in the state costs one hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from etl.domain.statuses import RecordState
from etl.domain.views import IngestSummary
from etl.errors import DuplicateKeyError, ManifestError
from etl.ingest.manifest import Manifest
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.record_parser import RecordParser
from etl.local_roots import seal
from etl.state.manifests import Checkpoint, ManifestRow, ManifestWriter
from etl.state.read.manifests import all_manifests, manifest_lines
from etl.state.read.reader import Reader
from etl.state.records import BatchCounts, NewRecord
from etl.state.store import Store

BATCH = 5_000
"""Records committed together; about 7 MB of the real manifest."""

BATCH_BYTES = 32 * 1024**2
"""Bytes of lines from which a batch is full, however few they are: a line may have 16 MB."""


class LineReader:
    """Reads a manifest's lines and knows at every moment how to come back to the same place."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._hash = hashlib.sha256()
        self._offset = self._number = self._rows = 0

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield ``(line, line number from 1, record number from 0)``; blank lines are passed over."""
        for line in self._lines:
            self._take(line)
            if line.strip():
                self._rows += 1
                yield line, self._number, self._rows - 1

    def _take(self, line: bytes) -> None:
        self._hash.update(line)
        self._offset += len(line)
        self._number += 1

    def checkpoint(self) -> Checkpoint:
        """Return the place behind the last line read."""
        return Checkpoint(self._offset, self._hash.hexdigest(), self._number, self._rows)

    def skip_to(self, place: Checkpoint) -> bool:
        """Read up to an earlier checkpoint; tell whether everything before it is unchanged."""
        while self._offset < place.offset and (line := next(self._lines, None)) is not None:
            self._take(line)
        self._rows = place.rows
        return self.checkpoint() == place


def ingest(
    store: Store,
    manifest: Manifest,
    options: IngestOptions,
    *,
    on_batch: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> IngestSummary:
    """Bring the state to what the manifest says.

    ``on_batch`` is told the number of records read so far.  Raises `ManifestError` when the manifest cannot be
    read or holds no record, or at the first bad line with ``strict``; committed batches stay, and the next
    ingest goes on behind them.
    """
    writer = store.manifest(manifest.path)
    row = writer.find()
    if row is not None and (row.spec != options.spec() or not manifest.rereadable):
        row = None
    if row is not None and row.complete:
        if _whole(manifest).sha256 == row.sha256:
            _open_root(writer, manifest)
            return _summary(writer, row, BatchCounts(), 0, unchanged=True)
        row = None
    reader = LineReader(manifest.lines())
    if row is not None and not reader.skip_to(row.checkpoint):
        row, reader = None, LineReader(manifest.lines())
    if row is not None:
        _open_root(writer, manifest)
    return _read(writer, row, reader, manifest, options, on_batch, should_stop)


def _open_root(writer: ManifestWriter, manifest: Manifest) -> None:
    """Let pictures beside the manifest be read, by this user on this machine."""
    root = str(manifest.base)
    # Standard input has the working directory's name, whatever that is; no path below it could be stored either.
    with suppress(UnicodeEncodeError):
        root.encode()
        writer.note_root(root, seal(root))


def _whole(manifest: Manifest) -> Checkpoint:
    reader = LineReader(manifest.lines())
    for _ in reader:
        pass
    return reader.checkpoint()


def _read(
    writer: ManifestWriter,
    row: ManifestRow | None,
    reader: LineReader,
    manifest: Manifest,
    options: IngestOptions,
    on_batch: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> IngestSummary:
    """Store what ``reader`` still has; begin a new generation where there is no ``row`` to go on with."""
    parser = RecordParser(options, manifest.name, manifest.base)
    resumed_at = row.checkpoint.rows if row else 0
    total = BatchCounts()
    for batch in _batches(parser.parse(*line) for line in reader):
        if options.strict:
            _refuse_invalid(batch, manifest)
        # Begun only now: an empty or unreadable file must not touch what the state knows.
        if row is None:
            row = writer.begin(options.spec())
            _open_root(writer, manifest)
        counts = _store(writer, row, batch, reader, manifest, strict=options.strict)
        total.added += counts.added
        total.changed += counts.changed
        on_batch(reader.checkpoint().rows)
        if should_stop():
            return _summary(writer, row, total, 0, resumed_at=resumed_at)
    if row is None:
        raise ManifestError(f"{manifest.path} holds no records; nothing was changed")
    removed = writer.finish(row, reader.checkpoint())
    return _summary(writer, row, total, removed, resumed_at=resumed_at)


def _batches(records: Iterable[NewRecord]) -> Iterator[list[NewRecord]]:
    """Yield records in batches; when one is yielded, nothing beyond it has been read."""
    batch, size = list[NewRecord](), 0
    for record in records:
        batch.append(record)
        size += len(record.line)
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _store(
    writer: ManifestWriter,
    row: ManifestRow,
    batch: list[NewRecord],
    reader: LineReader,
    manifest: Manifest,
    *,
    strict: bool,
) -> BatchCounts:
    try:
        return writer.store(row, batch, reader.checkpoint(), strict=strict)
    except DuplicateKeyError as error:
        raise ManifestError(f"{manifest.name}, {error}") from error


def _refuse_invalid(batch: list[NewRecord], manifest: Manifest) -> None:
    for record in batch:
        if record.state is RecordState.INVALID:
            raise ManifestError(f"{manifest.name}, line {record.position}: {record.error}")


def _summary(
    writer: ManifestWriter,
    row: ManifestRow,
    counts: BatchCounts,
    removed: int,
    *,
    unchanged: bool = False,
    resumed_at: int = 0,
) -> IngestSummary:
    states = writer.states(row)
    present = {state: n for state, n in states.items() if state != RecordState.REMOVED}
    return IngestSummary(
        path=writer.path, records=sum(present.values()), selected=states.get(RecordState.ACTIVE, 0),
        unselected=states.get(RecordState.UNSELECTED, 0), invalid=states.get(RecordState.INVALID, 0),
        removed=removed, added=counts.added, changed=counts.changed, unchanged=unchanged, resumed_at=resumed_at,
    )  # fmt: skip


def reselect(store: Store, selection: Selection) -> None:
    """Apply another selection to every manifest in the state, from the lines that the state itself holds."""
    with Reader(store.directory) as reader:
        changed = [
            (number, wanted)
            for number, _, spec, _ in all_manifests(reader)
            if (wanted := IngestOptions.from_spec(spec, selection).spec()) != spec
        ]
        if changed:
            store.reselect((number, spec, _select(reader, number, selection)) for number, spec in changed)


def _select(reader: Reader, manifest: int, selection: Selection) -> Iterator[tuple[int, RecordState]]:
    """Yield ``(record, state)`` for every valid record of a manifest."""
    for index, (record, state, line) in enumerate(manifest_lines(reader, manifest)):
        if state != RecordState.INVALID:
            chosen = (index, json.loads(line)) in selection
            yield record, RecordState.ACTIVE if chosen else RecordState.UNSELECTED
