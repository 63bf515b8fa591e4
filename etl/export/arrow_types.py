"""The types of Parquet's columns: those of the Parquet file that records came from, else what their values are."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from etl.data_urls import bytes_of
from etl.export.columns import cell, fields_of
from etl.state.read.manifests import all_manifests, exported_lines
from etl.state.read.reader import Reader

T = TypeVar("T")

_WIDEST = 500
"""Fields of an object that become a type; one with more is a dictionary whose names are data."""


ROW_GROUP, ROW_GROUP_BYTES = 5_000, 64 * 1024**2
"""Records that are held in memory at once, and bytes of their lines: some hold their pictures."""


def in_row_groups(items: Iterable[T], line: Callable[[T], bytes]) -> Iterator[list[T]]:
    """Yield records in groups that become Parquet's row groups."""
    group, size = list[T](), 0
    for item in items:
        group.append(item)
        size += len(line(item))
        if len(group) == ROW_GROUP or size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def types_of(arrow: Any, reader: Reader, names: Sequence[str]) -> dict[str, Any]:
    """Return a type for each of these fields in which all its values, over all records, can be written.

    Where a manifest is a Parquet file that is still in its place its types count: times, decimals and bytes cannot be
    told otherwise.  Values of several kinds are text, those among them that are no text as JSON.
    """
    types = _declared(arrow, reader, frozenset(names))
    declared = set(types)
    for rows in in_row_groups(exported_lines(reader), bytes):
        values: dict[str, list[Any]] = defaultdict(list)
        for row in rows:
            for name, value in fields_of(row).items():
                values[name].append(value)
        for name in values.keys() & frozenset(names):
            try:
                if name in declared:
                    array_of(arrow, types[name], values[name])
                else:
                    kind = arrow.array(values[name]).type
                    types[name] = _merged(
                        arrow, types.get(name, arrow.null()), array_of(arrow, kind, values[name]).type
                    )
            except (arrow.ArrowException, ValueError, TypeError, OverflowError):
                declared.discard(name)
                types[name] = arrow.string()
    found = ((name, types.get(name, arrow.null())) for name in names)
    return {name: kind if _is_writable(arrow, kind) else arrow.string() for name, kind in found}


def array_of(arrow: Any, kind: Any, values: list[Any]) -> Any:
    """Return values of JSON as an array of a type; raise one of Arrow's errors or `ValueError` where they are none."""
    types = arrow.types
    if types.is_string(kind):
        values = [value if value is None else cell(value) for value in values]
    elif not types.is_boolean(kind) and any(value is True or value is False for value in values):
        raise ValueError("a truth value among others")
    elif types.is_temporal(kind) or types.is_decimal(kind):
        return arrow.array(values, arrow.string()).cast(kind)
    elif types.is_nested(kind) or "binary" in str(kind):
        values = [_value(arrow, kind, value) for value in values]
    return arrow.array(values, kind)


def _declared(arrow: Any, reader: Reader, names: frozenset[str]) -> dict[str, Any]:
    """Return the types of the fields that come from Parquet files; of two files with the same one, the first's."""
    found: dict[str, Any] = {}
    for _, path, *_ in all_manifests(reader):
        try:
            schema = arrow.parquet.read_schema(path) if Path(path).is_file() else ()
        except (OSError, ValueError, arrow.ArrowException):
            # Anything but Parquet.
            continue
        found = {field.name: field.type for field in schema if field.name in names} | found
    return found


def _merged(arrow: Any, one: Any, other: Any) -> Any:
    schemas = [arrow.schema([("field", kind)]) for kind in (one, other)]
    return arrow.unify_schemas(schemas, promote_options="permissive").field(0).type


def _is_writable(arrow: Any, kind: Any) -> bool:
    """Return whether Parquet can hold a type, and whoever reads it bear it."""
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    if arrow.types.is_struct(kind) and not 0 < len(inner) <= _WIDEST:
        return False
    return not arrow.types.is_null(kind) and all(arrow.types.is_null(one) or _is_writable(arrow, one) for one in inner)


def _value(arrow: Any, kind: Any, value: Any) -> Any:
    """Return what ingest made a value of JSON from: a time or decimal of its text, bytes of theirs."""
    types = arrow.types
    if isinstance(value, dict) and types.is_struct(kind):
        return {field.name: _value(arrow, field.type, value.get(field.name)) for field in kind}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_value(arrow, kind.value_type, inner) for inner in value]
    if isinstance(value, str) and (types.is_temporal(kind) or types.is_decimal(kind)):
        return arrow.scalar(value).cast(kind)
    return bytes_of(value) if isinstance(value, str) and "binary" in str(kind) else value
