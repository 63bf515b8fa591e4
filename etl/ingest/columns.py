"""A manifest of which no record has the field that is looked for: which fields it has, and the flag that names one."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etl.domain.statuses import RecordState
from etl.errors import InvalidJsonError, InvalidRecordError, ManifestError, MissingImageFieldError
from etl.ingest.fields import IMAGE_FIELDS, ends_as_picture, is_picture, split
from etl.ingest.options import IngestOptions
from etl.ingest.record_parser import KEY_FIELD_MISSING
from etl.state.records import NewRecord
from etl.text import clean, nearest

_LOOKED_AT = 50
"""Records whose fields are told."""

_SHOWN_FIELDS, _SHOWN_CHARS, _NAME_CHARS, _DEPTH = 12, 40, 200, 6


def refuse_unknown_columns(name: str, batch: Sequence[NewRecord], options: IngestOptions) -> None:
    """Raise `ManifestError` when none of the first records of a manifest has the field of its picture or its key.

    One that lacks it is an invalid record; when all do that are records at all, the field has another name.
    """
    if any(record.state is not RecordState.INVALID for record in batch):
        return
    batch = [record for record in batch if record.error_class != InvalidJsonError.slug]
    errors = {(record.error_class, record.error or "") for record in batch}
    errors = {one for one in errors if one[0] != InvalidRecordError.slug or one[1].startswith(KEY_FIELD_MISSING)}
    if len(errors) != 1:
        return
    slug, error = errors.pop()
    if slug == MissingImageFieldError.slug:
        flag, wanted = "--image-field", (options.image_field,) if options.image_field else IMAGE_FIELDS
        what = "a picture"
    elif error.startswith(KEY_FIELD_MISSING):
        flag, wanted, what = "--id-field", (options.id_field or "",), "a key"
    else:
        return
    found = _columns(batch)
    # A field that is there and empty has its right name.
    if not found or any(field in found for field in wanted):
        return
    lines = [f"  {clean(column, _SHOWN_CHARS):<24} {clean(value, _SHOWN_CHARS)}" for column, value in found.items()]
    if len(lines) > _SHOWN_FIELDS:
        lines[_SHOWN_FIELDS:] = [f"  and {len(lines) - _SHOWN_FIELDS} more"]
    near = _nearest(found, wanted, batch if flag == "--image-field" else ())
    meant = shlex.quote(clean(near, _NAME_CHARS)) if near else "FIELD"
    hint = f"name the field of its record: {flag} {meant}"
    if (near and options.image_field) or (near and options.id_field):
        hint = f"did you mean {flag} {meant}?"
    raise ManifestError(
        f"no record of {clean(name, 200)} has {what}: there is no field "
        f"{' or '.join(clean(field, _SHOWN_CHARS) for field in wanted)}; nothing was changed"
    ).with_cure("\n".join((hint, "its fields, each with a value:", *lines)))


def _records(batch: Sequence[NewRecord]) -> Iterator[dict[str, Any]]:
    return (json.loads(record.line.decode("utf-8-sig", "replace")) for record in batch[:_LOOKED_AT])


def _columns(batch: Sequence[NewRecord]) -> dict[str, str]:
    """Return the fields of the first records, each with a value where one has any."""
    found: dict[str, str] = {}
    for fields in _records(batch):
        for field, value in fields.items():
            if not found.get(field):
                found[field] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _nearest(found: Mapping[str, str], wanted: Sequence[str], batch: Sequence[NewRecord]) -> str | None:
    """Return the field that was probably meant: by its name, or because its value looks like a picture's address."""
    pictures = [one for record in _records(batch) for one in _pictures(record)]
    ending = next((field for field, value in pictures if ends_as_picture(value)), None)
    near = (near for field in wanted if (near := nearest(field, found, 0.75)))
    return ending or next(near, None) or next((field for field, _ in pictures), None)


def _pictures(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield what looks like a picture's address in a record, each with the path to it."""
    if isinstance(value, str) and path:
        yield from ((path, one) for one in split(value)[:1] if is_picture(one))
    elif isinstance(value, list) and depth < _DEPTH:
        for inner in value[:1]:
            yield from _pictures(inner, path, depth + 1)
    elif isinstance(value, dict) and depth < _DEPTH:
        for name, inner in value.items():
            yield from _pictures(inner, f"{path}.{name}" if path else name, depth + 1)
