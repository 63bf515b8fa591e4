"""JSON piece by piece, for documents that are larger than memory."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from etl.errors import ManifestError
from etl.ingest.manifest_formats.file import MAX_LINE

DECODER = json.JSONDecoder()
_BLOCK = 1 << 20


class Scanner:
    """Reads JSON piece by piece, holding no more of it than one value.

    Attributes:
        offset: characters read so far.
    """

    def __init__(self, text: TextIO, name: str) -> None:
        self._text = text
        self._name = name
        self._buffer = ""
        self._at = self._before = 0
        self._line = 1

    @property
    def offset(self) -> int:
        return self._before + self._at

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                if not (char := self._buffer[self._at]).isspace():
                    return char
                self._at += 1
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass over the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Return the value that stands here.  Raises `ManifestError` where none does, or a very long one."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._at)
            except ValueError as error:
                if len(self._buffer) - self._at > MAX_LINE:
                    raise self.error(f"no value of JSON, or one of more than {MAX_LINE} characters") from error
                if not self._more():
                    why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise self.error(f"cut short, or not JSON: {why}") from error
                continue
            # A number at the end of what was read may go on.
            if end < len(self._buffer) or not isinstance(value, int | float) or not self._more():
                self._at = end
                return value

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the array that begins here."""
        self.peek()
        self.skip()
        while (char := self.peek()) != "]":
            if char == ",":
                self.skip()
            else:
                yield self.value()
        self.skip()

    def names(self) -> Iterator[str]:
        """Yield the names in the object that begins here; before the next one the value of each is to be read."""
        self.peek()
        self.skip()
        while (char := self.peek()) != "}":
            if char == ",":
                self.skip()
                continue
            name = self.value()
            if not isinstance(name, str) or self.peek() != ":":
                raise self.error("not JSON: a name was expected")
            self.skip()
            yield name
        self.skip()

    def error(self, reason: str) -> ManifestError:
        """Return the error of what stands here."""
        line = self._line + self._buffer.count("\n", 0, self._at)
        return ManifestError(f"{self._name}, line {line}: {reason}")

    def _more(self) -> bool:
        """Read on; as much again as is unread, so that a long value is not tried again and again."""
        block = self._text.read(max(_BLOCK, len(self._buffer) - self._at))
        if block:
            self._line += self._buffer.count("\n", 0, self._at)
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)
