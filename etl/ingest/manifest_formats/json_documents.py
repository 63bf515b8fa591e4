"""JSON that is not a record on each line: arrays, objects that hold one, and objects spread over lines."""

import io
import json
from collections.abc import Generator, Iterator
from typing import Any, TextIO

from etl.errors import ManifestError
from etl.images.formats import suffixes
from etl.ingest.fields import is_known, may_hold, normalised, pictures_of
from etl.ingest.manifest_formats.file import HEAD, MAX_LINE, ManifestFile, json_line

_RECORDS = frozenset({
    "items", "records", "results", "rows", "data", "features", "entries", "objects", "docs", "documents", "bindings",
    "hits", "list", "values", "member", "hydramember", "elements", "result", "response", "assets", "ordereditems",
    "photo", "samples", "annotatedimages", "pages", "artobjects", "children",
})  # fmt: skip
_PICTURES = frozenset({"images", "photos", "pictures", "files"})
"""Lists of records in an object of them; in an object with a key of its own, the several pictures of one record."""

_HOLDERS = frozenset({
    "results", "response", "data", "hits", "result", "photos", "query", "collection", "pages", "viaimgmetadata",
    "embedded",
})  # fmt: skip
"""Objects in which such a list may stand."""

_KEYED = 3
"""Members of an object, all of them records, after which the rest is taken for records, too."""

_LOOKED_AT, _BLOCK = 200, 1 << 20
_DECODER = json.JSONDecoder()


def recognises(file: ManifestFile) -> bool:
    """Return whether a manifest begins as JSON, and is no JSON Lines."""
    text = file.head_text.lstrip()
    if not text.startswith(("[", "{")):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    if len(file.head) == HEAD:
        # The last one may go on.
        lines.pop()
    by_lines = file.suffix in (".jsonl", ".ndjson")
    if not lines:
        return not by_lines and (text.startswith("[") or _is_wrapped(text))
    others = any(_is_whole(line, dict) for line in lines[1:_LOOKED_AT] if line.startswith("{"))
    if text.startswith("["):
        return not (others and _is_whole(lines[0], list))
    if _is_whole(lines[0], dict):
        return len(lines) == 1 and _is_wrapped(text)
    if others:
        return _is_wrapped(text)
    return not by_lines or _is_wrapped(text) or _begins_with_value(text)


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each record."""
    with file.text() as text:
        scanner = _Scanner(text, file.name)
        try:
            for record in _records(scanner):
                yield json_line({"url": record} if isinstance(record, str) else record)
        except RecursionError as error:
            raise scanner.error("nested too deeply") from error


def _is_whole(line: str, kind: type) -> bool:
    """Return whether a line is a value of JSON by itself, or one that only its reader can judge."""
    line = line.strip().removesuffix(",")
    if not line.endswith(("}", "]")):
        return False
    try:
        return isinstance(json.loads(line), kind)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        return True


def _begins_with_value(text: str) -> bool:
    try:
        return bool(_DECODER.raw_decode(text)[1])
    except (ValueError, RecursionError):
        return False


def _is_wrapped(text: str) -> bool:
    """Return whether the object with which a text begins holds a list of records."""
    try:
        return next(_members(_Scanner(io.StringIO(text), "")), None) is not None
    except (ManifestError, RecursionError):
        return False


def _records(scanner: "_Scanner") -> Iterator[Any]:
    is_first = True
    while char := scanner.peek():
        if char == ",":
            scanner.skip()
            continue
        if char == "[":
            yield from scanner.elements()
        elif char == "{" and is_first:
            if (record := (yield from _members(scanner))) is not None:
                yield record
        else:
            yield scanner.value()
        is_first = False


def _members(scanner: "_Scanner") -> Generator[Any, None, dict[str, Any] | None]:
    """Yield the records that an object holds; return the object itself where it is one, else ``None``."""
    begun, record, holds_records, is_keyed = scanner.offset, dict[str, Any](), False, False
    for name in scanner.names():
        char, folded = scanner.peek(), normalised(name)
        is_record = any(is_known(known) and isinstance(value, str | int) for known, value in record.items())
        if char == "[" and (folded in _RECORDS or (folded in _PICTURES and not is_record)):
            holds_records = True
            yield from scanner.elements()
        elif char == "{" and folded in _HOLDERS:
            inner = yield from _members(scanner)
            holds_records |= inner is None
            record[name] = inner
        elif char == "{" and name.lower().endswith(suffixes()):
            holds_records = True
            yield {"file_name": name, **scanner.value()}
        elif char == "[":
            # Of a long list only so much is kept as a record may have.
            record[name] = [inner for inner in scanner.elements() if scanner.offset - begun <= MAX_LINE]
        else:
            record[name] = scanner.value()
            if not is_keyed and len(record) == _KEYED:
                is_keyed = _are_records(record)
        if is_keyed:
            holds_records = True
            yield from _keyed(record)
        if holds_records:
            record.clear()
    if _are_records(record):
        yield from _keyed(record)
        return None
    if holds_records:
        return None
    if scanner.offset - begun > MAX_LINE:
        raise scanner.error(f"a record of more than {MAX_LINE} characters")
    return record


def _are_records(members: dict[str, Any]) -> bool:
    """Return whether the members of an object are records under their keys, most of them with a picture."""
    if not members or any(may_hold(name) or not isinstance(value, dict) for name, value in members.items()):
        return False
    return 2 * sum(bool(pictures_of(value)) for value in members.values()) > len(members)


def _keyed(members: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return ({"id": name, **value} for name, value in members.items() if isinstance(value, dict))


class _Scanner:
    """Reads JSON piece by piece, holding no more of it than one value.

    Attributes:
        offset: characters read so far.
    """

    def __init__(self, text: TextIO, name: str) -> None:
        self._text = text
        self._name = name
        self._buffer = ""
        self._at = self._before = 0
        self._line = 1

    @property
    def offset(self) -> int:
        return self._before + self._at

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                if not (char := self._buffer[self._at]).isspace():
                    return char
                self._at += 1
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass over the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Return the value that stands here.  Raises `ManifestError` where none does, or a very long one."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except ValueError as error:
                if len(self._buffer) - self._at > MAX_LINE:
                    raise self.error(f"no value of JSON, or one of more than {MAX_LINE} characters") from error
                if not self._more():
                    why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self.error(f"cut short, or not JSON: {why}") from error
                continue
            # A number at the end of what was read may go on.
            if end < len(self._buffer) or not isinstance(value, int | float) or not self._more():
                self._at = end
                return value

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the array that begins here."""
        self.peek()
        self.skip()
        while (char := self.peek()) != "]":
            if char == ",":
                self.skip()
            else:
                yield self.value()
        self.skip()

    def names(self) -> Iterator[str]:
        """Yield the names in the object that begins here; before the next one the value of each is to be read."""
        self.peek()
        self.skip()
        while (char := self.peek()) != "}":
            if char == ",":
                self.skip()
                continue
            name = self.value()
            if not isinstance(name, str) or self.peek() != ":":
                raise self.error("not JSON: a name was expected")
            self.skip()
            yield name
        self.skip()

    def error(self, reason: str) -> ManifestError:
        """Return the error of what stands here."""
        line = self._line + self._buffer.count("\n", 0, self._at)
        return ManifestError(f"{self._name}, line {line}: {reason}")

    def _more(self) -> bool:
        """Read on; as much again as is unread, so that a long value is not tried again and again."""
        block = self._text.read(max(_BLOCK, len(self._buffer) - self._at))
        if block:
            self._line += self._buffer.count("\n", 0, self._at)
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)
