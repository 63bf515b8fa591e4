"""What one line of a manifest says: its record's key, its picture and its prompt, or why it is none."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from etl.data_urls import data_url, decoded, holds_name, is_data, taken_out
from etl.domain.statuses import RecordState
from etl.errors import InvalidJsonError, InvalidRecordError, InvalidUrlError, ItemError, MissingImageFieldError
from etl.ingest.fields import IMAGE_FIELDS, KEY_FIELDS, KEY_NAMES, addresses, by_name, mended, named, pictures_of
from etl.ingest.manifest import Manifest
from etl.ingest.manifest_formats.file import BadRow
from etl.ingest.options import IngestOptions
from etl.net.signatures import identity_of
from etl.net.urls import beside, host_of, is_local, local_path, plain_host
from etl.state.record_captions import GIVEN
from etl.state.records import NewRecord
from etl.text import clean
from etl.units import size

KEY_FIELD_MISSING = "no field"
"""How the message of a record without the field of its key begins."""

MAX_KEY_CHARS, MAX_URL_CHARS, MAX_ERROR_CHARS = 512, 8192, 500

MAX_COPIES = 256 * 1024**2
"""Bytes that the copies of one line may take, of which the state and an export have one for each picture."""

_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")

MAX_DEPTH = 200
"""Arrays and objects inside each other.  How many more Python bears depends on its version and on who calls, and what
was ingested must be exported on any machine."""

_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also one that does not end, or each quote in it would be tried as the beginning of one."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class RecordParser:
    """Turns manifest lines into `NewRecord` values; a bad line becomes an invalid record."""

    def __init__(
        self, options: IngestOptions, manifest: Manifest, model_wrote: Callable[[str, str], bool] = lambda *_: False
    ) -> None:
        """``model_wrote`` says whether a text is a model's about the picture at a URL, and so nobody's caption."""
        self._options = options
        self._manifest = manifest
        self._model_wrote = model_wrote

    def parse(self, line: bytes, position: int, index: int) -> list[NewRecord]:
        """Return what one line says: line number ``position`` from 1, record number ``index`` from 0.

        Where its record has several pictures, each is a record, with ``#2`` and so on behind the key.
        """
        key = f"{self._manifest.name}:{position}"
        try:
            if isinstance(line, BadRow):
                raise InvalidRecordError(line.reason)
            record = self._load(line)
            key = self._key(record) or key
            pictures = self._pictures(record)
            given = self._given(record)
            asked = None if given else self._options.template.render(record)
        except (InvalidRecordError, InvalidUrlError, ValueError) as error:
            return [_invalid(key, position, line, error)]
        state = RecordState.ACTIVE if (index, record) in self._options.selection else RecordState.UNSELECTED
        found, taken = [], dict[str, str]()
        for number, picture in enumerate(pictures, 1):
            own = key if number == 1 else f"{key}#{number}"
            try:
                url, host, data = self._source(picture)
                prompt = asked or GIVEN + given
                if given and self._model_wrote(url, given):
                    prompt = self._options.template.render(record)
                found.append(NewRecord(own, position, line, url, host, prompt, state, data=data))
                if data is not None:
                    taken[picture] = url
            except (InvalidRecordError, InvalidUrlError, ValueError) as error:
                found.append(_invalid(own, position, line, error))
        # All names in a line are then ours.
        whole = line
        if taken and not holds_name(line):
            line = taken_out(line, taken)
            for one in found:
                one.line, one.is_taken_out_of = line, True
        if len(found) > 1 and len(line) * len(found) > MAX_COPIES:
            return [_invalid(key, position, whole, _swells(line, len(found)))]
        return found

    @staticmethod
    def _load(line: bytes) -> dict[str, Any]:
        # Counting brackets settles it for almost every line; `bytes.count` would take three times as long.
        brackets = len(line) - len(line.replace(b"[", b"").replace(b"{", b""))
        if brackets > MAX_DEPTH and _depth(line) > MAX_DEPTH:
            raise InvalidJsonError(f"nested more than {MAX_DEPTH} levels deep")
        try:
            record = json.loads(line.decode().removeprefix("\ufeff"))
        except UnicodeDecodeError as error:
            raise InvalidJsonError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
        except json.JSONDecodeError as error:
            raise InvalidJsonError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidJsonError(f"not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InvalidJsonError(f"a JSON {type(record).__name__}, not an object")
        return record

    def _key(self, record: Mapping[str, Any]) -> str | None:
        for name, value in self._keys(record):
            if isinstance(value, (str, int)) and not isinstance(value, bool) and (key := str(value).strip()):
                if len(key) > MAX_KEY_CHARS:
                    raise InvalidRecordError(f"{name} has {len(key)} characters, more than {MAX_KEY_CHARS}")
                return _storable(key, name)
        if self._options.id_field:
            raise InvalidRecordError(f"{KEY_FIELD_MISSING} {self._options.id_field!r} for the record's key")
        return None

    def _given(self, record: Mapping[str, Any]) -> str:
        """Return the caption that the record brings; empty where it brings none, or a model's of an export of ours."""
        about = record.get("json")
        about = about if isinstance(about, dict) else {}
        of_model = about.get("vlm_caption_source", "file") != "file"
        for kind in self._options.sidecars:
            value = record.get(kind)
            if isinstance(value, dict):
                value = (None if of_model else value.get("vlm_caption")) or value.get("caption")
            if isinstance(value, str) and value.strip() and not (of_model and value == about.get("vlm_caption")):
                return _storable(value.strip(), kind)
        return ""

    def _keys(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        if wanted := self._options.id_field:
            yield wanted, named(record, wanted)
            return
        for name in KEY_FIELDS:
            yield name, record.get(name)
        yield from (("the key", value) for value in by_name(record, KEY_NAMES))

    def _pictures(self, record: Mapping[str, Any]) -> list[str]:
        """Return the addresses of the record's pictures, at least one."""
        wanted = self._options.image_field
        found = addresses(named(record, wanted)) if wanted else pictures_of(record)
        if not found:
            fields = wanted or f"{', '.join(IMAGE_FIELDS)} or their like"
            raise MissingImageFieldError(f"no image: none of the fields {fields} has a value")
        return found

    def _source(self, picture: str) -> tuple[str, str, bytes | None]:
        """Return a picture's URL or path, the host that is asked for it, and its bytes where it stands there itself."""
        host = plain_host(picture)
        if host is not None and len(picture) <= MAX_URL_CHARS:
            return identity_of(picture) if self._options.url_identity else picture, host, None
        if is_data(picture):
            data = decoded(picture)
            return data_url(data), "", data
        url = self._absolute(picture)
        return url, host_of(url), None

    def _absolute(self, picture: str) -> str:
        url = mended(_storable(picture, "the image's address"))
        if len(url) > MAX_URL_CHARS:
            raise InvalidUrlError(f"an address of {len(url)} characters, more than {MAX_URL_CHARS}")
        if not is_local(url):
            return identity_of(url) if self._options.url_identity else url
        if _OF_WINDOWS.match(url):
            raise InvalidUrlError(
                f"a path of a Windows machine: {url[:200]!r}; copy the pictures beside the manifest, and leave out C:"
            )
        base = self._manifest.base
        return beside(base, url) if isinstance(base, str) else _storable(str(base / local_path(url)), "the path")


def _invalid(
    key: str, position: int, line: bytes, error: ValueError | InvalidRecordError | InvalidUrlError
) -> NewRecord:
    slug = error.slug if isinstance(error, ItemError) else InvalidRecordError.slug
    return NewRecord(key, position, line, None, "", None, RecordState.INVALID, slug, clean(str(error), MAX_ERROR_CHARS))


def _swells(line: bytes, pictures: int) -> InvalidRecordError:
    return InvalidRecordError(
        f"{pictures:,} pictures in a line of {size(len(line))}, which state and exports would have once for each: "
        f"{size(len(line) * pictures)}, more than {size(MAX_COPIES)}; "
        "give each picture, or every few, a line of its own"
    )


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
