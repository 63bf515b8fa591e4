"""Making untrusted text safe to show: captions, URLs, record keys, server errors, host names."""

import unicodedata

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
        shown = _SHORT.get(character) or _escape(code) if hidden else code
        # Only escapes are kept: a table of every letter ever seen would grow without need.
        if hidden:
            self[code] = shown
        return shown


def _escape(code: int) -> str:
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


_VISIBLE = _Visible()


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
