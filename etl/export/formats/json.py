"""JSON files beside pictures: the whole record of each."""

from dataclasses import dataclass

from etl.export.format import SidecarFormat
from etl.export.lines import CAPTION, Joined


@dataclass(frozen=True)
class Json(SidecarFormat):
    """``NAME.json`` for each captioned record."""

    name = "json"
    help = "`NAME.json` (the record's line of JSON Lines) for each captioned record"
    shard_suffix = ".json"

    def content(self, record: Joined) -> bytes:
        """Return the line, without a byte order mark."""
        return record.line.strip().removeprefix(b"\xef\xbb\xbf") + b"\n"

    def is_own(self, content: bytes, *_: object) -> bool:
        """Return whether it holds a caption: files of other programs have these names, too."""
        return f'"{CAPTION}"'.encode() in content


FORMAT = Json
