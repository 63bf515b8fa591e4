"""Parquet, for which pyarrow must be installed: each row becomes an object with the columns' names."""

import datetime
import decimal
import json
import math
from collections.abc import Iterator
from typing import Any

from etl.data_urls import text_of
from etl.errors import ManifestError
from etl.extras import pyarrow
from etl.ingest.manifest_formats.file import ManifestFile

ROWS = 2_000
"""Rows that are taken at once."""


def recognises(file: ManifestFile) -> bool:
    """Return whether it is one, by its name or by its first bytes."""
    return file.suffix == ".parquet" or file.head.startswith(b"PAR1")


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield a line for each row, a row group at a time."""
    arrow = pyarrow()
    if file.path is None or not file.path.is_file():
        raise ManifestError(f"{file.name} holds Parquet, which cannot be read from a pipe; save it as a file")
    try:
        with arrow.parquet.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(ROWS):
                for row in batch.to_pylist():
                    line = json.dumps(_plain(row), ensure_ascii=False)
                    yield line.encode("utf-8", "surrogatepass") + b"\n"
    except arrow.ArrowException as error:
        raise ManifestError(f"{file.shown} is cut short, damaged or no Parquet file: {error}") from error
    except OSError as error:
        raise ManifestError(f"cannot read {file.shown}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """Return a value of Parquet as JSON has it: times as ISO 8601, decimals as text, bytes as ASCII or in a data: URI,
    what is no number as null."""
    match value:
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return text_of(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() | datetime.timedelta():
            return str(value)
    return value
