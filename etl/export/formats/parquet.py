"""Parquet, for whoever reads exports by column; needs pyarrow."""

from collections.abc import Iterator
from itertools import islice

from etl.errors import StateError
from etl.export.columns import COLUMNS, columns
from etl.export.format import FileFormat, Sink, Unclosed
from etl.export.lines import CAPTIONED_AT, Joined
from etl.extras import pyarrow

ROW_GROUP = 5_000
"""Records in one row group; held in memory until it is written."""


class Parquet(FileFormat):
    """The columns of CSV, typed, in row groups of `ROW_GROUP` records."""

    name = "parquet"
    help = "the columns of CSV, typed; needs the package `pyarrow`"
    suffixes = (".parquet",)
    shard_suffix = ".parquet"

    def check(self) -> None:
        """Raise `ConfigError` where pyarrow is not installed."""
        pyarrow()

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write row group after row group."""
        arrow = pyarrow()
        kinds = {
            CAPTIONED_AT: arrow.timestamp("ms", tz="UTC"),
            "tokens": arrow.int32(),
            "flags": arrow.list_(arrow.string()),
            "image_flags": arrow.list_(arrow.string()),
        }
        schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
        sink = arrow.PythonFile(Unclosed(stream), mode="w")
        with arrow.parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while rows := [columns(record) for record in islice(records, ROW_GROUP)]:
                try:
                    table = arrow.Table.from_pylist(rows, schema)
                except (arrow.ArrowException, OverflowError) as error:
                    raise StateError(
                        f"the state database is damaged: a stored value makes no sense ({error})"
                    ) from error
                writer.write_table(table)


FORMAT = Parquet
