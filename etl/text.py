"""Making untrusted text safe to show: captions, URLs, record keys, server errors, host names."""

import difflib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

ELLIPSIS = "..."

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, formats (bidirectional, zero-width, soft hyphen), lone surrogates, line and paragraph separators."""

_HIDDEN_LETTERS = (
    range(0x034F, 0x0350), range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810),
    range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFFA0, 0xFFA1), range(0xE0100, 0xE01F0),
)  # fmt: skip
"""Letters and marks that draw nothing: the rest of Unicode's property Default_Ignorable_Code_Point."""


class _Visible(dict[int, str | int]):
    """A table for `str.translate` that decides on each code point when it first meets it."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        hidden = unicodedata.category(character) in _HIDDEN_CATEGORIES or any(code in r for r in _HIDDEN_LETTERS)
        shown = self.escaped(code) if hidden else code
        # Only escapes are kept: a table of every letter ever seen would grow without need.
        if hidden:
            self[code] = shown
        return shown

    def escaped(self, code: int) -> str:
        return _SHORT.get(chr(code)) or _escape(code)


class _InJson(_Visible):
    """The same, with the escapes of JSON: a code unit of UTF-16 each, so they are read back as what they stand for."""

    def escaped(self, code: int) -> str:
        return "".join(f"\\u{unit:04x}" for unit in _utf16(code))


def _utf16(code: int) -> tuple[int, ...]:
    if code <= 0xFFFF:
        return (code,)
    return 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)


def _escape(code: int) -> str:
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


_VISIBLE = _Visible()
_IN_JSON = _InJson()


def clean(text: str, limit: int | None = None) -> str:
    r"""Return the text as one line in which nothing is hidden and nothing acts on a terminal.

    Control characters (C0, DEL, C1, so also ESC), line ends, bidirectional controls, zero-width and other
    invisible characters, and lone surrogates become the escape that Python would write for them: ``\n``,
    ``\x1b``, ``\u202e``.  A backslash of the text stays one backslash, so this is for eyes and cannot be
    undone.  The result has at most ``limit`` characters; where something was cut off it ends with ``...``.
    Rich and Textual markup is not touched: turn markup off where the text is shown.
    """
    if limit is not None and len(text) > limit:
        # Every character gives at least one: what lies beyond the limit need not be looked at.
        text = text[: limit + 1]
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_VISIBLE)
    if limit is None or len(text) <= limit:
        return text
    return text[: max(0, limit - len(ELLIPSIS))] + ELLIPSIS[:limit]


def clean_lines(text: str) -> str:
    """Return a text of several lines with each of them clean; for tracebacks, whose lines are the program's own."""
    return "\n".join(clean(line) for line in text.split("\n"))


def clean_json(value: Any) -> str:
    r"""Return a value as one line of JSON in which nothing is hidden and nothing acts on a terminal.

    Letters stay as they are; what `clean` would show becomes an escape of JSON (``\u202e``), so that a program reads
    exactly the text that was there.  What JSON does not know is written as text.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text.isascii() and text.isprintable() else text.translate(_IN_JSON)


_LONGEST_MEANT = 200
"""Characters of a name that are compared with others: the work grows with their product."""


def nearest(wanted: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that was probably meant, whatever its case; ``None`` where none is like it."""
    folded = {name[:_LONGEST_MEANT].casefold(): name for name in known}
    near = difflib.get_close_matches(wanted[:_LONGEST_MEANT].casefold(), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def did_you_mean(name: str | None) -> str:
    """Return the question after a name that was probably meant, with a space behind it; empty for none."""
    return f"did you mean {name}? " if name else ""
