"""Ingest: manifest lines become records, resumably and idempotently.

Rows and the position in the manifest are committed together.  A killed ingest goes on behind its last batch
when the part already read is unchanged; a manifest that is already complete in the state costs one hash.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from etl.captioning.prompts import PromptTemplate
from etl.errors import (
    DuplicateKeyError,
    InvalidJsonError,
    InvalidRecordError,
    InvalidUrlError,
    ManifestError,
    MissingImageFieldError,
    StateError,
)
from etl.models import IngestSummary, RecordState
from etl.net.local import host_of, is_local
from etl.stages.manifest import Manifest
from etl.state.queries import Reader
from etl.state.records import BatchCounts, Checkpoint, ManifestRow, ManifestWriter, NewRecord
from etl.state.store import Store

BATCH = 5_000
"""Records committed together; about 7 MB of the real manifest."""

BATCH_BYTES = 32 * 1024**2
"""Bytes of lines from which a batch is full, however few they are: a line may have 16 MB."""

KEY_FIELDS = ("metadata_filename", "id", "key")
IMAGE_FIELDS = ("external_url", "url", "image_url", "image", "path")
MAX_KEY_CHARS = 512

MAX_DEPTH = 200
"""Arrays and objects inside each other.  How many more Python bears depends on its version and on who calls, and what
was ingested must be exported on any machine."""

_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True)
class Selection:
    """Which records of a manifest are captioned.

    Attributes:
        synthetic: ``True``: only those whose ``description_source`` contains "synthetic"; ``False``: all;
            ``None``: only those, where the field exists.
        offset, limit: a window over the records of the file, counted before the rule above.
    """

    synthetic: bool | None = None
    offset: int = 0
    limit: int | None = None

    def __contains__(self, row: tuple[int, Mapping[str, Any]]) -> bool:
        index, record = row
        if index < self.offset or (self.limit is not None and index >= self.offset + self.limit):
            return False
        if self.synthetic is False or (self.synthetic is None and "description_source" not in record):
            return True
        return "synthetic" in str(record.get("description_source") or "")


@dataclass(frozen=True)
class IngestOptions:
    """How a manifest is read; a change of any of them reads it anew.

    Attributes:
        id_field, image_field: the fields with the record's key and image; ``None`` tries the usual names.
        selection: which records are captioned.
        template: what the model is asked about each.
        strict: stop at the first bad line instead of keeping it as an invalid record.
    """

    id_field: str | None = None
    image_field: str | None = None
    selection: Selection = field(default_factory=Selection)
    template: PromptTemplate = field(default_factory=PromptTemplate)
    strict: bool = False

    def spec(self) -> str:
        """Return what decides the records, as canonical JSON."""
        selection = self.selection
        return json.dumps({
            "id_field": self.id_field, "image_field": self.image_field, "synthetic": selection.synthetic,
            "offset": selection.offset, "limit": selection.limit, "template": self.template.source,
        }, sort_keys=True)  # fmt: skip

    @classmethod
    def from_spec(cls, spec: str, selection: Selection | None = None) -> "IngestOptions":
        """Return the options that a manifest was ingested with, with another selection if given.

        Raises `StateError` for what `spec` has not written.
        """
        try:
            values = json.loads(spec)
            stored = Selection(values["synthetic"], values["offset"], values["limit"])
            template = PromptTemplate(values["template"])
            return cls(values["id_field"], values["image_field"], selection or stored, template)
        except (ValueError, LookupError, TypeError) as error:
            raise StateError("the state database is damaged: how its manifest was read makes no sense") from error


class RecordParser:
    """Turns manifest lines into `NewRecord` values; a bad line becomes an invalid record."""

    def __init__(self, options: IngestOptions, name: str, base: Path) -> None:
        self._options = options
        self._name = name
        self._base = base
        self._key_fields = (options.id_field,) if options.id_field else KEY_FIELDS
        self._image_fields = (options.image_field,) if options.image_field else IMAGE_FIELDS

    def parse(self, line: bytes, position: int, index: int) -> NewRecord:
        """Return the record of one line: line number ``position`` from 1, record number ``index`` from 0."""
        key = f"{self._name}:{position}"
        try:
            record = self._load(line)
            key = self._key(record) or key
            url = self._url(record)
            host = host_of(url)
            prompt = self._options.template.render(record)
        except (InvalidRecordError, InvalidUrlError) as error:
            return NewRecord(key, position, line, None, "", None, RecordState.INVALID, error.slug, str(error))
        except ValueError as error:
            return NewRecord(key, position, line, None, "", None, RecordState.INVALID, "invalid_record", str(error))
        chosen = (index, record) in self._options.selection
        state = RecordState.ACTIVE if chosen else RecordState.UNSELECTED
        return NewRecord(key, position, line, url, host, prompt, state)

    @staticmethod
    def _load(line: bytes) -> dict[str, Any]:
        # Counting brackets settles it for almost every line.
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
            raise InvalidJsonError(f"nested more than {MAX_DEPTH} levels deep")
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InvalidJsonError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidJsonError(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InvalidJsonError(f"a JSON {type(record).__name__}, not an object")
        return record

    def _key(self, record: Mapping[str, Any]) -> str | None:
        for name in self._key_fields:
            value = record.get(name)
            if isinstance(value, (str, int)) and not isinstance(value, bool) and (key := str(value).strip()):
                if len(key) > MAX_KEY_CHARS:
                    raise InvalidRecordError(f"{name} has {len(key)} characters, more than {MAX_KEY_CHARS}")
                return _storable(key, name)
        if self._options.id_field:
            raise InvalidRecordError(f"no field {self._options.id_field!r} for the record's key")
        return None

    def _url(self, record: Mapping[str, Any]) -> str:
        for name in self._image_fields:
            value = record.get(name)
            if isinstance(value, str) and (url := value.strip()):
                return self._absolute(_storable(url, name))
        raise MissingImageFieldError(f"no image: none of the fields {', '.join(self._image_fields)} has a value")

    def _absolute(self, url: str) -> str:
        if not is_local(url):
            return url
        path = unquote(urlsplit(url).path) if url.startswith("file:") else url
        return str(self._base / path)


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
            return _summary(writer, row, BatchCounts(), 0, unchanged=True)
        row = None
    reader = LineReader(manifest.lines())
    if row is not None and not reader.skip_to(row.checkpoint):
        row, reader = None, LineReader(manifest.lines())
    with store.large_cache():
        return _read(writer, row, reader, manifest, options, on_batch, should_stop)


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
        row = row or writer.begin(options.spec())
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
        for number, path, spec, _ in reader.manifests():
            options = IngestOptions.from_spec(spec, selection)
            if options.spec() != spec:
                chosen = _select(reader, number, selection)
                store.manifest(path).reselect(number, options.spec(), chosen)


def _select(reader: Reader, manifest: int, selection: Selection) -> Iterator[tuple[int, RecordState]]:
    """Yield ``(record, state)`` for every valid record of a manifest."""
    for index, (record, state, line) in enumerate(reader.lines(manifest)):
        if state != RecordState.INVALID:
            chosen = (index, json.loads(line)) in selection
            yield record, RecordState.ACTIVE if chosen else RecordState.UNSELECTED


def _depth(line: bytes) -> int:
    """Return how deep arrays and objects lie in each other, those under names that come again included."""
    brackets = _JSON_STRING.sub(b"", line).translate(None, _NO_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _storable(text: str, name: str) -> str:
    """Return the text; JSON can spell half a surrogate pair and NUL, which the database cannot store or find."""
    if "\0" in text:
        raise InvalidRecordError(f"{name} holds a NUL character, which is no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecordError(f"{name} holds half a surrogate pair, which is no text") from error
    return text
