"""A manifest of which no record has the field that is looked for: which fields it has, and the flag that names one."""

import json
from collections.abc import Sequence
from typing import Any

from etl.domain.statuses import RecordState
from etl.errors import ManifestError, MissingImageFieldError
from etl.images.formats import suffixes
from etl.ingest.fields import IMAGE_FIELDS
from etl.ingest.options import IngestOptions
from etl.ingest.record_parser import KEY_FIELD_MISSING
from etl.state.records import NewRecord
from etl.text import clean, nearest

_LOOKED_AT = 50
"""Records whose fields are told."""

_SHOWN_FIELDS, _SHOWN_CHARS = 12, 40


def refuse_unknown_columns(name: str, batch: Sequence[NewRecord], options: IngestOptions) -> None:
    """Raise `ManifestError` when none of the first records of a manifest has the field of its picture or its key.

    One that lacks it is an invalid record; when all do, the field has another name.
    """
    if not batch or any(record.state is not RecordState.INVALID for record in batch):
        return
    errors = {(record.error_class, record.error) for record in batch}
    if len(errors) != 1:
        return
    slug, error = errors.pop()
    if slug == MissingImageFieldError.slug:
        flag, wanted = "--image-field", (options.image_field,) if options.image_field else IMAGE_FIELDS
        what = "a picture"
    elif error is not None and error.startswith(KEY_FIELD_MISSING):
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
    near = _nearest(found, wanted, pictures=flag == "--image-field")
    hint = f"name the field of its record: {flag} {clean(near, _SHOWN_CHARS) if near else 'FIELD'}"
    if (near and options.image_field) or (near and options.id_field):
        hint = f"did you mean {flag} {clean(near, _SHOWN_CHARS)}?"
    raise ManifestError(
        f"no record of {clean(name, 200)} has {what}: there is no field "
        f"{' or '.join(clean(field, _SHOWN_CHARS) for field in wanted)}; nothing was changed"
    ).with_cure("\n".join((hint, "its fields, each with a value:", *lines)))


def _columns(batch: Sequence[NewRecord]) -> dict[str, str]:
    """Return the fields of the first records, each with a value where one has any."""
    found: dict[str, str] = {}
    for record in batch[:_LOOKED_AT]:
        fields: Any = json.loads(record.line.decode("utf-8-sig", "replace"))
        for field, value in fields.items():
            if not found.get(field):
                found[field] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _nearest(found: dict[str, str], wanted: Sequence[str], *, pictures: bool) -> str | None:
    """Return the field that was probably meant: by its name, or because its value looks like a picture's address."""
    for field in wanted:
        if near := nearest(field, found, 0.75):
            return near
    if not pictures:
        return None
    return next(
        (
            field
            for field, value in found.items()
            if value.lower().startswith(("http://", "https://")) or value.lower().endswith(suffixes())
        ),
        None,
    )
