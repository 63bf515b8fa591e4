"""A state in which every text is hostile, and what must never come out of the program."""

import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path

HOSTILE = (
    "\x1b]0;owned\x07\x1b]52;c;cm0gLXJm\x07\x1b]8;;http://evil.example\x1b\\x\x1b[2J\x9b31m[/red][bold]"
    "[@click=app.quit]x[/]\u202egnp.exe\u2066\u200b\ufeff\u00ad\U000e0041\r\nforged line\u2028\x00\x7f"
)
"""Titles, the clipboard, links and colours of terminals, C1, markup, text that runs backwards or hides, line ends."""

_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def acting(text: str) -> set[str]:
    """Return the characters that would act on a terminal or hide in it, line ends left out."""
    return {letter for letter in text if letter != "\n" and unicodedata.category(letter) in _ACTING}


def assert_harmless(text: str) -> None:
    """Assert that nothing in the text acts on a terminal, and that no line of it was begun by a stranger."""
    assert not acting(text), sorted(map(hex, map(ord, acting(text))))
    assert not any(line.startswith("forged") for line in text.splitlines())


def poison(
    state: Path, *, but: frozenset[str] = frozenset(), kind: str = "TEXT", value: str = "?1 || rowid"
) -> list[str]:
    """Put hostile text into every text column of every table that takes it; return the columns, ``table.column``.

    Those that the schema itself protects (CHECK) stay as they are, and so do the columns named in ``but``.  With
    ``kind`` and ``value``, in SQL, columns of another type get other values.
    """
    connection = sqlite3.connect(state / "state.db", isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys = OFF")
        return [
            f"{table}.{column}"
            for table, column in _columns(connection, kind)
            if _poisoned(connection, table, column, but, value)
        ]
    finally:
        connection.close()


def _columns(connection: sqlite3.Connection, wanted: str) -> Iterator[tuple[str, str]]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    for (table,) in tables.fetchall():
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            if kind == wanted:
                yield table, column


def _poisoned(connection: sqlite3.Connection, table: str, column: str, but: frozenset[str], value: str) -> bool:
    if f"{table}.{column}" in but or table.startswith("_"):
        return False
    try:
        connection.execute(f"UPDATE {table} SET {column} = {value}", (HOSTILE,) if "?" in value else ())
    except sqlite3.Error:
        return False
    return True
