"""Text files beside pictures, as programs that train models read them."""

import json
from dataclasses import dataclass

from etl.export.format import SidecarFormat, option
from etl.export.lines import Joined
from etl.export.written import Around, Wrote


@dataclass(frozen=True)
class Txt(SidecarFormat):
    """``NAME.txt`` for each captioned record: one line, because some of those programs read only the first."""

    name = "txt"
    help = "`NAME.txt` (the caption, in one line) for each captioned record, `NAME` being its picture's (below)"
    shard_suffix = ".txt"

    prefix: str = option("", "In txt and caption, text before each caption, as trigger words.")
    suffix: str = option("", "In txt and caption, text behind each caption.")
    overwrite: bool = option(
        False, "In txt and caption, write over texts that somebody has changed, or another program has written."
    )

    @property
    def variant(self) -> bytes:
        """Told apart by what stands around captions."""
        around = [self.prefix, self.suffix]
        return json.dumps(around).encode() if any(around) else b""

    def content(self, record: Joined) -> bytes:
        """Return caption, prefix and suffix with one line end."""
        return _line((self.prefix, self.suffix), record.row.text or "")

    def is_own(self, content: bytes, wrote: Wrote) -> bool:
        """Return whether it is empty, or a caption of this state as it was written: a person may have changed it."""
        return self.overwrite or not content.strip() or wrote(content, _line, (self.prefix, self.suffix))


def _line(around: Around, caption: str) -> bytes:
    lines = caption.strip().join(around).splitlines()
    return " ".join(filter(None, map(str.strip, lines))).encode("utf-8", "replace") + b"\n"


FORMAT = Txt
