"""WebDataset: tar files that are read as a stream."""

import io
from collections.abc import Iterator

from etl.export.columns import picture_bytes, safe_name
from etl.export.format import FileFormat, Sink, Unclosed
from etl.export.lines import Joined


class WebDataset(FileFormat):
    """A tar file with three members for each record: ``name.jpg``, ``name.json`` and ``name.txt``, the caption."""

    name = "webdataset"
    help = "`shard-00000.tar` with `name.jpg`, `name.json` (the line) and `name.txt` (the caption) for each record"
    pictures = True
    shard_suffix = ".tar"

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write sample after sample."""
        import tarfile

        with tarfile.open(fileobj=Unclosed(stream), mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                name = safe_name(record.row.key)
                line = record.line.strip().removeprefix(b"\xef\xbb\xbf")
                for suffix, data in (
                    ("jpg", picture_bytes(record)),
                    ("json", line),
                    ("txt", (record.row.text or "").encode()),
                ):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    # The same records give the same bytes: no times, owners or modes of this machine.
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))


FORMAT = WebDataset
