"""What one line of a manifest says: its record's key, its picture and its prompt, or why it is none."""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from etl.domain.statuses import RecordState
from etl.errors import InvalidJsonError, InvalidRecordError, InvalidUrlError, MissingImageFieldError
from etl.ingest.options import IngestOptions
from etl.net.urls import host_of, is_local, local_path
from etl.state.records import NewRecord

KEY_FIELDS = ("metadata_filename", "id", "key")
IMAGE_FIELDS = ("external_url", "url", "image_url", "image", "path")
KEY_FIELD_MISSING = "no field"
"""How the message of a record without the field of its key begins."""

MAX_KEY_CHARS = 512

MAX_DEPTH = 200
"""Arrays and objects inside each other.  How many more Python bears depends on its version and on who calls, and what
was ingested must be exported on any machine."""

_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


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
            raise InvalidRecordError(f"{KEY_FIELD_MISSING} {self._options.id_field!r} for the record's key")
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
        return _storable(str(self._base / local_path(url)), "the path")


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
