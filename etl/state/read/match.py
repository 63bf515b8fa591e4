"""Which records somebody means by what was typed: a key, a part of one, or an address."""

from urllib.parse import urlsplit

from etl.state.read.reader import Reader
from etl.text import nearest

LISTED = 10
"""Records that are named where several may be meant."""

_COMPARED = 20_000
"""Keys that a mistyped one is compared with, beside its neighbours; in all of a large state it would take minutes."""

_ADDRESSES = 1000
"""Addresses that hold a text and are looked at more closely."""


def keys_meant(reader: Reader, text: str) -> list[str]:
    """Return the keys of the records that are meant, one more than `LISTED` at most.

    The first that there is of: the key itself, the address itself, keys with the text in them, the address but for its
    scheme and what follows its path, addresses with the text in them.  Case counts in none but the first two.
    """
    limit = LISTED + 1
    exact = reader.rows("SELECT key FROM records WHERE key = ?", (text,)) or reader.rows(
        "SELECT r.key FROM sources s JOIN records r ON r.source = s.id WHERE s.url = ? LIMIT ?", (text, limit)
    )
    if exact or not text:
        return [key for (key,) in exact]
    parts = reader.rows("SELECT key FROM records WHERE instr(lower(key), lower(?)) LIMIT ?", (text, limit))
    if parts:
        return [key for (key,) in parts]
    rows = reader.rows(
        "SELECT r.key, s.url FROM sources s JOIN records r ON r.source = s.id WHERE instr(lower(s.url), lower(?)) "
        "LIMIT ?",
        (bare := _bare(text), _ADDRESSES),
    )
    same = [key for key, url in rows if _bare(url) == bare]
    return (same or [key for key, _ in rows])[:limit]


def keys_like(reader: Reader, text: str) -> list[str]:
    """Return keys that a mistyped one may stand for, the likeliest first; else some, to show what keys look like."""
    keys = [
        key
        for sql, argument in (
            ("SELECT key FROM records ORDER BY id LIMIT ?", _COMPARED),
            ("SELECT key FROM records WHERE key >= ?2 ORDER BY key LIMIT ?1", 100),
            ("SELECT key FROM records WHERE key < ?2 ORDER BY key DESC LIMIT ?1", 100),
        )
        for (key,) in reader.rows(sql, (argument, text) if "?2" in sql else (argument,))
    ]
    near = nearest(text, keys)
    return [near] if near is not None else list(dict.fromkeys(keys))[:3]


def _bare(url: str) -> str:
    """Return an address without scheme, query and fragment, in lower case."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.casefold()
    return f"{parts.netloc}{parts.path}".casefold() or url.casefold()
