"""Image folders, as the library `datasets` loads them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from etl.export.columns import columns, picture_bytes, safe_name
from etl.export.format import FolderFormat
from etl.export.lines import Joined


class ImageFolder(FolderFormat):
    """The pictures, and a ``metadata.jsonl`` that names them beside the columns; its hash is the folder's."""

    name = "imagefolder"
    help = (
        'for `datasets.load_dataset("imagefolder", data_dir=...)`: `shard-00000/metadata.jsonl` with the columns of '
        "CSV and `file_name`, beside it the pictures"
    )
    pictures = True

    def fill(self, folder: Path, records: Iterator[Joined]) -> tuple[int, str]:
        """Write pictures and metadata."""
        import hashlib

        size, digest = 0, hashlib.sha256()
        with (folder / "metadata.jsonl").open("wb") as metadata:
            for record in records:
                name = f"{safe_name(record.row.key)}.jpg"
                data, values = picture_bytes(record), {"file_name": name} | columns(record, spelled=True)
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
