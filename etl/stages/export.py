"""Export: records joined with their captions, as JSON Lines in manifest order.

The file appears whole or not at all: it is written beside its name, made durable, and then renamed.
"""

import errno
import functools
import gzip
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from backports import zstd

from etl.clock import iso_utc
from etl.config import redact_url
from etl.errors import ConfigError, DiskFullError, EtlError
from etl.failpoints import failpoint
from etl.models import ExportSummary, RecordOutcome, RecordState
from etl.state.export_rows import ExportRow
from etl.state.queries import Reader, RecipeRow

STDOUT = "-"
CAPTION, CAPTIONED_AT, SOURCE, ERROR, PROVENANCE = (
    "vlm_caption", "vlm_captioned_at", "vlm_caption_source", "vlm_error", "vlm_provenance",
)  # fmt: skip
FIELDS = (CAPTION, CAPTIONED_AT, SOURCE, ERROR, PROVENANCE)


@dataclass(frozen=True)
class ExportOptions:
    """What an export holds.

    Attributes:
        recipe: beginning of a recipe's hash; ``None`` for the current one.
        provenance: add one object that tells how each caption came to be.
        only_captioned: leave out every record without a caption.
    """

    recipe: str | None = None
    provenance: bool = False
    only_captioned: bool = False


def export(reader: Reader, target: str, options: ExportOptions) -> tuple[ExportSummary, int | None]:
    """Write the export; return what was written and the recipe's row.

    Raises `ConfigError` for an unknown or ambiguous recipe, `DiskFullError` or `EtlError` when the target
    cannot be written; an existing file is then untouched.
    """
    counts: Counter[str] = Counter()
    with reader.snapshot():
        recipe = _chosen_recipe(reader, options.recipe)
        with _target(target) as stream:
            for line in _lines(reader, recipe, options, counts):
                stream.write(line)
    return (
        ExportSummary(
            path=target if target == STDOUT else str(Path(target).resolve()), rows=counts["rows"],
            captioned=counts[RecordOutcome.CAPTIONED], failed=counts[RecordOutcome.FAILED],
            pending=counts[RecordOutcome.PENDING], unselected=counts[RecordState.UNSELECTED],
            left_out=counts["left_out"], size=stream.size, sha256=stream.sha256,
        ),
        recipe.id if recipe else None,
    )  # fmt: skip


def _chosen_recipe(reader: Reader, wanted: str | None) -> RecipeRow | None:
    recipes = reader.recipes()
    if wanted is None:
        return next((recipe for recipe in recipes if recipe.current), None)
    found = [recipe for recipe in recipes if recipe.sha256.startswith(wanted.lower())]
    if len(found) != 1:
        known = ", ".join(f"{recipe.sha256[:12]} ({recipe.model}@{recipe.revision[:12]})" for recipe in recipes)
        raise ConfigError(f"{len(found)} recipes begin with {wanted!r}; known: {known or 'none'}")
    return found[0]


def _lines(reader: Reader, recipe: RecipeRow | None, options: ExportOptions, counts: Counter[str]) -> Iterator[bytes]:
    """Yield the finished lines; a line that ended its file without a line end gets one if more follow."""
    previous = b"\n"
    for manifest, *_ in reader.manifests():
        for row in reader.export_rows(manifest, recipe.id if recipe else None):
            line = _line(row, recipe, options, counts)
            if line is None:
                continue
            if not previous.endswith(b"\n"):
                yield b"\n"
            counts["rows"] += 1
            yield line
            previous = line


def _line(row: ExportRow, recipe: RecipeRow | None, options: ExportOptions, counts: Counter[str]) -> bytes | None:
    if row.state == RecordState.INVALID:
        if row.error_class == "invalid_json":
            counts["left_out"] += 1
            return None
        outcome: str = RecordOutcome.FAILED
    elif row.state == RecordState.UNSELECTED:
        counts[RecordState.UNSELECTED] += 1
        return None if options.only_captioned else row.line
    else:
        outcome = row.outcome
    counts[outcome] += 1
    if options.only_captioned and outcome != RecordOutcome.CAPTIONED:
        return None
    if outcome == RecordOutcome.PENDING:
        return row.line
    return with_fields(row.line, _added(row, outcome, recipe, options))


