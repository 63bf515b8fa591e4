"""JSON Lines, as the manifest came, with the captions."""

from collections.abc import Iterator

from etl.export.format import FileFormat, Sink
from etl.export.lines import Joined


class JsonLines(FileFormat):
    """One line for each record."""

    name = "jsonl"
    help = "the records as they came, with what is added (below), one on each line"
    suffixes = (".jsonl", ".ndjson")
    shard_suffix = ".jsonl"
    to_stdout = True

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write all; a line that ended its file without a line end gets one if more follow."""
        previous = b"\n"
        for record in records:
            if not previous.endswith(b"\n"):
                stream.write(b"\n")
            stream.write(record.line)
            previous = record.line


FORMAT = JsonLines
