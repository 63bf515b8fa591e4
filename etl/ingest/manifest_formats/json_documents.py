"""JSON that is not a record on each line: arrays, objects that hold one, and objects spread over lines."""

import io
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from etl.errors import ManifestError
from etl.ingest.fields import is_known, is_picture, may_hold, normalised, pictures_of
from etl.ingest.manifest_formats.file import HEAD, MAX_LINE, ManifestFile, json_line
from etl.ingest.manifest_formats.json_scanner import DECODER, Scanner

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

_COLUMNS = frozenset({"columns", "names", "header", "headers"})
"""Lists with the names of the columns of rows that are arrays."""

_LOOKED_AT, _DEPTH = 200, 6


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
        return not by_lines
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
        scanner = Scanner(text, file.name)
        try:
            for record in _records(scanner) if not _is_by_lines(file.head_text) else _rows(scanner, _values(scanner)):
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
        return bool(DECODER.raw_decode(text)[1])
    except (ValueError, RecursionError):
        return False


def _is_wrapped(text: str) -> bool:
    """Return whether the object with which a text begins holds a list of records, if an empty one."""
    try:
        next(_unwrapped(Scanner(io.StringIO(text), "")))
    except StopIteration as done:
        return done.value is None
    except (ManifestError, RecursionError):
        return False
    return True


def _is_by_lines(text: str) -> bool:
    """Return whether a text begins with a line that is an array of the names of columns."""
    try:
        names = json.loads(text.lstrip().partition("\n")[0])
        return isinstance(names, list) and _are_names(names)
    except (ValueError, RecursionError):
        return False


def _values(scanner: Scanner) -> Iterator[Any]:
    while scanner.peek():
        yield scanner.value()


def _records(scanner: Scanner) -> Iterator[Any]:
    is_first = True
    while char := scanner.peek():
        if char == ",":
            scanner.skip()
            continue
        if char == "[":
            yield from _rows(scanner, scanner.elements())
        elif char == "{" and is_first:
            if (record := (yield from _unwrapped(scanner))) is not None:
                yield record
        else:
            yield scanner.value()
        is_first = False


def _unwrapped(scanner: Scanner) -> Generator[Any, None, dict[str, Any] | None]:
    """Yield the records that an object holds; return the object itself where it is one, else ``None``."""
    record = yield from _members(scanner)
    if record and _is_table(record):
        columns = (value.values() if isinstance(value, dict) else value for value in record.values())
        yield from (dict(zip(record, row, strict=True)) for row in zip(*columns, strict=True))
        return None
    if not record:
        return None
    found = [] if any(map(is_picture, pictures_of(record))) else sorted(_lists(record), key=_worth)
    if not found:
        return record
    # Train and test, cats and dogs: lists of other records of the same kind.
    for one in found:
        if one is found[-1] or _are_alike(one, found[-1]):
            yield from _rows(scanner, one, _columns(record))
    return None


def _members(scanner: Scanner) -> Generator[Any, None, dict[str, Any] | None]:
    """Yield what an object surely holds as records; return what it has beside them, ``None`` where that is nothing."""
    begun, record = scanner.offset, dict[str, Any]()
    holds_records = is_keyed = is_record = False
    for name in scanner.names():
        char, folded = scanner.peek(), normalised(name)
        if is_picture(name) and not is_record:
            holds_records = True
            value = scanner.value()
            yield {"file_name": name, **(value if isinstance(value, dict) else {"caption": value})}
        elif char == "[":
            elements, first, is_sure = scanner.elements(), list[Any](), False
            may_be = folded in _RECORDS or (folded in _PICTURES and not is_record)
            names = _columns(record) if may_be else None
            for element in elements if may_be else ():
                first.append(element)
                if isinstance(element, list):
                    is_sure = names is not None or _are_names(element)
                else:
                    is_sure = not isinstance(element, dict) or bool(pictures_of(element)) or len(first) == _LOOKED_AT
                if is_sure or scanner.offset - begun > MAX_LINE:
                    break
            if is_sure:
                holds_records = True
                yield from _rows(scanner, chain(first, elements), names)
            else:
                # Of a long list only so much is kept as a record may have.
                record[name] = first + [inner for inner in elements if scanner.offset - begun <= MAX_LINE]
        elif char == "{" and folded in _HOLDERS:
            inner = yield from _members(scanner)
            holds_records |= inner is None
            record[name] = inner
        else:
            record[name] = scanner.value()
            is_long = len(record) > _LOOKED_AT and scanner.offset - begun > MAX_LINE
            if not is_keyed and (is_long or len(record) == _KEYED):
                is_keyed = _are_records(record)
                if is_long and not is_keyed:
                    raise _too_long(scanner)
        if is_keyed:
            holds_records = True
            yield from _keyed(record)
        if holds_records:
            record.clear()
        is_record = bool(record) and (is_record or (is_known(name) and isinstance(record[name], str | int | list)))
    if _are_records(record):
        yield from _keyed(record)
        return None
    if holds_records:
        return None
    if scanner.offset - begun > MAX_LINE:
        raise _too_long(scanner)
    return record