def _added(row: ExportRow, outcome: str, recipe: RecipeRow | None, options: ExportOptions) -> dict[str, Any]:
    if outcome == RecordOutcome.FAILED or recipe is None:
        return {CAPTION: None, ERROR: row.error_class}
    added: dict[str, Any] = {
        CAPTION: row.text,
        CAPTIONED_AT: iso_utc(row.done_at or 0),
        SOURCE: f"{recipe.model}@{recipe.revision}",
    }
    if options.provenance:
        added[PROVENANCE] = {
            "recipe": recipe.sha256, "finish_reason": row.finish_reason, "tokens": row.tokens,
            "flags": row.flags.split(",") if row.flags else [],
            "repetition_penalty": row.repetition_penalty or _usual_penalty(recipe.spec),
            "image_sha256": row.image_sha256,
            "mirror": redact_url(row.mirror) if row.mirror else None,
        }  # fmt: skip
    return added


@functools.lru_cache(maxsize=1)
def _usual_penalty(spec: str) -> float | None:
    """Return the repetition penalty that the recipe says; ``None`` where it says none."""
    value: float | None = json.loads(spec).get("generation", {}).get("repetition_penalty")
    return value


def with_fields(line: bytes, added: dict[str, Any]) -> bytes:
    """Return a JSON object's line with fields added at its end; ``vlm_*`` fields that it had are replaced.

    Everything else stays byte for byte: numbers are not rounded, escapes and white space not changed.
    """
    body = line.rstrip(b"\r\n \t")
    end = line[len(body) :]
    start = body.index(b"{") + 1
    inner = body[start:-1].rstrip()
    if b"vlm_" in inner or b"\\u" in inner:
        inner = ",".join(text for name, text in _members(inner.decode()) if name not in FIELDS).rstrip().encode()
    separator = b"," if inner.strip() else b""
    return body[:start] + inner + separator + _dump(added)[1:] + end


_DECODER = json.JSONDecoder()


def _members(inner: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each member of a JSON object, given what stands between its braces."""
    scan = _DECODER.raw_decode
    place = 0
    while inner[place:].strip():
        name, after = scan(inner, _skip(inner, place))
        _, after = scan(inner, _skip(inner, _skip(inner, after) + 1))
        comma = _skip(inner, after)
        yield name, inner[place:comma]
        place = comma + 1


def _skip(text: str, place: int) -> int:
    """Return the next place that is not JSON's white space."""
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


def _dump(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half a surrogate pair can only be written as the escape that it came in as.
        return json.dumps(value, separators=(",", ":")).encode()


class _HashingWriter(io.RawIOBase):
    """Passes bytes on and knows the size and hash of what went through."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hash of the (uncompressed) lines, hex."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._stream.write(data)


@contextmanager
def _target(target: str) -> Iterator[_HashingWriter]:
    if target == STDOUT:
        with _write_errors("stdout"):
            yield _HashingWriter(sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    path = _checked(target)
    with _write_errors(target), _opened(path) as file, _compressed(file, path.suffix) as stream:
        yield _HashingWriter(stream)


def _checked(target: str) -> Path:
    """Return the file to write, resolved so that a link stays a link and the file behind it is replaced."""
    path = Path(target).resolve()
    if not target or path.is_dir():
        raise ConfigError(f"{target or 'the empty name'} is a directory, not a file; give the name of the export")
    try:
        target.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the name {target} is not UTF-8, so it cannot be recorded; choose another one") from error
    return path


@contextmanager
def _write_errors(target: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(f"no space left while writing {target}; the old file, if any, is untouched") from error
        raise EtlError(f"cannot write {target}: {error.strerror}; choose another place for the export") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yield a file whose content takes the place of ``path`` only at the end; a pipe or device is written itself."""
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb", buffering=1 << 20) as file:
            failpoint("export.begun")
            yield file
            file.flush()
            failpoint("export.before_fsync")
            os.fsync(file.fileno())
        failpoint("export.before_rename")
        part.replace(path)
        failpoint("export.renamed")
        _fsync_directory(path.parent)
        failpoint("export.synced")
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def _compressed(file: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif suffix == ".zst":
        with zstd.open(file, "wb") as packed:
            yield cast(BinaryIO, packed)
    else:
        yield file


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
