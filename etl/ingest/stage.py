"""Ingest: manifest lines become records, resumably and idempotently.

Rows and the position in the manifest are committed together.  A killed ingest goes on behind its last batch
when the part already read is unchanged; a manifest that is already complete in the state costs one hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

from etl.domain.statuses import RecordState
from etl.domain.views import IngestSummary, skipped_words
from etl.errors import DuplicateKeyError, ManifestError
from etl.ingest.columns import refuse_unknown_columns
from etl.ingest.manifest import STDIN, Manifest, near_manifests
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.record_parser import RecordParser
from etl.local_roots import seal
from etl.state.manifests import Checkpoint, ManifestRow, ManifestWriter
from etl.state.read.manifests import all_manifests, manifest_lines
from etl.state.read.reader import Reader
from etl.state.records import NewRecord
from etl.state.store import Store

BATCH = 5_000
"""Records committed together; about 7 MB of the real manifest."""

BATCH_BYTES = 32 * 1024**2
"""Bytes of lines from which a batch is full, however few they are: a line may have 16 MB."""

BATCH_S = 10.0
"""Seconds after which a batch is full: the manifests that a collection names are asked for while it is read."""


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
            if line and not line.isspace():
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
        """Read up to an earlier checkpoint; return whether everything before it is unchanged."""
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
    beside: Sequence[str] = (),
) -> IngestSummary:
    """Bring the state to what the manifest says.

    ``beside`` are the paths of the manifests that the same command names, whose keys are left to them.
    ``on_batch`` is told the number of records read so far.  Raises `ManifestError` when the manifest cannot be
    read or holds no record, or at the first bad line with ``strict``; committed batches stay, and the next
    ingest goes on behind them.
    """
    options = replace(options, url_identity=store.settings.url_identity)
    with manifest.at_hand(store.settings, should_stop) as there:
        if not there:
            return IngestSummary(
                path=manifest.path, records=0, selected=0, unselected=0, invalid=0, removed=0, added=0, changed=0
            )
        return _Ingest(store.manifest(manifest.path, beside), manifest, options, on_batch, should_stop).run()


class _Ingest:
    """One manifest being ingested."""

    def __init__(
        self,
        writer: ManifestWriter,
        manifest: Manifest,
        options: IngestOptions,
        on_batch: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._manifest = manifest
        self._options = options
        self._on_batch = on_batch
        self._should_stop = should_stop
        self._reader = LineReader(manifest.lines(options.encoding, options.sidecars, options.image_field))
        self._row: ManifestRow | None = None
        self._resumed_at = 0
        self._added = self._changed = 0

    def run(self) -> IngestSummary:
        known = self._writer.find()
        if known is not None and known.spec == self._options.spec() and self._manifest.rereadable:
            if known.complete and self._holds_only(known):
                self._go_on(known)
                return self._summary(known, unchanged=True)
            if not known.complete and self._reader.skip_to(known.checkpoint):
                self._go_on(known)
                self._resumed_at = known.checkpoint.rows
            else:
                given = self._options
                self._reader = LineReader(self._manifest.lines(given.encoding, given.sidecars, given.image_field))
        return self._read()

    def _holds_only(self, known: ManifestRow) -> bool:
        """Return whether the manifest, read to its end, is what the state has ingested."""
        for _ in self._reader:
            pass
        return self._reader.checkpoint().sha256 == known.sha256

    def _go_on(self, row: ManifestRow) -> None:
        """Work on this row of the manifest from here on; pictures beside the manifest may be read from this machine."""
        self._row = row
        if not isinstance(self._manifest.base, Path):
            return
        root = str(self._manifest.base)
        # Standard input has the working directory's name, whatever that is; no path below it could be stored either.
        with suppress(UnicodeEncodeError):
            root.encode()
            self._writer.note_root(root, seal(root))

    def _read(self) -> IngestSummary:
        """Store what the reader still has; begin a new generation where there is none to go on with."""
        parser = RecordParser(self._options, self._manifest, self._writer.model_wrote)
        for batch in _batches(parser.parse(*line) for line in self._reader):
            if self._row is None:
                refuse_unknown_columns(self._manifest.name, batch, self._options)
            self._store(batch)
            self._on_batch(self._reader.checkpoint().rows)
            if self._should_stop():
                return self._summary(self._begun())
        if self._row is None:
            skipped = skipped_words(self._manifest.skipped)
            lists = near_manifests(Path(self._manifest.path))
            where = "standard input" if self._manifest.path == STDIN else self._manifest.path
            raise ManifestError(
                f"{where} holds no records{f' ({skipped})' * bool(skipped)}; nothing was changed"
            ).with_cure(f"give the lists in it themselves: {', '.join(lists)}" if lists else "")
        removed = self._writer.finish(self._row, self._reader.checkpoint())
        return self._summary(self._row, removed=removed)

    def _store(self, batch: list[NewRecord]) -> None:
        if self._options.strict:
            self._refuse_invalid(batch)
        try:
            counts = self._writer.store(self._begun(), batch, self._reader.checkpoint(), strict=self._options.strict)
        except DuplicateKeyError as error:
            raise ManifestError(f"{self._manifest.name}, {error}") from error
        self._added += counts.added
        self._changed += counts.changed

    def _begun(self) -> ManifestRow:
        """Return the row, begun only now: an empty or unreadable file must not touch what the state knows."""
        if self._row is None:
            self._go_on(self._writer.begin(self._options.spec()))
        assert self._row is not None
        return self._row

    def _refuse_invalid(self, batch: list[NewRecord]) -> None:
        for record in batch:
            if record.state is RecordState.INVALID:
                raise ManifestError(f"{self._manifest.name}, line {record.position}: {record.error}")

    def _summary(self, row: ManifestRow, *, removed: int = 0, unchanged: bool = False) -> IngestSummary:
        states = self._writer.states(row)
        return IngestSummary(
            path=self._writer.path,
            records=sum(n for state, n in states.items() if state != RecordState.REMOVED),
            selected=states.get(RecordState.ACTIVE, 0),
            unselected=states.get(RecordState.UNSELECTED, 0),
            invalid=states.get(RecordState.INVALID, 0),
            removed=removed,
            added=self._added,
            changed=self._changed,
            unchanged=unchanged,
            resumed_at=self._resumed_at,
            skipped=self._manifest.skipped,
        )


def _batches(records: Iterable[list[NewRecord]]) -> Iterator[list[NewRecord]]:
    """Yield the records of lines in batches; when one is yielded, nothing beyond it has been read."""
    batch, size, due = list[NewRecord](), 0, monotonic() + BATCH_S
    for of_line in records:
        batch += of_line
        for record in of_line:
            size += len(record.line) + len(record.data or b"")
        if len(batch) >= BATCH or size >= BATCH_BYTES or monotonic() > due:
            yield batch
            batch, size, due = [], 0, monotonic() + BATCH_S
    if batch:
        yield batch


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
    index, before = -1, 0
    for position, record, state, line in manifest_lines(reader, manifest):
        # The pictures of one line are counted as one, as they were when it was read.
        index, before = index + (position != before), position
        if state != RecordState.INVALID:
            chosen = (index, json.loads(line)) in selection
            yield record, RecordState.ACTIVE if chosen else RecordState.UNSELECTED