def _too_long(scanner: Scanner) -> ManifestError:
    return scanner.error(
        f"a record of more than {MAX_LINE} characters; a long list should be JSON Lines, an object on each line"
    )


def _rows(scanner: Scanner, elements: Iterable[Any], names: Any = None) -> Iterator[Any]:
    """Yield records; arrays become objects with these names of columns, or with those in the first of them."""
    for element in elements:
        if not isinstance(element, list):
            yield element
        elif names is not None:
            yield dict(zip(map(str, names), element, strict=False))
        elif _are_names(element):
            names = element
        else:
            raise scanner.error(
                "its rows are arrays, with no names of columns before them; "
                "write objects (pandas: orient='records', Datasette: ?_shape=objects)"
            )


def _columns(record: Mapping[str, Any]) -> Any:
    return next((value for name, value in record.items() if normalised(name) in _COLUMNS), None)


def _are_names(row: list[Any]) -> bool:
    return any(isinstance(name, str) and is_known(name) for name in row)


def _is_table(members: Mapping[str, Any]) -> bool:
    """Return whether an object holds columns: arrays of one length, or objects with the same keys."""
    columns = [value for value in members.values() if isinstance(value, dict | list)]
    if len(columns) < max(2, len(members)) or not any(map(is_known, members)):
        return False
    keys = [value.keys() if isinstance(value, dict) else len(value) for value in columns]
    return bool(columns[0]) and all(one == keys[0] for one in keys)


def _lists(value: Any, depth: int = 0) -> Iterator[list[Any]]:
    """Yield what may be the list of records within an object: by its name, or as most of it have a picture."""
    if depth < _DEPTH and isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict) and _are_records(inner):
                yield list(_keyed(inner))
            elif isinstance(inner, list) and (normalised(name) in _RECORDS | _PICTURES or _worth(inner)[0]):
                yield inner
            else:
                yield from _lists(inner, depth + 1)


def _are_alike(records: list[Any], others: list[Any]) -> bool:
    fields, known = (set(some[0]) if some and isinstance(some[0], dict) else set() for some in (records, others))
    return bool(fields & known) and 2 * len(fields & known) >= len(fields | known)


def _worth(records: list[Any]) -> tuple[bool, int]:
    """Return whether most of a list have a picture, and its length."""
    pictured = sum(isinstance(one, dict) and bool(pictures_of(one)) for one in records)
    return 2 * pictured > len(records), len(records)


def _are_records(members: dict[str, Any]) -> bool:
    """Return whether the members of an object are records under their keys: most with a picture, or all pictures."""
    if not members or any(map(may_hold, members)):
        return False
    if all(isinstance(value, dict) for value in members.values()):
        return 2 * sum(bool(pictures_of(value)) for value in members.values()) > len(members)
    texts = [value if isinstance(value, list) else [value] for value in members.values()]
    return len(texts) > 1 and all(texts) and all(isinstance(one, str) and is_picture(one) for one in chain(*texts))


def _keyed(members: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return records with their keys; what is none is left out."""
    records = ((name, {"url": value} if isinstance(value, str | list) else value) for name, value in members.items())
    return ({"id": name, **record} for name, record in records if isinstance(record, dict))
