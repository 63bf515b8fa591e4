"""What a manifest line calls its picture: the title and the date that people know it by."""

import json
from collections.abc import Mapping
from typing import Any

_TITLES = ("name", "title", "Titre")
_DATES = ("Date", "date")
_INSIDE = ("attributes_map", "portal_record")
"""Fields in which archives keep a record of their own."""


def title_and_date(line: bytes | str) -> tuple[str | None, str | None]:
    """Return the title and the date of a manifest line as they stand there; ``None`` for what it does not tell."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(record, dict):
        return None, None
    return _first(record, _TITLES), _first(record, _DATES)


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    holders = [record, *(inner for field in _INSIDE if isinstance(inner := record.get(field), Mapping))]
    for holder in holders:
        for name in names:
            value = holder.get(name)
            if isinstance(value, str | int) and str(value).strip():
                return str(value).strip()
    return None
