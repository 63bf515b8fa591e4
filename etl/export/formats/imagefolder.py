"""Image folders, as the library `datasets` loads them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etl.export.columns import ADDED, columns
from etl.export.format import FolderFormat, PictureFormat
from etl.export.lines import Joined


@dataclass(frozen=True)
class ImageFolder(PictureFormat, FolderFormat):
    """The pictures, and a ``metadata.jsonl`` that names them beside the columns; its hash is the folder's."""

    name = "imagefolder"
    help = (
        'for `datasets.load_dataset("imagefolder", data_dir=...)`: the pictures under their own names (below) in '
        "`shard-00000`, with `metadata.jsonl`: `file_name`, the columns of CSV that begin with `vlm_`, and `record`, "
        "the line of JSON Lines"
    )

    def fill(self, folder: Path, records: Iterator[Joined]) -> tuple[int, str]:
        """Write pictures and metadata."""
        import hashlib

        size, digest = 0, hashlib.sha256()
        with (folder / "metadata.jsonl").open("wb") as metadata:
            for record in records:
                assert record.picture is not None
                name, data = f"{record.picture.name}{record.picture.suffix}", record.picture.read()
                found, as_it_is = columns(record), record.line.strip().decode("utf-8-sig", "replace")
                values = {"file_name": name, **{name: found.get(name) for name in ADDED}, "record": as_it_is}
                line = json.dumps(values, ensure_ascii=True).encode() + b"\n"
                _put(folder / name, data)
                metadata.write(line)
                digest.update(line)
                size += len(data) + len(line)
            metadata.flush()
            os.fsync(metadata.fileno())
        return size, digest.hexdigest()


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


FORMAT = ImageFolder
