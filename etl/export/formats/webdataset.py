"""WebDataset: tar files that are read as a stream."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from etl.export.format import FileFormat, PictureFormat, Sink, Unclosed
from etl.export.lines import Joined


@dataclass(frozen=True)
class WebDataset(PictureFormat, FileFormat):
    """A tar file with three members for each record: ``name.jpg``, ``name.json`` and ``name.txt``, the caption."""

    name = "webdataset"
    help = "`shard-00000.tar` with `name.jpg`, `name.json` (the line) and `name.txt` (the caption) for each record"
    dots = False
    shard_suffix = ".tar"

    def write(self, stream: Sink, records: Iterator[Joined]) -> None:
        """Write sample after sample."""
        import tarfile

        with tarfile.open(fileobj=Unclosed(stream), mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for record in records:
                assert record.picture is not None
                name, suffix = record.picture.name, record.picture.suffix.lower()
                line = record.line.strip().removeprefix(b"\xef\xbb\xbf")
                for ending, data in (
                    (suffix, record.picture.read()),
                    (".json", line),
                    (".txt", (record.row.text or "").encode()),
                ):
                    member = tarfile.TarInfo(f"{name}{ending}")
                    # The same records give the same bytes: no times, owners or modes of this machine.
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))


FORMAT = WebDataset
