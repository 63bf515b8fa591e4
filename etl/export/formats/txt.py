"""Text files beside pictures, as programs that train models read them."""

import json
from dataclasses import dataclass

from etl.export.format import SidecarFormat, option
from etl.export.lines import Joined


@dataclass(frozen=True)
class Txt(SidecarFormat):
    """``NAME.txt`` for each captioned record: one line, because some of those programs read only the first."""

    name = "txt"
    help = "`NAME.txt` (the caption, in one line) for each captioned record, `NAME` being its picture's (below)"
    shard_suffix = ".txt"

    prefix: str = option("", "In txt and caption, text before each caption, as trigger words.")
    suffix: str = option("", "In txt and caption, text behind each caption.")

    @property
    def variant(self) -> bytes:
        """Told apart by what stands around captions."""
        around = [self.prefix, self.suffix]
        return json.dumps(around).encode() if any(around) else b""

    def content(self, record: Joined) -> bytes:
        """Return caption, prefix and suffix with one line end."""
        caption = record.row.text or ""
        lines = f"{self.prefix}{caption.strip()}{self.suffix}".splitlines()
        return " ".join(filter(None, map(str.strip, lines))).encode("utf-8", "replace") + b"\n"


FORMAT = Txt
