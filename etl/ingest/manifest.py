"""A manifest and its lines: whatever its format, a stream of JSON lines.

Offsets and hashes are taken over this stream, so checkpoints mean the same for every format and compression.
"""

from collections.abc import Iterator
from pathlib import Path

from etl.errors import ManifestError
from etl.ingest import manifest_formats
from etl.ingest.manifest_formats.file import ManifestFile

STDIN = "-"


class Manifest:
    """One manifest: a file, a directory of pictures, or standard input (``-``).

    Attributes:
        path: the name under which the state knows it: an absolute path, or ``-``.
        name: a short one for messages and for the keys of records that have none.
        base: directory against which relative image paths are resolved.
        rereadable: whether it can be read more than once.
    """

    def __init__(self, path: str) -> None:
        if path == STDIN:
            self._file = ManifestFile(None)
            self.path, self.name, self.base, self.rereadable = STDIN, self._file.name, Path.cwd(), False
            return
        file = Path(path)
        if not _exists(file):
            raise ManifestError(f"there is no manifest {path}")
        try:
            str(file.resolve()).encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"the name of {path} is not UTF-8, so it cannot be stored; rename the file") from error
        self._file = ManifestFile(file)
        # A pipe, such as a shell's <(zcat ...), gives its lines once.
        self.path, self.name, self.rereadable = str(file.resolve()), file.name, file.is_file() or file.is_dir()
        self.base = file.resolve() if file.is_dir() else file.resolve().parent

    def lines(self) -> Iterator[bytes]:
        """Return every line with its line end, blank ones included.

        Raises `ManifestError`, while they are read, when the file cannot be read to its end.
        """
        return manifest_formats.lines(self._file)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        # A name too long for the system, or a directory above it that may not be entered.
        return False
