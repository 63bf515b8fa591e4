"""JSON Lines, which come out byte for byte."""

from collections.abc import Iterator

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import MAX_LINE, ManifestFile


def lines(file: ManifestFile) -> Iterator[bytes]:
    """Yield every line, blank ones included."""
    name, number = file.name, 0
    with file.open() as stream:
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.lstrip().startswith(b"["):
                    raise ManifestError(
                        f"{name} is a JSON array, not JSON Lines; convert it with `jq -c '.[]' {name} > records.jsonl`"
                    )
            if len(line) > MAX_LINE:
                raise ManifestError(f"{name}, line {number}: longer than {MAX_LINE} bytes; is this JSON Lines?")
            yield line
