"""Parquet, for whoever reads exports by column; needs pyarrow."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etl.domain.statuses import RecordOutcome
from etl.errors import StateError
from etl.export.arrow_types import array_of, in_row_groups, types_of
from etl.export.columns import ADDED, columns, own_columns
from etl.export.format import FileFormat, Sink, Unclosed
from etl.export.lines import CAPTIONED_AT, PROVENANCE, ExportOptions, Joined
from etl.extras import pyarrow
from etl.state.read.reader import Reader


@dataclass(frozen=True)
class Parquet(FileFormat):
    """The columns of CSV, typed, in row groups."""

    name = "parquet"
    help = "the columns of CSV, typed; needs the package `pyarrow`"
    suffixes = (".parquet",)
    shard_suffix = ".parquet"

    schema: Any = None

    def check(self) -> None:
        """Raise `ConfigError` where pyarrow is not installed."""
        pyarrow()

    def fitted(self, reader: Reader, options: ExportOptions) -> "Parquet":
        """Return it with the columns of the state's records."""
        arrow = pyarrow()
        own = own_columns(reader, provenance=options.provenance)
        types = types_of(arrow, reader, own) | {name: arrow.string() for name in ADDED}
        if PROVENANCE in types:
            types[PROVENANCE] = arrow.string()
        types |= {
            CAPTIONED_AT: arrow.timestamp("ms", tz="UTC"), "vlm_tokens": arrow.int32(),
            "vlm_flags": arrow.list_(arrow.string()), "vlm_image_flags": arrow.list_(arrow.string()),
        }  # fmt: skip
        return dataclasses.replace(self, schema=arrow.schema(types))

    @property
    def variant(self) -> bytes:
        """Told apart by its columns and their types."""
        return bytes(self.schema.serialize())

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write row group after row group."""
        arrow = pyarrow()
        sink = arrow.PythonFile(Unclosed(stream), mode="w")
        with arrow.parquet.ParquetWriter(sink, self.schema, compression="zstd") as writer:
            for group in in_row_groups(records, lambda record: record.line):
                rows = [_values(record) for record in group]
                try:
                    arrays = [array_of(arrow, one.type, [row.get(one.name) for row in rows]) for one in self.schema]
                except (arrow.ArrowException, ValueError, TypeError, OverflowError) as error:
                    raise StateError(
                        f"the state database is damaged: a stored value makes no sense ({error})"
                    ) from error
                writer.write_table(arrow.Table.from_arrays(arrays, schema=self.schema))


def _values(record: Joined) -> dict[str, Any]:
    # What a record that was not captioned had under that name need be no time.
    done = record.outcome == RecordOutcome.CAPTIONED
    return columns(record) | ({} if done else {CAPTIONED_AT: None})


FORMAT = Parquet
